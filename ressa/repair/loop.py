"""The repair loop: DeepSpeed trains the adapters of a pruned model, one global batch a step."""

import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TypeAlias

import torch
from torch import Tensor, distributed

from ressa.errors import RepairError
from ressa.memory import (
    ADVICE,
    forget_peak,
    free_cache,
    halved,
    is_out_of_memory,
    largest_that_fits,
    peak_gib,
)
from ressa.models.vlm import NO_LABEL, VLM, Batch
from ressa.records import Example
from ressa.repair.adapted import Adapters
from ressa.repair.batches import global_batches, pieces, share
from ressa.repair.checkpoint import Checkpoint, Checkpoints, recipe_hash
from ressa.repair.curve import RepairStep, check_divergence, learning_rate
from ressa.repair.distillation import AnyTeacher, FeatureTeacher, Pictures, trimmed
from ressa.repair.engine import Engine, Moment, Student, accumulation, recomputed
from ressa.spec import Repair
from ressa.workers import device, ensure_process_group, rank_and_world_size

log = logging.getLogger(__name__)

MicroBatch: TypeAlias = tuple[Batch, Tensor | None]
"""Questions, and what the teacher says of them if there is a teacher."""


def train(
    vlm: VLM,
    adapters: Adapters,
    examples: Sequence[Example],
    task: Pictures,
    teacher: AnyTeacher | None,
    repair: Repair,
    *,
    seed: int,
    checkpoints: Checkpoints | None = None,
    at_step: Callable[[RepairStep], None] | None = None,
    keep: Callable[[Callable[[], Batch]], Batch] | None = None,
) -> Iterator[RepairStep]:
    """Trains the adapters for `repair.steps` steps and yields each one when it is done.

    Every worker of the trial calls this with the same arguments and is told the same steps. What
    is learnt depends neither on padding nor on how a batch is shared out between workers.

    Args:
        teacher: the dense model's logits for these examples, on blank pictures with objective
            "text", its vision tower with "features"; may be None where distillation has no weight.
        seed: of the data order.
        checkpoints: where to leave one every `repair.checkpoint_steps` steps and after the last,
            and whence to go on; the steps before it are yielded as they were. None keeps none.
        at_step: is called after each step that is taken, before its checkpoint; may look at the
            model as it is then, on every worker.
        keep: returns the questions as tensors, by the function that it is given or from an earlier
            repair of the same steps over the same examples.

    Raises:
        RepairError: the loss or its gradient is not finite or has run away (failure "numeric"),
            not even one question at a time fits in memory ("oom"), float16 without a GPU, or a
            batch has too few images for the workers.
    """
    answers = repair.objective != "features"
    needed = repair.distillation.weight or not answers
    assert teacher is not None or not needed, "no teacher to learn from"
    assert isinstance(teacher, FeatureTeacher) != answers or teacher is None, "of another objective"
    if repair.dtype == "float16" and not torch.cuda.is_available():
        raise RepairError("repair.dtype float16 needs a GPU: DeepSpeed has none of it for CPUs")
    ensure_process_group()
    vlm.model.to(device())  # type: ignore[arg-type]  # DeepSpeed computes there
    # No dropout: it is the pruned model that is repaired, not a thinner one.
    vlm.model.train(False)
    adapters.train()  # but the dropout that a method has is meant
    data = _Data(vlm, examples, task, teacher, repair, seed, keep)
    recipe = recipe_hash(repair, vlm.name, examples, seed)
    last = None if checkpoints is None else checkpoints.newest(recipe)
    curve = [] if last is None else list(last.curve)
    yield from curve
    with recomputed(vlm, wanted=repair.gradient_checkpointing):
        sizes = [size for size in (last and last.micro_batch, repair.micro_batch) if size]
        # The smaller one: memory may have run out before the checkpoint, or after it.
        size = min(sizes) if sizes else _what_fits(vlm, adapters, data)
        engine = _open(vlm, adapters, repair, size, None if last is None else last.moment)
        if checkpoints is not None:
            checkpoints.note_config(engine.config)
        try:
            for step in range(len(curve), repair.steps):
                started = time.perf_counter()
                rate = learning_rate(repair, step)
                forget_peak()
                while True:
                    engine.set_learning_rate(rate)
                    # What is random in a step follows from it, so that it is the same when it is
                    # done again.
                    torch.manual_seed(_step_seed(repair.seed, step))
                    result = _take_step(engine, data, step, size)
                    if result is not None:
                        break
                    size = _smaller(size, step, repair)
                    data.check(size)
                    free_cache()
                    # Weights move at the end of a step: this one has moved nothing yet.
                    moment = engine.moment()
                    engine.give_back()
                    engine.close()
                    engine = _open(vlm, adapters, repair, size, moment)
                (loss, ce, kl), norm = result
                curve.append(
                    RepairStep(
                        step=step + 1,
                        loss=loss,
                        ce=ce if answers else None,
                        kl=kl if answers and teacher is not None else None,
                        learning_rate=rate,
                        gradient_norm=norm,
                        examples_per_second=repair.batch_size / (time.perf_counter() - started),
                        peak_memory_gib=_over_workers(
                            torch.tensor(peak_gib(), device=vlm.model.device), "MAX"
                        ).item(),
                        micro_batch=size,
                    )
                )
                check_divergence(curve, repair)
                if at_step is not None:
                    at_step(curve[-1])
                if checkpoints is not None and _is_due(repair, step + 1):
                    moment = engine.moment()
                    checkpoints.save(
                        Checkpoint(curve=tuple(curve), micro_batch=size, moment=moment), recipe
                    )
                yield curve[-1]
            engine.give_back()
        finally:
            engine.close()
            adapters.train(False)


