"""Keep masks: which weights of a layer stay, chosen from their saliency with exact counts.

A keep mask is a bool tensor, True where the weight stays. In every group of competing weights the
lowest saliencies go; among equal ones the weight with the larger column index stays (in a whole
matrix: the later one in row-major order), so that a mask is the same on every rerun and device.

Dimensions: out, in = weight rows and columns of one linear layer; row, column = weights that
compete, one group a row.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from ressa.errors import PruneError
from ressa.sparsity import Pattern

Removal: TypeAlias = Int[np.ndarray, " out"] | int | Pattern
"""What a layer loses: zeros of each row, zeros of the whole matrix, or an N:M pattern."""


def keep_mask(saliency: Float[Tensor, "out in"], removal: Removal) -> Bool[Tensor, "out in"]:
    """Chooses which weights of a layer stay.

    Args:
        saliency: how much each weight matters; any float dtype, finite.
        removal: an array prunes that many weights in each row, an integer that many in the whole
            matrix, a pattern N:M all but the N highest of each aligned group of M inputs.

    Returns:
        True where the weight is kept; on the CPU.

    Raises:
        PruneError: a saliency is not finite.

    Example:
        >>> keep_mask(torch.tensor([[3.0, 8.0, 2.0, 4.0]]), np.array([2]))
        tensor([[False,  True, False,  True]])
    """
    values = _to_numpy(saliency)
    if isinstance(removal, Pattern):
        kept = _keep_pattern(values.reshape(-1, removal.group), removal)
    elif isinstance(removal, int):
        kept = _keep_highest(values.reshape(1, -1), np.array([removal]))
    else:
        kept = _keep_highest(values, removal)
    return torch.from_numpy(kept.reshape(values.shape))


def _to_numpy(saliency: Float[Tensor, "out in"]) -> Float[np.ndarray, "out in"]:
    # numpy knows no bfloat16; its sorts are several times faster than torch's.
    values = saliency.detach().cpu()
    if values.dtype in (torch.float16, torch.bfloat16):
        values = values.float()
    array: Float[np.ndarray, "out in"] = values.numpy()
    if not np.isfinite(array).all():
        raise PruneError("a saliency is not finite: check the weights for NaN.", "numeric")
    return array


def _keep_highest(
    values: Float[np.ndarray, "row column"], zeros: Int[np.ndarray, " row"]
) -> Bool[np.ndarray, "row column"]:
    """Drops the `zeros` lowest values of each row, the earlier ones first among equals."""
    last = np.maximum(zeros, 1) - 1  # [row]
    places = np.unique(last)
    # Rows mostly lose one of two counts, and two places are found faster than all are sorted.
    ordered = np.partition(values, places, axis=1) if len(places) <= 2 else np.sort(values, axis=1)
    last_pruned = ordered[np.arange(len(values)), last]
    threshold = np.where(zeros > 0, last_pruned, -np.inf)[:, None]  # [row 1]
    kept = values > threshold
    missing = kept.shape[1] - zeros - np.count_nonzero(kept, axis=1)  # [row]
    tied_rows = np.flatnonzero(missing)
    if len(tied_rows):  # several values equal the threshold, and not all of them go
        ties = values[tied_rows] == threshold[tied_rows]
        rank_from_the_right = ties[:, ::-1].cumsum(axis=1)[:, ::-1]
        kept[tied_rows] |= ties & (rank_from_the_right <= missing[tied_rows, None])
    return kept


def _keep_pattern(
    values: Float[np.ndarray, "row column"], pattern: Pattern
) -> Bool[np.ndarray, "row column"]:
    """Keeps the N highest of each row of M values, the later ones among equals."""
    columns = np.ascontiguousarray(values.T)  # [column row]: long rows, so that numpy vectorises
    rank = np.zeros(columns.shape, dtype=np.int16)
    for late in range(pattern.group):
        for early in range(late):
            late_is_higher = columns[early] <= columns[late]
            rank[late] += late_is_higher
            rank[early] += ~late_is_higher
    return np.ascontiguousarray((rank >= pattern.group - pattern.kept).T)


def mask_bits(mask: Bool[Tensor, "_ _"]) -> UInt8[Tensor, " byte"]:
    """Packs a mask, eight weights a byte."""
    return torch.from_numpy(np.packbits(mask.numpy()))


def mask_of_bits(bits: UInt8[Tensor, " byte"], rows: int, columns: int) -> Bool[Tensor, "_ _"]:
    """Unpacks what `mask_bits` packed."""
    mask = np.unpackbits(bits.numpy(), count=rows * columns).astype(bool)
    return torch.from_numpy(mask.reshape(rows, columns))


def mask_hash(masks: Mapping[str, Bool[Tensor, "_ _"]]) -> str:
    """Returns the SHA-256 of the masks' names, shapes and bits: equal if and only if they are."""
    digest = hashlib.sha256()
    for name in sorted(masks):
        digest.update(json.dumps([name, list(masks[name].shape)]).encode())
        digest.update(np.packbits(masks[name].numpy()).tobytes())
    return digest.hexdigest()
