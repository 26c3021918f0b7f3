"""Pruning: statistics · masks · one module per method · calibration and layers, block by block."""

from ressa.catalog import Need
from ressa.prune.calibration import walk
from ressa.prune.layers import (
    LayerReport,
    PrunedLayers,
    ZeroCount,
    apply_masks,
    count_zeros,
    prune_layers,
    prune_tower,
    saliency_of,
)
from ressa.prune.masks import PackedMasks, Removal, keep_mask, mask_hash
from ressa.prune.method import Pruned, PruneMethod
from ressa.prune.removal import removals, requested_zeros
from ressa.prune.statistics import LayerStatistics, Statistics

__all__ = [
    "LayerReport",
    "LayerStatistics",
    "Need",
    "PackedMasks",
    "PruneMethod",
    "Pruned",
    "PrunedLayers",
    "Removal",
    "Statistics",
    "ZeroCount",
    "apply_masks",
    "count_zeros",
    "keep_mask",
    "mask_hash",
    "prune_layers",
    "prune_tower",
    "removals",
    "requested_zeros",
    "saliency_of",
    "walk",
]
