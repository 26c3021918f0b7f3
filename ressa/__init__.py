"""ressa: split the sparsity of a vision-language model between vision and language, and repair it.

`run` runs a sweep, `open_store` reads what sweeps found; the command line does the same.
"""

from typing import TYPE_CHECKING

from ressa.lazy import lazily as _lazily

if TYPE_CHECKING:
    from ressa.errors import RessaError
    from ressa.spec import SweepSpec, load_spec
    from ressa.store import Store, SweepStore, open_store
    from ressa.sweep.driver import run

__version__ = "0.1.0"

__all__ = [
    "RessaError",
    "Store",
    "SweepSpec",
    "SweepStore",
    "load_spec",
    "open_store",
    "run",
]

# `import ressa` costs nothing.
__getattr__ = _lazily(
    "ressa",
    {
        "RessaError": "ressa.errors",
        "Store": "ressa.store",
        "SweepSpec": "ressa.spec",
        "SweepStore": "ressa.store",
        "load_spec": "ressa.spec",
        "open_store": "ressa.store",
        "run": "ressa.sweep.driver",
    },
)
