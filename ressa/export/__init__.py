"""A trial's model as a folder that proves its zeros: written whole or not at all, checked offline.

Two formats: `merged`, which plain transformers loads, and `adapters`, which holds masks and what
repair trained, and names the model that they belong to.
"""

from typing import TYPE_CHECKING

from ressa.export.folder import check_target
from ressa.lazy import lazily

if TYPE_CHECKING:
    from ressa.export.checking import load, verify
    from ressa.export.kernels import to_semi_structured
    from ressa.export.writing import Proof, Unmerged, merged, write

__all__ = [
    "Proof",
    "Unmerged",
    "check_target",
    "load",
    "merged",
    "to_semi_structured",
    "verify",
    "write",
]

# They need torch, and a target is refused before that is imported.
__getattr__ = lazily(
    __name__,
    {
        "Proof": "ressa.export.writing",
        "Unmerged": "ressa.export.writing",
        "load": "ressa.export.checking",
        "merged": "ressa.export.writing",
        "to_semi_structured": "ressa.export.kernels",
        "verify": "ressa.export.checking",
        "write": "ressa.export.writing",
    },
)
