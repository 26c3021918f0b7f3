"""Vision-language models: loading, their towers, and the embedded pocket models."""

from typing import TYPE_CHECKING

from ressa.lazy import lazily

if TYPE_CHECKING:
    from ressa.models.loading import load_inventory, load_vlm
    from ressa.models.towers import Towers, find_towers
    from ressa.models.vlm import NO_LABEL, VLM, Batch

__all__ = ["NO_LABEL", "VLM", "Batch", "Towers", "find_towers", "load_inventory", "load_vlm"]

# `ressa.models.identity` is used where torch may be absent.
__getattr__ = lazily(
    __name__,
    {
        "NO_LABEL": "ressa.models.vlm",
        "VLM": "ressa.models.vlm",
        "Batch": "ressa.models.vlm",
        "Towers": "ressa.models.towers",
        "find_towers": "ressa.models.towers",
        "load_inventory": "ressa.models.loading",
        "load_vlm": "ressa.models.loading",
    },
)