def _is_due(repair: Repair, done: int) -> bool:
    """Whether to leave a checkpoint after so many steps: a last one spares a long repair's scoring.

    A repair shorter than `checkpoint_steps` leaves none.
    """
    every = repair.checkpoint_steps
    return done % every == 0 or (done == repair.steps and done > every)


def _open(
    vlm: VLM, adapters: Adapters, repair: Repair, micro_batch: int, moment: Moment | None
) -> Engine:
    engine = Engine(vlm, adapters, repair, micro_batch)
    if moment is not None:
        engine.restore(moment)
    return engine


def _step_seed(seed: int, step: int) -> int:
    """A seed for each step and worker."""
    text = f"repair step {seed} {step} {rank_and_world_size()[0]}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def _smaller(size: int, step: int, repair: Repair) -> int:
    if size == 1:
        raise RepairError(
            f"out of memory at step {step + 1} of {repair.steps} with one question at a time. "
            f"{ADVICE}",
            "oom",
        )
    log.warning(
        "out of memory at step %d with a micro-batch of %d; going on with %d and the same batch",
        step + 1,
        size,
        halved(size),
    )
    return halved(size)


class _Data:
    """The global batches of a repair, and this worker's part of each."""

    def __init__(
        self,
        vlm: VLM,
        examples: Sequence[Example],
        task: Pictures,
        teacher: AnyTeacher | None,
        repair: Repair,
        seed: int,
        keep: Callable[[Callable[[], Batch]], Batch] | None = None,
    ) -> None:
        self._examples, self._teacher, self._repair = examples, teacher, repair
        self.rank, self.world_size = rank_and_world_size()
        self._batches = list(
            islice(global_batches(examples, repair.batch_size, seed), repair.steps)
        )
        self.check(repair.micro_batch)
        used = sorted(
            {index for batch in self._batches for index in share(batch, self.rank, self.world_size)}
        )
        self._row = {index: number for number, index in enumerate(used)}

        def encode() -> Batch:
            return vlm.encode(
                [examples[index] for index in used],
                task.image,
                answers=True,
                blank=task.blank_image() if repair.objective == "text" else None,
            )

        # Reading, resizing and tokenising once is far cheaper than in every step.
        self._encoded = encode() if keep is None else keep(encode)

    @property
    def device(self) -> torch.device:
        """Where the questions are."""
        return self._encoded.image_index.device

    @property
    def share(self) -> int:
        """Questions of a worker and step."""
        return math.ceil(self._repair.batch_size / self.world_size)

    def check(self, micro_batch: int | None) -> None:
        """Refuses a size at which some worker would have an empty micro-batch."""
        how_many = accumulation(self._repair, self.world_size, micro_batch)
        ranks = range(self.world_size)
        if any(len(share(b, r, self.world_size)) < how_many for b in self._batches for r in ranks):
            raise RepairError(
                f"a batch of {self._repair.batch_size} questions has only "
                f"{min(map(len, self._batches))} images, too few for {self.world_size} workers "
                f"with {how_many} micro-batches each; raise batch_size or micro_batch"
            )

    def micro_batches(self, step: int, size: int) -> list[MicroBatch]:
        """This worker's micro-batches of a step, counted from 0."""
        how_many = accumulation(self._repair, self.world_size, size)
        own = share(self._batches[step], self.rank, self.world_size)
        return [self._micro_batch(piece) for piece in pieces(own, how_many)]

    def _micro_batch(self, piece: list[int]) -> MicroBatch:
        batch = self._encoded.select([self._row[index] for index in piece])
        if self._repair.distillation.reduction == "reference":
            batch = trimmed(batch)
        asked = [self._examples[index] for index in piece]
        return batch, None if self._teacher is None else self._teacher.of(asked, batch)


