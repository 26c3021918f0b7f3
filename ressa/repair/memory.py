"""How much memory repair takes: what fits, what it took, and whether an error says it ran out."""

import logging
import resource
import sys
from collections.abc import Callable

import torch

log = logging.getLogger(__name__)

_GIB = 2**30


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the CPU.

    torch has a class of errors for GPUs alone; its CPU allocator and oneDNN say it in words.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = ("out of memory", "can't allocate memory", "could not create a memory object")
    return isinstance(error, RuntimeError) and any(text in str(error) for text in words)


def free_cache() -> None:
    """Hands memory that torch keeps for later back to the GPU."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def largest_that_fits(size: int, attempt: Callable[[int], object], least: int = 1) -> int:
    """Halves a micro-batch until `attempt` of it does not run out of memory.

    Downwards, so that what fits as a whole is found at once; a failed attempt costs little.

    Raises:
        Exception: what `attempt` raised at the least size, or for any other reason.
    """
    while True:
        try:
            attempt(size)
        except Exception as error:
            if not is_out_of_memory(error) or size <= least:
                raise
        else:
            return size
        # Outside of `except`: the error holds on to what the attempt had made.
        free_cache()
        log.warning("a micro-batch of %d does not fit; trying %d", size, halved(size))
        size = halved(size)


def halved(size: int) -> int:
    """Half a micro-batch, rounded up."""
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
