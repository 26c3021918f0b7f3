"""Layer-wise allocation: how the sparsity of a tower is split over its blocks.

OWL (arXiv:2310.05175) spares blocks with many outliers, ECoFLaP (arXiv:2310.02998) blocks that
the loss depends on. Both only decide shares; which weights of a layer go is its method's choice.
A T5's encoder and decoder are one tower: their blocks are ranked together. All layers of a block
get its sparsity, and the tower's total is met exactly: shares are exact fractions.

Symbols: b = block, S = sparsity of the tower, P = prunable weights, M and λ as in OWL.
"""

import bisect
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

import torch
from jaxtyping import Float
from torch import Tensor

from ressa.errors import PruneError
from ressa.prune.statistics import LayerStatistics
from ressa.sparsity import LayerShape, Target
from ressa.spec import Ecoflap, Owl


@torch.no_grad()
def outlier_shares(
    layers: Sequence[LayerShape],
    statistics: Mapping[str, LayerStatistics],
    weight: Callable[[LayerShape], Float[Tensor, "out in"]],
    threshold: float,
) -> dict[int, float]:
    r"""Measures OWL's outlier share of each block.

    .. math:: D_b = \frac{1}{P_b} \#\{A_{ij} > M \cdot \mathrm{mean}(A)\}, \quad
        A_{ij} = |W_{ij}| \cdot \lVert X_j \rVert_2

    with A over all layers of the block together. One layer's A is held at a time.

    Args:
        layers: of one tower.
        statistics: of the layers' inputs, by the layer's name; moments will do.
        weight: gives a layer's dense weights.
        threshold: M, how many times the mean an outlier is.

    Returns:
        A share in [0, 1] for each block.

    Raises:
        PruneError: a weight is not finite.
    """

    def saliency(layer: LayerShape) -> Tensor:
        dense = weight(layer).detach()
        precise = torch.promote_types(dense.dtype, torch.float32)
        norm = statistics[layer.name].norm.to(dense.device, precise)
        return dense.abs().to(precise) * norm

    shares = {}
    for block, members in _blocks(layers).items():
        weights = sum(layer.weights for layer in members)
        mean = sum(float(saliency(x).sum(dtype=torch.float64)) for x in members) / weights
        if not mean < float("inf"):
            names = ", ".join(layer.name for layer in members)
            raise PruneError(f"a weight of {names} is not finite: no outlier share.", "numeric")
        outliers = sum(int((saliency(layer) > threshold * mean).sum()) for layer in members)
        shares[block] = outliers / weights
    return shares


def owl_shares(
    layers: Sequence[LayerShape], target: Target, outliers: Mapping[int, float], options: Owl
) -> dict[str, Fraction]:
    r"""Turns outlier shares into sparsities: OWL, shifted so that the tower meets its target.

    .. math:: s_b = \mathrm{clip}\Big(c - 2λ \frac{D_b - \min D}{\max D - \min D},\; S - λ,\;
        S + λ\Big)

    within [0, 1], with the one c for which :math:`\sum_b s_b P_b = S P`. In the paper's code the
    mean counts every block alike, which misses the target where blocks differ in size, and a
    sparsity may leave the bounds. Equal outlier shares give uniform sparsity.

    Args:
        layers: of one tower.
        target: what the tower loses, a fraction.
        outliers: what `outlier_shares` returned.
        options: `spread` is λ.

    Returns:
        The sparsity of each layer, by its name.
    """
    blocks, sparsity = _blocks(layers), target.sparsity
    spread = Fraction(str(options.spread))
    share = {block: Fraction(outliers[block]) for block in blocks}
    least, most = min(share.values()), max(share.values())
    if most == least:
        return {layer.name: sparsity for layer in layers}
    found = _shifted(
        [-2 * spread * (share[block] - least) / (most - least) for block in blocks],
        [_weights(members) for members in blocks.values()],
        sparsity,
        (max(Fraction(0), sparsity - spread), min(Fraction(1), sparsity + spread)),
    )
    return _of_layers(blocks, found)


