"""The repair loop: DeepSpeed trains the adapters of a pruned model, one global batch a step."""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, distributed

from ressa.errors import RepairError
from ressa.memory import forget_peak, free_cache, peak_gib
from ressa.models.vlm import VLM, Batch, Pictures
from ressa.records import Example
from ressa.repair.adapted import Adapters
from ressa.repair.batches import RepairData
from ressa.repair.checkpoint import Checkpoint, Checkpoints, recipe_hash
from ressa.repair.curve import RepairStep, check_divergence, learning_rate
from ressa.repair.distillation import AnyTeacher, FeatureTeacher
from ressa.repair.engine import Engine, Moment, recomputed
from ressa.repair.fitting import answered, smaller, what_fits
from ressa.spec import Repair
from ressa.workers import (
    anywhere,
    device,
    ensure_process_group,
    over_workers,
    rank_and_world_size,
)


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
            not even one question at a time fits in memory ("oom"), or float16 without a GPU.
    """
    needed = repair.distillation.weight or repair.objective == "features"
    assert teacher is not None or not needed, "no teacher to learn from"
    assert teacher is None or isinstance(teacher, FeatureTeacher) == (
        repair.objective == "features"
    ), "a teacher of another objective"
    if repair.dtype == "float16" and not torch.cuda.is_available():
        raise RepairError("repair.dtype float16 needs a GPU: DeepSpeed has none of it for CPUs")
    ensure_process_group()
    vlm.model.to(device())  # type: ignore[arg-type]  # DeepSpeed computes there
    # No dropout: it is the pruned model that is repaired, not a thinner one.
    vlm.model.train(False)
    adapters.train()  # but the dropout that a method has is meant
    data = RepairData(vlm, examples, task, teacher, repair, seed, keep)
    recipe = recipe_hash(repair, vlm.name, examples, seed)
    last = None if checkpoints is None else checkpoints.newest(recipe)
    curve = [] if last is None else list(last.curve)
    yield from curve
    with recomputed(vlm, wanted=repair.gradient_checkpointing):
        sizes = [size for size in (last and last.micro_batch, repair.micro_batch) if size]
        # The smaller one: memory may have run out before the checkpoint, or after it.
        size = min(sizes) if sizes else what_fits(vlm, adapters, data)
        trainer = _Trainer(vlm, adapters, data, size, None if last is None else last.moment)
        if checkpoints is not None:
            checkpoints.note_config(trainer.engine.config)
        try:
            for step in range(len(curve), repair.steps):
                curve.append(trainer.take(step))
                check_divergence(curve, repair)
                if at_step is not None:
                    at_step(curve[-1])
                if checkpoints is not None and _is_due(repair, step + 1):
                    moment = trainer.engine.moment()
                    checkpoints.save(
                        Checkpoint(curve=tuple(curve), micro_batch=trainer.size, moment=moment),
                        recipe,
                    )
                yield curve[-1]
            trainer.engine.give_back()
        finally:
            trainer.engine.close()
            adapters.train(False)


def _is_due(repair: Repair, done: int) -> bool:
    """Whether to leave a checkpoint after so many steps: a last one spares a long repair's scoring.

    A repair shorter than `checkpoint_steps` leaves none.
    """
    every = repair.checkpoint_steps
    return done % every == 0 or (done == repair.steps and done > every)


class _Trainer:
    """Takes steps by an engine, with a smaller micro-batch from where memory has run out."""

    def __init__(
        self, vlm: VLM, adapters: Adapters, data: RepairData, size: int, moment: Moment | None
    ) -> None:
        self._vlm, self._adapters, self._data = vlm, adapters, data
        self.size = size
        """Questions of a worker's micro-batch."""
        self._open(moment)

    def take(self, step: int) -> RepairStep:
        """Takes a step, counted from 0, of the global batch that is its own."""
        repair, began = self._data.repair, time.perf_counter()
        rate = learning_rate(repair, step)
        forget_peak()
        while True:
            self.engine.set_learning_rate(rate)
            # What is random in a step follows from it, so that it is the same when done again.
            torch.manual_seed(_step_seed(repair.seed, step))
            result = _take_step(self.engine, self._data, step, self.size)
            if result is not None:
                break
            self._shrink(step)
        (loss, ce, kl), norm = result
        answers = repair.objective != "features"
        peak = torch.tensor(peak_gib(), device=self._vlm.model.device)
        return RepairStep(
            step=step + 1,
            loss=loss,
            ce=ce if answers else None,
            kl=kl if answers and self._data.is_taught else None,
            learning_rate=rate,
            gradient_norm=norm,
            examples_per_second=repair.batch_size / (time.perf_counter() - began),
            peak_memory_gib=over_workers(peak, "MAX").item(),
            micro_batch=self.size,
        )

    def _shrink(self, step: int) -> None:
        """Goes on with half the micro-batch; weights move at the end of a step, so none has."""
        self.size = smaller(self.size, step, self._data.repair)
        free_cache()
        moment = self.engine.moment()
        self.engine.give_back()
        self.engine.close()
        self._open(moment)

    def _open(self, moment: Moment | None) -> None:
        try:
            self.engine = Engine(self._vlm, self._adapters, self._data.repair, self.size)
        except Exception as error:
            answered(error, recoverable=False)
        if moment is not None:
            self.engine.restore(moment)


def _step_seed(seed: int, step: int) -> int:
    """A seed for each step and worker."""
    text = f"repair step {seed} {step} {rank_and_world_size()[0]}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def _take_step(
    engine: Engine, data: RepairData, step: int, size: int
) -> tuple[list[float], float | None] | None:
    """Takes one step.

    Returns:
        The global batch's (loss, ce, kl) and its gradient's norm; None, with no weight moved, if a
        worker ran out of memory where the others could be told.

    Raises:
        RepairError: out of memory in an update, in a backward pass of several workers, or at ZeRO
            3: the others are in the midst of an exchange then, which nothing can call them back
            from.
    """
    answers = torch.tensor(float(data.answer_tokens(step)), dtype=torch.float64, device=data.device)
    tokens = over_workers(answers).item()
    alone = distributed.get_world_size() == 1
    parts: list[Tensor] = []
    norm = None
    for piece in data.pieces(step, size):
        loss, full = None, False
        try:
            # One at a time: what a teacher says of it may be larger than all else of a step.
            loss, reported = engine.forward(*data.micro_batch(piece), tokens)
            parts.append(reported)
        except Exception as error:
            full = answered(error, recoverable=alone or engine.stage < 3)
        if full if alone or engine.stage == 3 else anywhere(full, data.device):
            return None
        assert loss is not None
        try:
            engine.backward(loss)
        except Exception as error:
            full = answered(error, recoverable=alone)
        if full:
            return None
        try:
            norm = engine.step()  # of the first one the optimiser takes its room
        except Exception as error:
            answered(error, recoverable=False)  # some weights may have moved: no second time
    sums = over_workers(torch.stack(parts).sum(dim=0))
    return sums.tolist(), norm
