"""What each layer of a tower loses."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ressa.prune.masks import Removal, keep_mask
from ressa.sparsity import (
    Group,
    LayerShape,
    Target,
    check_pattern,
    tower_zeros,
    zeros_per_matrix,
    zeros_per_row,
)


def removals(
    layers: Sequence[LayerShape],
    target: Target,
    group: Group,
    saliency: Callable[[LayerShape], Tensor],
) -> Sequence[Removal]:
    """Says what each layer loses."""
    if target.pattern is not None:
        check_pattern(layers, target.pattern)
        return [target.pattern] * len(layers)
    if group == "row":
        return zeros_per_row(layers, target)
    if group == "matrix":
        return zeros_per_matrix(layers, target)
    values = [saliency(layer).detach().cpu().reshape(1, -1) for layer in layers]
    kept = keep_mask(torch.cat(values, dim=1), tower_zeros(layers, target))
    parts = kept.split([layer.weights for layer in layers], dim=1)
    return [int((~part).sum()) for part in parts]
