"""Pruning: statistics · masks · one module per method · the walk over a tower."""

from ressa.prune.calibration import calibrate
from ressa.prune.masks import Removal, keep_mask, mask_hash
from ressa.prune.method import Need, Pruned, PruneMethod
from ressa.prune.statistics import LayerStatistics, Statistics
from ressa.prune.walk import (
    LayerReport,
    PrunedTower,
    ZeroCount,
    apply_masks,
    count_zeros,
    prune_tower,
)

__all__ = [
    "LayerReport",
    "LayerStatistics",
    "Need",
    "PruneMethod",
    "Pruned",
    "PrunedTower",
    "Removal",
    "Statistics",
    "ZeroCount",
    "apply_masks",
    "calibrate",
    "count_zeros",
    "keep_mask",
    "mask_hash",
    "prune_tower",
]
