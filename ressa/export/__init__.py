"""A trial's model as a folder that proves its zeros: written whole or not at all, checked offline.

Two formats: `merged`, which plain transformers loads, and `adapters`, which holds masks and what
repair trained, and names the model that they belong to.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ressa.export.folder import check_target

if TYPE_CHECKING:
    from ressa.export.checking import load, verify
    from ressa.export.writing import Proof, Unmerged, merged, write

__all__ = ["Proof", "Unmerged", "check_target", "load", "merged", "verify", "write"]

# Imported when asked for: they need torch, and a target is refused before that is imported.
_HOMES = {
    "Proof": "writing",
    "Unmerged": "writing",
    "load": "checking",
    "merged": "writing",
    "verify": "checking",
    "write": "writing",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
