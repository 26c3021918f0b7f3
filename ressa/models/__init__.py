"""Vision-language models: loading, their towers, and the embedded pocket models."""

from ressa.models.loading import load_vlm
from ressa.models.towers import Towers, find_towers
from ressa.models.vlm import NO_LABEL, VLM, Batch

__all__ = ["NO_LABEL", "VLM", "Batch", "Towers", "find_towers", "load_vlm"]