def _what_fits(vlm: VLM, adapters: Adapters, data: _Data) -> int:
    """Finds the largest micro-batch whose gradient fits on a GPU; on a CPU it is not tried.

    Where main memory runs out, the system ends the process instead of refusing.
    """
    if not torch.cuda.is_available():
        return data.share
    return probe_micro_batch(vlm, adapters, data)


def probe_micro_batch(vlm: VLM, adapters: Adapters, data: _Data) -> int:
    """Computes gradients of ever smaller micro-batches until they fit, on every worker alike."""
    student = Student(vlm, None, data._repair)

    def fits(size: int) -> bool:
        largest = max(data.micro_batches(0, size), key=lambda micro_batch: len(micro_batch[0]))
        is_full = False
        try:
            loss, _ = student(*largest, 1)
            torch.autograd.grad(loss, list(adapters.parameters()), allow_unused=True)
        except Exception as error:
            is_full = _answer(error, recoverable=True)
        return not _anywhere(is_full, vlm.model.device)

    return largest_that_fits(data.share, fits)


def _take_step(
    engine: Engine, data: _Data, step: int, size: int
) -> tuple[list[float], float | None] | None:
    """Takes one step.

    Returns:
        The global batch's (loss, ce, kl) and its gradient's norm; None, with no weight moved, if a
        worker ran out of memory where the others could be told.

    Raises:
        RepairError: out of memory in a backward pass of several workers, or at ZeRO 3: the others
            are in the midst of an exchange then, which nothing can call them back from.
    """
    full = False
    micro_batches: list[MicroBatch] = []
    try:
        micro_batches = data.micro_batches(step, size)
    except Exception as error:
        full = _answer(error, recoverable=True)
    answers = sum(
        int((b.labels != NO_LABEL).sum()) for b, _ in micro_batches if b.labels is not None
    )
    told = torch.tensor([answers, full], dtype=torch.float64, device=data.device)
    tokens, full_workers = _over_workers(told).tolist()
    if full_workers:
        return None
    alone = distributed.get_world_size() == 1
    parts: list[Tensor] = []
    norm = None
    for batch, dense in micro_batches:
        loss = None
        try:
            loss, reported = engine.forward(batch, dense, tokens)
            parts.append(reported)
        except Exception as error:
            full = _answer(error, recoverable=alone or engine.stage < 3)
        if full if alone or engine.stage == 3 else _anywhere(full, batch.image_index.device):
            return None
        assert loss is not None
        try:
            engine.backward(loss)
        except Exception as error:
            full = _answer(error, recoverable=alone)
        if full:
            return None
        norm = engine.step()  # what breaks off here may have moved weights: it is not done again
    sums = _over_workers(torch.stack(parts).sum(dim=0))
    return sums.tolist(), norm


def _answer(error: Exception, *, recoverable: bool) -> bool:
    """True for a lack of memory that can be answered; anything else is raised on."""
    if not is_out_of_memory(error):
        raise error
    if not recoverable:
        raise RepairError(
            f"out of memory in the midst of an exchange between workers ({error}). Set "
            "repair.micro_batch to half of what it was",
            "oom",
        ) from error
    return True


def _anywhere(here: bool, device: torch.device) -> bool:
    """Whether something is so on any worker."""
    return bool(_over_workers(torch.tensor(float(here), device=device), "MAX").item())


def _over_workers(value: Tensor, how: str = "SUM") -> Tensor:
    """Sums a small tensor over the workers, or takes the largest."""
    if distributed.get_world_size() > 1:
        distributed.all_reduce(value, getattr(distributed.ReduceOp, how))
    return value
