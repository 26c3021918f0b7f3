"""Vision-language models: loading, their towers, and the embedded pocket models."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ressa.models.loading import load_inventory, load_vlm
    from ressa.models.towers import Towers, find_towers
    from ressa.models.vlm import NO_LABEL, VLM, Batch

__all__ = ["NO_LABEL", "VLM", "Batch", "Towers", "find_towers", "load_inventory", "load_vlm"]

# Imported when asked for: `ressa.models.identity` is used where torch may be absent.
_HOMES = {
    "NO_LABEL": "vlm",
    "VLM": "vlm",
    "Batch": "vlm",
    "Towers": "towers",
    "find_towers": "towers",
    "load_inventory": "loading",
    "load_vlm": "loading",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
