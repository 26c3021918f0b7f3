"""One threshold over the saliencies of many layers, found exactly in bounded memory.

The saliencies of a whole tower are never held together. Floats are read as integers of the same
order, and the threshold is found digit by digit: a count of each digit's values over all layers
says in which of them the threshold lies. One layer's saliencies are in memory at a time.

Dimensions: out, in = weight rows and columns of one linear layer; weight = weights of a slice.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ressa.errors import PruneError
from ressa.sparsity import LayerShape

_DIGIT = 16  # bits
_VALUES = 1 << _DIGIT
_SLICE = 1 << 20  # weights whose integers are made at a time


def zeros_by_saliency(
    layers: Sequence[LayerShape],
    zeros: int,
    saliency: Callable[[LayerShape], Float[Tensor, "out in"]],
) -> list[int]:
    """Counts how many of the lowest saliencies of all layers lie in each of them.

    Among saliencies equal to the threshold the later ones stay, in the order of the layers and in
    a layer in row-major order, as if all layers were one matrix of `masks.keep_mask`.

    Args:
        layers: those that compete.
        zeros: how many weights go, at most as many as there are.
        saliency: how much each weight of a layer matters; any float dtype, finite. It is asked
            three times for each layer, five times where saliencies are doubles, and must answer
            the same each time.

    Raises:
        PruneError: a saliency is not finite, or of another shape than its layer.
    """
    weights = sum(layer.weights for layer in layers)
    if not 0 <= zeros <= weights:
        raise ValueError(f"{zeros} zeros of {weights} weights")
    if zeros in (0, weights):
        return [layer.weights if zeros else 0 for layer in layers]
    threshold, dtype, below = None, torch.float32, 0
    while threshold is None:
        try:
            threshold, below = _threshold(layers, zeros, saliency, dtype)
        except _IsDouble:
            dtype = torch.float64
    ties = zeros - below  # of the weights at the threshold, the first ones go
    counts = []
    for layer in layers:
        lower = equal = 0
        for keys in _keys(layer, saliency(layer), dtype):
            lower += int((keys < threshold).sum())
            equal += int((keys == threshold).sum())
        lost = min(ties, equal)
        counts.append(lower + lost)
        ties -= lost
    return counts


class _IsDouble(Exception):
    """Saliencies turned out to be doubles, whose integers are wider."""


def _threshold(
    layers: Sequence[LayerShape],
    zeros: int,
    saliency: Callable[[LayerShape], Tensor],
    dtype: torch.dtype,
) -> tuple[int, int]:
    """Finds the integer of the zeros-th lowest saliency, and how many are lower."""
    bits = torch.finfo(dtype).bits
    prefix = below = 0
    for shift in range(bits - _DIGIT, -1, -_DIGIT):
        is_highest = shift + _DIGIT == bits
        found = torch.zeros(_VALUES, dtype=torch.int64)
        for layer in layers:
            for keys in _keys(layer, saliency(layer), dtype):
                if not is_highest:
                    keys = keys[keys >> (shift + _DIGIT) == prefix]
                digits = (keys >> shift) & (_VALUES - 1)
                found += torch.bincount(digits, minlength=_VALUES).cpu()
        if is_highest:  # its values with the sign bit are the lower ones
            found = found.roll(_VALUES // 2)
        reached = below + found.cumsum(0)
        at = int(torch.searchsorted(reached, zeros))
        below = int(reached[at]) - int(found[at])
        prefix = at - _VALUES // 2 if is_highest else (prefix << _DIGIT) | at
    return prefix, below


def _keys(
    layer: LayerShape, saliency: Tensor, dtype: torch.dtype
) -> Iterator[Int64[Tensor, " weight"]]:
    """Yields a layer's saliencies, slice by slice, as integers of the same order."""
    if saliency.shape != (layer.rows, layer.columns):
        raise PruneError(
            f"{layer.name}: saliencies of shape {tuple(saliency.shape)}, the weight is "
            f"{(layer.rows, layer.columns)}."
        )
    if saliency.dtype == torch.float64 and dtype != torch.float64:
        raise _IsDouble
    integers = torch.int64 if dtype == torch.float64 else torch.int32
    greatest = torch.iinfo(integers).max
    for part in saliency.detach().reshape(-1).split(_SLICE):
        if not part.isfinite().all():
            raise PruneError(
                f"{layer.name}: a saliency is not finite: check the weights for NaN.", "numeric"
            )
        bits = (part.to(dtype) + 0.0).view(integers)  # + 0.0 turns -0.0, which equals it, into 0.0
        # A negative float's integer falls as the float rises: all but its sign is turned over.
        yield torch.where(bits < 0, bits ^ greatest, bits).long()