def ecoflap_shares(
    layers: Sequence[LayerShape],
    target: Target,
    importances: Mapping[str, float],
    options: Ecoflap,
) -> dict[str, Fraction]:
    """Turns importances into sparsities: ECoFLaP's first stage.

    Every block keeps at least 1 − (S + spread) of its weights. What the tower keeps beyond is
    shared out in proportion to the blocks' importances, a sum over their layers; a block that is
    then full leaves the rest to the others. A block's share of weights, not its sparsity, follows
    its importance: blocks of equal importance per weight, or of no importance at all, are pruned
    alike.

    Args:
        layers: of one tower.
        target: what the tower loses, a fraction.
        importances: of each layer by its name, ≥ 0, from `ecoflap.importances`.
        options: `spread` bounds a block's sparsity from above.

    Returns:
        The sparsity of each layer, by its name; weighted by size, their mean is the target's.
    """
    blocks = _blocks(layers)
    most = min(Fraction(1), target.sparsity + Fraction(str(options.spread)))
    weights = {block: _weights(members) for block, members in blocks.items()}
    importance = {
        block: sum((Fraction(importances[layer.name]) for layer in members), Fraction(0))
        for block, members in blocks.items()
    }
    least = {block: (1 - most) * size for block, size in weights.items()}
    left = (1 - target.sparsity) * sum(weights.values()) - sum(least.values())
    kept: dict[int, Fraction] = {}
    while True:
        hungry = [block for block in blocks if block not in kept]
        score = importance if any(importance[block] for block in hungry) else weights
        whole = sum((Fraction(score[block]) for block in hungry), Fraction(0))
        gains = {block: left * score[block] / whole for block in hungry}
        full = [block for block in hungry if least[block] + gains[block] > weights[block]]
        for block in full:
            kept[block] = Fraction(weights[block])
            left -= weights[block] - least[block]
        if not full:
            kept |= {block: least[block] + gains[block] for block in hungry}
            return _of_layers(blocks, [1 - kept[block] / weights[block] for block in blocks])


def _blocks(layers: Sequence[LayerShape]) -> dict[int, list[LayerShape]]:
    blocks: dict[int, list[LayerShape]] = {}
    for layer in layers:
        blocks.setdefault(layer.block, []).append(layer)
    return blocks


def _weights(layers: Sequence[LayerShape]) -> int:
    return sum(layer.weights for layer in layers)


def _of_layers(
    blocks: Mapping[int, Sequence[LayerShape]], sparsities: Sequence[Fraction]
) -> dict[str, Fraction]:
    return {
        layer.name: sparsity
        for members, sparsity in zip(blocks.values(), sparsities, strict=True)
        for layer in members
    }


def _shifted(
    scores: Sequence[Fraction],
    weights: Sequence[int],
    mean: Fraction,
    bounds: tuple[Fraction, Fraction],
) -> list[Fraction]:
    """Returns clip(score + c, bounds) with the c that makes `mean` their weighted mean.

    The mean is a rising, piecewise linear function of c: between its two corners c is exact.
    """
    low, high = bounds
    total = mean * sum(weights)

    def clipped(shift: Fraction) -> list[Fraction]:
        return [min(max(score + shift, low), high) for score in scores]

    def reached(shift: Fraction) -> Fraction:
        return sum((s * w for s, w in zip(clipped(shift), weights, strict=True)), Fraction(0))

    corners = sorted({bound - score for score in scores for bound in bounds})
    at = bisect.bisect_right(corners, total, key=reached)
    left = corners[at - 1]
    if at == len(corners) or reached(left) == total:
        return clipped(left)
    rise = (total - reached(left)) / (reached(corners[at]) - reached(left))
    return clipped(left + rise * (corners[at] - left))
