"""Keep masks: which weights of a layer stay, chosen from their saliency with exact counts.

A keep mask is a bool tensor, True where the weight stays. In every group of competing weights the
lowest saliencies go; among equal ones the weight with the larger column index stays (in a whole
matrix: the later one in row-major order), so that a mask is the same on every rerun and device.

Dimensions: out, in = weight rows and columns of one linear layer; row, column = weights that
compete, one group a row.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from ressa.errors import PruneError
from ressa.sparsity import Pattern

Removal: TypeAlias = Int[np.ndarray, " out"] | int | Pattern
"""What a layer loses: zeros of each row, zeros of the whole matrix, or an N:M pattern."""

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by their size in bytes
_CACHE_VALUES = 2**17  # half a megabyte of floats, and what is made of them


def keep_mask(
    saliency: Float[Tensor, "out in"], removal: Removal, *, check: bool = True
) -> Bool[Tensor, "out in"]:
    """Chooses which weights of a layer stay.

    Args:
        saliency: how much each weight matters; any float dtype, finite.
        removal: an array prunes that many weights in each row, an integer that many in the whole
            matrix, a pattern N:M all but the N highest of each aligned group of M inputs.
        check: False leaves `check_finite`, which waits for a GPU, to the caller.

    Returns:
        True where the weight is kept; on the saliency's device.

    Raises:
        PruneError: a saliency is not finite.

    Example:
        >>> keep_mask(torch.tensor([[3.0, 8.0, 2.0, 4.0]]), np.array([2]))
        tensor([[False,  True, False,  True]])
    """
    return next(keep_masks(saliency, [removal], check=check))


def keep_masks(
    saliency: Float[Tensor, "out in"], removals: Sequence[Removal], *, check: bool = True
) -> Iterator[Bool[Tensor, "out in"]]:
    """Chooses several times from one saliency, which is sorted once: a `keep_mask` per removal."""
    is_on_cpu = saliency.device.type == "cpu"
    # By numpy, whose sorts are several times faster than torch's on a CPU.
    values = torch.from_numpy(_to_numpy(saliency)) if is_on_cpu else saliency.detach()
    if check:
        check_finite(values)
    return _by_threshold(values.numpy(), removals) if is_on_cpu else _by_rank(values, removals)


def check_finite(saliency: Float[Tensor, "out in"]) -> None:
    """Raises a PruneError if a saliency is not finite."""
    if saliency.device.type != "cpu":
        is_finite = bool(saliency.isfinite().all())
    else:
        array = _to_numpy(saliency)
        is_finite = all(np.isfinite(array[rows]).all() for rows in cache_fuls(array))
    if not is_finite:
        raise PruneError("a saliency is not finite: check the weights for NaN.", "numeric")


def _by_rank(
    saliency: Float[Tensor, "out in"], removals: Sequence[Removal]
) -> Iterator[Bool[Tensor, "out in"]]:
    """Chooses by each weight's rank among those it competes with, on the saliency's device."""
    values = saliency + 0.0  # turns -0.0, which equals it, into 0.0
    ranks: dict[int, Int[Tensor, "row column"]] = {}
    for removal in removals:
        if isinstance(removal, Pattern):
            yield _keep_pattern_by_rank(values.reshape(-1, removal.group), removal).view_as(values)
            continue
        width = values.numel() if isinstance(removal, int) else values.shape[1]
        if width not in ranks:
            order = values.reshape(-1, width).argsort(dim=1, stable=True)
            places = torch.arange(width, device=order.device).expand_as(order)
            ranks[width] = torch.empty_like(order).scatter_(1, order, places)
        zeros = torch.tensor(removal) if isinstance(removal, int) else torch.from_numpy(removal)
        yield (ranks[width] >= zeros.reshape(-1, 1).to(values.device)).view_as(values)


def _keep_pattern_by_rank(
    values: Float[Tensor, "row column"], pattern: Pattern
) -> Bool[Tensor, "row column"]:
    """Keeps what `_keep_pattern` does, by comparisons that a GPU is not waited for."""
    rank = torch.zeros(values.shape, dtype=torch.int16, device=values.device)
    for late in range(1, pattern.group):
        late_is_higher = values[:, :late] <= values[:, late : late + 1]
        rank[:, late] = late_is_higher.sum(dim=1)
        rank[:, :late] += ~late_is_higher
    return rank >= pattern.group - pattern.kept


def _by_threshold(
    values: Float[np.ndarray, "out in"], removals: Sequence[Removal]
) -> Iterator[Bool[Tensor, "out in"]]:
    """Chooses by the highest saliency that goes, by sorts that need not say whence it came."""
    whole = values.reshape(1, -1)
    by_row = _last_pruned(values, [r for r in removals if isinstance(r, np.ndarray)])
    in_matrix = _last_pruned(whole, [np.array([r]) for r in removals if isinstance(r, int)])
    for removal in removals:
        if isinstance(removal, Pattern):
            kept = _keep_pattern(values.reshape(-1, removal.group), removal)
        elif isinstance(removal, int):
            kept = _keep_above(whole, next(in_matrix), np.array([removal]))
        else:
            kept = _keep_above(values, next(by_row), removal)
        yield torch.from_numpy(kept.reshape(values.shape))


def _to_numpy(saliency: Float[Tensor, "out in"]) -> Float[np.ndarray, "out in"]:
    values = saliency.detach()
    if values.dtype in (torch.float16, torch.bfloat16):
        values = values.float()  # numpy knows no bfloat16
    array: Float[np.ndarray, "out in"] = values.contiguous().numpy()
    return array


def cache_fuls(
    values: Float[np.ndarray, "row column"] | Float[Tensor, "row column"],
) -> Iterator[slice]:
    """Cuts a matrix into rows that a processor's cache holds, so that passes over them are fast.

    One on a GPU, which is kept busy by whole matrices, is left whole.
    """
    is_on_gpu = isinstance(values, Tensor) and values.device.type != "cpu"
    height = len(values) if is_on_gpu else _CACHE_VALUES // max(values.shape[1], 1)
    height = max(height, 1)
    for first in range(0, len(values), height):
        yield slice(first, first + height)


def _last_pruned(
    values: Float[np.ndarray, "row column"], counts: Sequence[Int[np.ndarray, " row"]]
) -> Iterator[Float[np.ndarray, " row"]]:
    """Finds for each count the highest value of each row that goes; -inf where none does."""
    if not counts:
        return iter(())
    zeros = np.stack(counts)  # [count row]
    last = np.maximum(zeros, 1) - 1
    places = np.unique(last)
    found = np.empty(last.shape, dtype=values.dtype)
    for rows in cache_fuls(values):
        # One place is found faster than all are sorted; two are not.
        one = len(places) == 1
        ordered = np.partition(values[rows], places) if one else np.sort(values[rows])
        found[:, rows] = np.take_along_axis(ordered, last[:, rows].T, axis=1).T
    return iter(np.where(zeros > 0, found, -np.inf))


def _keep_above(
    values: Float[np.ndarray, "row column"],
    last_pruned: Float[np.ndarray, " row"],
    zeros: Int[np.ndarray, " row"],
) -> Bool[np.ndarray, "row column"]:
    """Keeps what is higher than the last that goes, and the later ones of its equals."""
    kept = values > last_pruned[:, None].astype(values.dtype)
    if np.count_nonzero(kept) == kept.size - zeros.sum():
        return kept  # rows without ties, all of them: never is one kept that should go
    missing = kept.shape[1] - zeros - np.count_nonzero(kept, axis=1)  # [row]
    tied_rows = np.flatnonzero(missing)
    ties = values[tied_rows] == last_pruned[tied_rows, None]
    rank_from_the_right = ties[:, ::-1].cumsum(axis=1)[:, ::-1]
    kept[tied_rows] |= ties & (rank_from_the_right <= missing[tied_rows, None])
    return kept


def _keep_pattern(
    values: Float[np.ndarray, "row column"], pattern: Pattern
) -> Bool[np.ndarray, "row column"]:
    """Keeps the N highest of each row of M values, the later ones among equals."""
    kept = np.empty(values.shape, dtype=bool)
    for rows in cache_fuls(values):
        columns = np.ascontiguousarray(values[rows].T)  # long rows, so that numpy vectorises
        rank = np.zeros(columns.shape, dtype=np.int16 if pattern.group > 127 else np.int8)
        for late in range(pattern.group):
            for early in range(late):
                late_is_higher = columns[early] <= columns[late]
                rank[late] += late_is_higher
                rank[early] += ~late_is_higher
        kept[rows] = (rank >= pattern.group - pattern.kept).T
    return kept


def zero_pruned_(weight: Float[Tensor, "out in"], keep: Bool[Tensor, "out in"]) -> None:
    """Sets the weights that go to exactly +0.0, in place."""
    # Products of integers: those of floats would leave -0.0, and on a CPU `masked_fill_` takes
    # seven times as long.
    bits = weight.detach().view(_INTEGERS[weight.element_size()])
    for rows in cache_fuls(weight):
        bits[rows].mul_(keep[rows])


def mask_bits(mask: Bool[Tensor, "_ _"]) -> UInt8[Tensor, " byte"]:
    """Packs a mask, eight weights a byte."""
    return torch.from_numpy(np.packbits(mask.numpy()))


def mask_of_bits(bits: UInt8[Tensor, " byte"], rows: int, columns: int) -> Bool[Tensor, "_ _"]:
    """Unpacks what `mask_bits` packed."""
    mask = np.unpackbits(bits.numpy(), count=rows * columns).astype(bool)
    return torch.from_numpy(mask.reshape(rows, columns))


class PackedMasks(Mapping[str, Bool[Tensor, "_ _"]]):
    """Keep masks by the layer's name, held as bits: an eighth of a byte for each weight."""

    def __init__(self, masks: Mapping[str, Bool[Tensor, "_ _"]] | None = None) -> None:
        self._bits: dict[str, tuple[Tensor, int, int]] = {}
        for name, mask in ({} if masks is None else masks).items():
            self._bits[name] = (mask_bits(mask), *mask.shape)

    def __getitem__(self, name: str) -> Bool[Tensor, "_ _"]:
        return mask_of_bits(*self._bits[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._bits)

    def __len__(self) -> int:
        return len(self._bits)

    def __or__(self, other: "PackedMasks") -> "PackedMasks":
        """Returns the masks of both."""
        both = PackedMasks()
        both._bits = self._bits | other._bits
        return both

    def packed(self, name: str) -> tuple[UInt8[Tensor, " byte"], int, int]:
        """Returns a mask as `mask_bits` packs it, its rows and its columns."""
        return self._bits[name]


def mask_hash(masks: Mapping[str, Bool[Tensor, "_ _"]]) -> str:
    """Returns the SHA-256 of the masks' names, shapes and bits: equal if and only if they are."""
    digest = hashlib.sha256()
    for name in sorted(masks):
        one = masks if isinstance(masks, PackedMasks) else PackedMasks({name: masks[name]})
        bits, *shape = one.packed(name)
        digest.update(json.dumps([name, shape]).encode())
        digest.update(bits.numpy().data)
    return digest.hexdigest()
