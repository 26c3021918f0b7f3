"""How many questions a worker holds at once: found before a repair, and less when memory ran out.

On a GPU torch refuses what does not fit; of main memory some is refused, and else the system ends
the process, which is then the sweep's to try again.
"""

import logging
from collections.abc import Callable

import torch

from ressa.errors import RepairError
from ressa.memory import free_cache, halved, is_out_of_memory
from ressa.models.vlm import VLM
from ressa.repair.adapted import Adapters
from ressa.repair.batches import RepairData
from ressa.repair.engine import Student
from ressa.spec import Repair
from ressa.workers import anywhere

log = logging.getLogger(__name__)

_ADVICE = "repair.gradient_checkpointing, a lower rank or a larger machine help"


def what_fits(vlm: VLM, adapters: Adapters, data: RepairData) -> int:
    """Finds the largest micro-batch whose gradient fits on a GPU; on a CPU it is not tried.

    Where main memory runs out, the system ends the process instead of refusing.
    """
    if not torch.cuda.is_available():
        return data.share
    return probe_micro_batch(vlm, adapters, data)


def probe_micro_batch(vlm: VLM, adapters: Adapters, data: RepairData) -> int:
    """Computes gradients of ever smaller micro-batches until they fit, on every worker alike."""
    student = Student(vlm, None, data.repair)

    def fits(size: int) -> bool:
        largest = max(data.pieces(0, size), key=len)
        is_full = False
        try:
            loss, _ = student(*data.micro_batch(largest), 1)
            torch.autograd.grad(loss, list(adapters.parameters()), allow_unused=True)
        except Exception as error:
            is_full = answered(error, recoverable=True)
        return not anywhere(is_full, vlm.model.device)

    return largest_that_fits(data.share, fits)


def largest_that_fits(size: int, fits: Callable[[int], bool]) -> int:
    """Halves a micro-batch until it fits.

    Downwards, so that what fits as a whole is found at once; a failed attempt costs little.

    Raises:
        RepairError: one question alone does not fit; failure "oom".
    """
    while not fits(size):
        free_cache()
        if size == 1:
            raise RepairError(f"out of memory with one question at a time. {_ADVICE}", "oom")
        log.warning("a micro-batch of %d does not fit; trying %d", size, halved(size))
        size = halved(size)
    return size


def smaller(size: int, step: int, repair: Repair) -> int:
    """Halves the micro-batch of a step, counted from 0, that ran out of memory.

    Raises:
        RepairError: it was of one question already; failure "oom".
    """
    if size == 1:
        raise RepairError(
            f"out of memory at step {step + 1} of {repair.steps} with one question at a time. "
            f"{_ADVICE}",
            "oom",
        )
    log.warning(
        "out of memory at step %d with a micro-batch of %d; going on with %d and the same batch",
        step + 1,
        size,
        halved(size),
    )
    return halved(size)


def answered(error: Exception, *, recoverable: bool) -> bool:
    """Returns True for a lack of memory that can be answered; anything else is raised on."""
    if not is_out_of_memory(error):
        raise error
    if not recoverable:
        raise RepairError(
            f"out of memory where a repair cannot go on ({error}). Set repair.micro_batch to half "
            "of what it was",
            "oom",
        ) from error
    return True
