"""The repair loop: DeepSpeed trains the adapters of a pruned model, one global batch a step."""

import logging
import math
import os
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any, TypeAlias

import torch
from torch import Tensor, distributed, nn
from torch.nn.utils import get_total_norm

from ressa.errors import RepairError
from ressa.models.vlm import NO_LABEL, VLM, Batch
from ressa.records import Example
from ressa.repair.adapted import Adapters
from ressa.repair.batches import global_batches, pieces, select, share
from ressa.repair.distillation import LiveTeacher, Pictures, Teacher, loss_parts, trimmed
from ressa.spec import Repair
from ressa.workers import ensure_process_group, rank_and_world_size

MicroBatch: TypeAlias = tuple[Batch, Tensor | None]
"""Questions, and the teacher's logits for them if there is a teacher."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairStep:
    """One point of a repair's curve; losses are means over the global batch's answer tokens."""

    step: int
    """Counted from 1."""
    loss: float
    ce: float
    """Cross-entropy with the answers, in nats per token."""
    kl: float | None
    """T² times the divergence from the teacher, in nats per token; None without a teacher."""
    learning_rate: float
    gradient_norm: float
    """L2 norm over all adapters, before clipping."""
    examples_per_second: float


def train(
    vlm: VLM,
    adapters: Adapters,
    examples: Sequence[Example],
    task: Pictures,
    teacher: Teacher | LiveTeacher | None,
    repair: Repair,
    *,
    seed: int,
) -> Iterator[RepairStep]:
    """Trains the adapters for `repair.steps` steps and yields each one when it is done.

    Every worker of the trial calls this with the same arguments and is told the same steps. What
    is learnt depends neither on padding nor on how a batch is shared out between workers.

    Args:
        teacher: the dense model's logits for these examples; may be None where distillation has no
            weight.
        seed: of the data order.

    Raises:
        RepairError: the loss or its gradient is not finite (failure "numeric"), or a batch has too
            few images for the workers.
    """
    assert teacher is not None or not repair.distillation.weight, "no teacher to learn from"
    ensure_process_group()
    # No dropout: it is the pruned model that is repaired, not a thinner one.
    vlm.model.train(False)
    adapters.train()  # but the dropout that a method has is meant
    micro_batches = _micro_batches(vlm, examples, task, teacher, repair, seed)
    engine, optimizer = _initialize(_Student(vlm, adapters, repair), repair)
    try:
        for step in range(repair.steps):
            started = time.perf_counter()
            if repair.dropout:  # what it drops follows from the step, whatever ran before
                torch.manual_seed(_dropout_seed(seed, step))
            rate = learning_rate(repair, step)
            optimizer.param_groups[0]["lr"] = rate
            (loss, ce, kl), norm = _take_step(engine, next(micro_batches))
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise RepairError(
                    f"diverged at step {step + 1} of {repair.steps}: loss {loss:.4g}, gradient "
                    f"norm {norm:.4g} at learning rate {rate:.4g}. Lower the learning rate or clip",
                    "numeric",
                )
            yield RepairStep(
                step=step + 1,
                loss=loss,
                ce=ce,
                kl=None if teacher is None else kl,
                learning_rate=rate,
                gradient_norm=norm,
                examples_per_second=repair.batch_size / (time.perf_counter() - started),
            )
    finally:
        adapters.train(False)
        engine.destroy()


def _dropout_seed(seed: int, step: int) -> int:
    return (seed * 1_000_003 + step) * 1_000_003 + rank_and_world_size()[0]


def learning_rate(repair: Repair, step: int) -> float:
    """The rate that step `step`, counted from 0, is taken with.

    It rises linearly and reaches the full rate with step `warmup_steps`; then it stays (constant)
    or falls along half a cosine that would reach zero one step after the last (cosine).
    """
    if step < repair.warmup_steps:
        return repair.learning_rate * (step + 1) / (repair.warmup_steps + 1)
    if repair.schedule == "constant":
        return repair.learning_rate
    done = (step - repair.warmup_steps) / (repair.steps - repair.warmup_steps)
    return repair.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def deepspeed_config(repair: Repair, world_size: int) -> dict[str, Any]:
    """Derives DeepSpeed's configuration; nobody writes it by hand."""
    questions = math.ceil(repair.batch_size / world_size)  # per worker and step
    return {
        "train_micro_batch_size_per_gpu": math.ceil(questions / _accumulation(repair, world_size)),
        "gradient_accumulation_steps": _accumulation(repair, world_size),
        # Each worker's loss is already divided by the global number of tokens.
        "gradient_allreduce_op": "sum",
        "gradient_clipping": float(repair.clip),  # DeepSpeed's own default is 1, not none
        "zero_optimization": {"stage": repair.zero_stage},
        # torch's AdamW instead of DeepSpeed's own, which would be compiled for minutes.
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": False},
        "fp16": {"enabled": False},
        "steps_per_print": None,
        "wall_clock_breakdown": False,
    }


