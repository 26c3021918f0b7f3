"""Keep masks in memory: one bit a weight, unpacked a few rows at a time.

A bool mask would cost a byte a weight, as much again as a quarter of the fp32 weights. Reading
the mask off the weight's zeros would cost nothing, but a kept weight that happens to be exactly
zero would then be frozen for good; with bits of its own it learns like any other.

Dimensions: out, in = weight rows and columns of one linear layer; row = some of its rows; byte =
eight columns, the first in the highest bit.
"""

from collections.abc import Iterator
from functools import cache

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

_LEAST = 1 << 18  # weights rebuilt at once at least: below it, calls cost more than they save
_MOST = 1 << 23  # and at most: beyond it, nothing gets faster
_TILE = 1 << 17  # weights that stay in a core's cache while several passes go over them


def pack(keep_mask: Bool[Tensor, "out in"]) -> UInt8[Tensor, "out byte"]:
    """Packs a mask, eight weights a byte; each row begins with a byte of its own."""
    bits = np.packbits(keep_mask.cpu().numpy(), axis=1)
    return torch.from_numpy(bits).to(keep_mask.device)


def unpack(bits: UInt8[Tensor, "row byte"], columns: int) -> UInt8[Tensor, "row in"]:
    """Returns the mask of some rows as ones and zeros.

    They are bytes and not bools because torch multiplies by bytes five times faster on a CPU.
    """
    eight = _eight_at_once(bits.device).index_select(0, bits.flatten().int())
    return eight.view(torch.uint8).view(len(bits), -1)[:, :columns]


def row_chunks(weight: Float[Tensor, "out in"], tokens: int) -> Iterator[slice]:
    """Cuts a weight into runs of rows that are rebuilt one after the other.

    A run is small beside what the layer's input and output take, so that the memory of a step
    hardly knows of it, and large enough not to cost time: a small layer is one run.
    """
    rows, columns = weight.shape
    at_once = min(max(_LEAST, tokens * max(rows, columns)), _MOST)
    step = -(-rows // -(-rows * columns // at_once))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def tiles(run: Float[Tensor, "row in"]) -> Iterator[slice]:
    """Cuts a run of rows for work that goes over it several times, so that memory is read once.

    Off the CPU it is left whole: a GPU has no such cache, and starting its work costs more.
    """
    rows, columns = run.shape
    step = max(_TILE // columns, 1) if run.device.type == "cpu" else rows
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def space_for(space: Tensor | None, part: Float[Tensor, "row in"]) -> Float[Tensor, "row in"]:
    """Room for one run of rows, taken again by the next; the last one may be shorter."""
    return torch.empty_like(part) if space is None else space[: len(part)]


@cache
def _eight_at_once(device: torch.device) -> Tensor:
    """For each byte, its eight bits as eight bytes, read as one number."""
    table = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
    return torch.from_numpy(table.view(np.int64).reshape(-1).copy()).to(device)
