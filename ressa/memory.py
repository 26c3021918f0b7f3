"""What fits into memory, what was taken of it, and whether an error says that it ran out."""

import gc
import logging
import math
import os
import resource
import sys
from collections.abc import Callable, Sequence
from tempfile import NamedTemporaryFile
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

log = logging.getLogger(__name__)

_GIB = 2**30


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the CPU.

    torch has a class of errors for GPUs alone; its CPU allocator and oneDNN say it in words, the
    latter in general ones.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    words = (
        "out of memory",
        "can't allocate memory",
        "could not create a memory",
        "CUBLAS_STATUS_ALLOC_FAILED",
    )
    is_told = any(known in text for known in words) or text == "could not create a primitive"
    return isinstance(error, RuntimeError) and is_told


def free_cache() -> None:
    """Lets go of what a broken-off step has left, and of what torch keeps on a GPU for later."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def on_disk(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Makes a tensor of zeros in an unnamed file of TMPDIR.

    The system keeps in memory what there is room for.

    Raises:
        OSError: the disk has no room for it.
    """
    count = math.prod(shape)
    with NamedTemporaryFile(prefix="ressa-tensor-") as file:
        # Taken now: to write where the disk turns out to be full would end the process.
        os.posix_fallocate(file.fileno(), 0, max(count * dtype.itemsize, 1))
        return torch.from_file(file.name, shared=True, size=count, dtype=dtype).view(*shape)


def bytes_of(tensor: Tensor) -> memoryview:
    """Returns a tensor's values as bytes, row after row; copied only where they do not lie so."""
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().data


def in_batches(work: Callable[[int], T], size: int) -> T:
    """Does work so many at a time, and all of it again with half as many where memory ran out."""
    while True:
        try:
            return work(size)
        except Exception as error:
            if size == 1 or not is_out_of_memory(error):
                raise
        free_cache()
        log.warning("a batch of %d does not fit; trying %d", size, halved(size))
        size = halved(size)


def halved(size: int) -> int:
    """Half a batch, rounded up."""
    return -(-size // 2)


def forget_peak() -> None:
    """Begins a new peak, on a GPU; the peak of a process's main memory only ever rises."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_gib() -> float:
    """Returns the most memory in use since `forget_peak`: a GPU's, else the process's so far."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / _GIB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (_GIB if sys.platform == "darwin" else _GIB / 1024)