class _Student(nn.Module):
    """What DeepSpeed sees: the loss of a micro-batch, and the adapters alone.

    The frozen weights stay out of its sight, so it neither broadcasts nor moves them.
    """

    def __init__(self, vlm: VLM, adapters: Adapters, repair: Repair) -> None:
        super().__init__()
        self.adapters = nn.ParameterList(adapters.parameters())
        self._vlm, self._repair = vlm, repair

    def forward(self, batch: Batch, teacher: Tensor | None, tokens: float) -> tuple[Tensor, Tensor]:
        """Returns this micro-batch's part of the global loss, and of (loss, ce, kl) to report."""
        plan, questions = self._repair.distillation, self._repair.batch_size
        ce, kl = loss_parts(self._vlm, batch, teacher, plan, tokens=tokens, questions=questions)
        if kl is None:
            return ce, torch.stack([ce, ce, ce.new_zeros(())]).detach()
        loss = torch.lerp(ce, kl, plan.weight)
        return loss, torch.stack([loss, ce, kl]).detach()


def _accumulation(repair: Repair, world_size: int) -> int:
    """Micro-batches per worker and step."""
    questions = math.ceil(repair.batch_size / world_size)
    return math.ceil(questions / (repair.micro_batch or questions))


def _micro_batches(
    vlm: VLM,
    examples: Sequence[Example],
    task: Pictures,
    teacher: Teacher | LiveTeacher | None,
    repair: Repair,
    seed: int,
) -> Iterator[list[MicroBatch]]:
    """This worker's micro-batches, step by step."""
    rank, world_size = rank_and_world_size()
    how_many = _accumulation(repair, world_size)
    batches = list(islice(global_batches(examples, repair.batch_size, seed), repair.steps))
    if any(len(share(b, r, world_size)) < how_many for b in batches for r in range(world_size)):
        raise RepairError(
            f"a batch of {repair.batch_size} questions has only {min(map(len, batches))} images, "
            f"too few for {world_size} workers with {how_many} micro-batches each; "
            "raise batch_size or micro_batch"
        )
    plan = [pieces(share(batch, rank, world_size), how_many) for batch in batches]
    used = sorted({index for step in plan for piece in step for index in piece})
    row = {index: number for number, index in enumerate(used)}
    # Reading, resizing and tokenising once is far cheaper than in every step.
    encoded = vlm.encode([examples[index] for index in used], task.image, answers=True)

    def micro_batch(piece: list[int]) -> MicroBatch:
        batch = select(encoded, [row[index] for index in piece])
        if repair.distillation.reduction == "reference":
            batch = trimmed(batch)
        asked = [examples[index] for index in piece]
        return batch, None if teacher is None else teacher.of(asked, batch)

    return ([micro_batch(piece) for piece in step] for step in plan)


def _take_step(engine: Any, micro_batches: list[MicroBatch]) -> tuple[list[float], float]:
    """Takes one step; returns the global batch's (loss, ce, kl) and its gradient's norm."""
    answers = [
        (batch.labels != NO_LABEL).sum() for batch, _ in micro_batches if batch.labels is not None
    ]
    tokens = _over_workers(torch.stack(answers).sum().double()).item()
    parts = []
    norm = None
    for batch, dense in micro_batches:
        loss, reported = engine(batch, dense, tokens)
        parts.append(reported)
        with _quiet():
            # DeepSpeed takes a mean over micro-batches; these are already shares of a mean.
            engine.backward(loss * len(micro_batches))
            if engine.zero_optimization_stage() == 0:  # ZeRO measures it by itself
                norm = _gradient_norm(engine)
            engine.step()  # moves the weights after the last micro-batch only
    sums = _over_workers(torch.stack(parts).sum(dim=0))
    return sums.tolist(), float(engine.get_global_grad_norm() if norm is None else norm)


def _gradient_norm(engine: Any) -> Tensor:
    return get_total_norm([p.grad for p in engine.module.parameters() if p.grad is not None])


def _over_workers(value: Tensor) -> Tensor:
    """Sums a small tensor over the workers."""
    if distributed.get_world_size() > 1:
        distributed.all_reduce(value)
    return value


def _initialize(student: _Student, repair: Repair) -> tuple[Any, torch.optim.Optimizer]:
    """Makes the DeepSpeed engine, and the optimiser whose learning rate the engine obeys."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=repair.learning_rate, weight_decay=0.0)
    with _quiet():
        engine, *_ = _deepspeed().initialize(
            model=student,
            optimizer=optimizer,
            config=deepspeed_config(repair, distributed.get_world_size()),
            dist_init_required=False,
        )
    return engine, optimizer


@contextmanager
def _quiet() -> Iterator[None]:
    """Mutes warnings about DeepSpeed's own use of torch, which users can do nothing about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@cache
def _deepspeed() -> Any:
    """Imports DeepSpeed so that it neither compiles, nor looks for other hosts, nor prints."""
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
    # Its own folder for compiled extensions: a process killed while compiling leaves a lock there
    # that all later ones would wait for.
    extensions = f"ressa-torch-extensions-{os.getpid()}"
    os.environ["TORCH_EXTENSIONS_DIR"] = os.path.join(tempfile.gettempdir(), extensions)
    import deepspeed

    # It would compile a shared-memory all-reduce for minutes; gloo does the same work.
    deepspeed.ops.__compatible_ops__ = {}
    # Its handler writes to stdout, which belongs to results.
    deepspeed.utils.logger.handlers.clear()
    deepspeed.utils.logger.propagate = True
    deepspeed.utils.logger.setLevel(logging.WARNING)
    return deepspeed
