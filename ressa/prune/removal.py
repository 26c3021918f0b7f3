"""What each layer of a tower loses: from a target, a group and a rule of counting to removals."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ressa.prune.masks import Removal
from ressa.prune.threshold import zeros_by_saliency
from ressa.sparsity import (
    LayerShape,
    Pattern,
    Target,
    check_pattern,
    check_table,
    tower_zeros,
    zeros_per_matrix,
    zeros_per_row,
)
from ressa.spec import TowerTarget


def removals(
    layers: Sequence[LayerShape],
    wanted: TowerTarget,
    *,
    shares: Mapping[str, Fraction] | None = None,
    saliency: Callable[[LayerShape], Float[Tensor, "out in"]] | None = None,
) -> list[Removal]:
    """Says what each layer loses.

    Args:
        layers: all layers of a tower, in order; with `group: all` those of both towers, whose
            target, method and options are the same.
        wanted: how the tower is pruned. A pattern decides alone; group and layers are not read.
        shares: each layer's sparsity by its name, of `layerwise.owl_shares` or `ecoflap_shares`,
            where `wanted.layers` asks for one of them; a table needs none.
        saliency: how much each weight of a layer matters, for the groups `tower` and `all`. It is
            asked several times for each layer and must answer the same each time.

    Returns:
        For each layer a pattern, the zeros of each row (`group: row`), or those of the matrix.

    Raises:
        InfeasibleAllocation: a pattern does not divide the layers, or a table cannot be met.
        PruneError: a saliency is not finite.
    """
    target = wanted.target
    if target.pattern is not None:
        check_pattern(layers, target.pattern)
        return [target.pattern] * len(layers)
    if wanted.group in ("tower", "all"):
        assert saliency is not None, "one threshold over layers is found in their saliencies"
        exact = target.sparsity * sum(layer.weights for layer in layers)
        zeros = tower_zeros(layers, target)
        if wanted.counting == "reference":
            zeros = math.floor(exact)
        counts: list[Removal] = [*zeros_by_saliency(layers, zeros, saliency)]
        return counts
    found: dict[str, Removal] = {}
    for part, own, parts in _pools(layers, wanted, shares):
        names = [layer.name for layer in part]
        if wanted.group == "row":
            rows = zeros_per_row(part, own, shares=parts, counting=wanted.counting)
            found.update(zip(names, rows, strict=True))
        else:
            counted = zeros_per_matrix(part, own, shares=parts, counting=wanted.counting)
            found.update(zip(names, counted, strict=True))
    return [found[layer.name] for layer in layers]


def requested_zeros(
    layers: Sequence[LayerShape],
    wanted: TowerTarget,
    lost: Sequence[Removal],
    *,
    shares: Mapping[str, Fraction] | None = None,
) -> list[int]:
    """Counts what the target asks of each layer, which `counting: reference` falls short of.

    Args:
        layers: those that `removals` was asked about.
        wanted: as of `removals`.
        lost: what `removals` returned.
        shares: as of `removals`.
    """
    if wanted.counting == "reference" and wanted.group in ("row", "matrix"):
        lost = removals(layers, replace(wanted, counting="exact"), shares=shares)
    return [zeros_of(layer, removal) for layer, removal in zip(layers, lost, strict=True)]


def zeros_of(layer: LayerShape, removal: Removal) -> int:
    """Counts the zeros of a layer's removal."""
    if isinstance(removal, Pattern):
        return layer.weights // removal.group * (removal.group - removal.kept)
    return int(np.sum(removal))


def _pools(
    layers: Sequence[LayerShape], wanted: TowerTarget, shares: Mapping[str, Fraction] | None
) -> Iterator[tuple[Sequence[LayerShape], Target, list[Fraction] | None]]:
    """Yields layers that meet one count together, what it is, and their shares if they differ.

    Each layer that a table lists meets its own; the others meet the rest.
    """
    target = wanted.target
    if wanted.layers is None:
        yield layers, target, None
    elif not isinstance(wanted.layers, tuple):
        assert shares is not None, "owl and ecoflap are worked out before"
        yield layers, target, [shares[layer.name] for layer in layers]
    else:
        table = dict(wanted.layers)
        rest = check_table(layers, target, table)
        left_out = [layer for layer in layers if layer.name not in table]
        if not left_out:
            yield layers, target, [table[layer.name] for layer in layers]
            return
        for layer in layers:
            if layer.name in table:
                yield [layer], Target(table[layer.name]), None
        yield left_out, Target(rest), None
