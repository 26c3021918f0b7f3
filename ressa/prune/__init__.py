"""Pruning: statistics · masks · one module per method · the walk over a tower."""

from ressa.prune.masks import keep_mask, mask_hash, pack_masks, unpack_masks
from ressa.prune.method import PruneMethod
from ressa.prune.statistics import InputNorms, calibrate
from ressa.prune.walk import (
    LayerReport,
    PrunedTower,
    ZeroCount,
    apply_masks,
    count_zeros,
    prune_tower,
)

__all__ = [
    "InputNorms",
    "LayerReport",
    "PruneMethod",
    "PrunedTower",
    "ZeroCount",
    "apply_masks",
    "calibrate",
    "count_zeros",
    "keep_mask",
    "mask_hash",
    "pack_masks",
    "prune_tower",
    "unpack_masks",
]
