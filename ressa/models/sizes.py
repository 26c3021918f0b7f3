"""Pictures of another size than a model was trained at."""

import inspect
from typing import Any

from torch import nn

from ressa.errors import SpecError
from ressa.models.vlm import VLM

_INTERPOLATE = "interpolate_pos_encoding"


def resize(vlm: VLM, side: int) -> None:
    """Lets a model look at squares of another size, its position embeddings interpolated.

    Args:
        vlm: its processor and its vision tower are changed.
        side: of the squares, in pixels, ≥ 1.

    Raises:
        SpecError: its pictures have no one size, or its vision tower can read no other.
    """
    tower = vlm.vision_tower
    processor: Any = getattr(vlm.processor, "image_processor", None)
    names = {name for name, value in dict(getattr(processor, "size", None) or {}).items() if value}
    if names not in ({"height", "width"}, {"shortest_edge"}):
        raise SpecError(
            f"model.image_size: the processor of {vlm.name} gives pictures no one size "
            f"({', '.join(sorted(names)) or 'none'}). Leave it out."
        )
    if _INTERPOLATE not in inspect.signature(type(tower).forward).parameters:
        raise SpecError(
            f"model.image_size: {type(tower).__name__}, the vision tower of {vlm.name}, reads "
            "pictures of one size only. Leave it out."
        )
    patch = getattr(tower.config, "patch_size", 1)
    if side % patch:
        raise SpecError(
            f"model.image_size: a multiple of the patch size {patch} of {vlm.name}, got {side}."
        )
    processor.size = type(processor.size)(**dict.fromkeys(names, side))
    if getattr(processor, "crop_size", None) is not None:
        processor.crop_size = type(processor.crop_size)(height=side, width=side)
    tower.register_forward_pre_hook(_interpolate, with_kwargs=True)


def _interpolate(tower: nn.Module, args: Any, inputs: dict[str, Any]) -> tuple[Any, Any]:
    return args, inputs | {_INTERPOLATE: True}
