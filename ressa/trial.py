"""One trial, top to bottom: the paper's story (RESSA, arXiv:2404.02424). The page to read first.

Calibrate the dense model, prune vision and language to their sparsities, score what is left,
repair it with SparseLoRA and distillation, merge, prove the zeros, score again.

`run` is a generator that every worker of the trial follows in step. It yields where it is, so that
progress, stopping and time-outs have their place, and returns what it found.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ressa.data import examples_of
from ressa.errors import RepairError, StoreError, TrialError
from ressa.evaluate import Answer, Own, Scores, aggregates, measure_of
from ressa.kept import Kept
from ressa.keys import FRESH_OUTCOME, contents_of, dense_key, teacher_key
from ressa.memory import in_batches
from ressa.models import VLM, Batch
from ressa.prune import count_zeros, mask_hash
from ressa.pruning import Pruning
from ressa.records import Example, Outcome, Progress, TrialSpec, content_key
from ressa.repair import (
    Adapters,
    AnyTeacher,
    Checkpoints,
    FeatureTeacher,
    LiveTeacher,
    RepairStep,
    StoredTeacher,
    attach,
    merge,
    remove_checkpoints,
    teacher_parts,
    train,
    trained_layers,
)
from ressa.sparsity import TOWERS, Target, packed_bytes
from ressa.spec import Calibration, DataRef, Repair
from ressa.stages import Claims, Shared, Stages
from ressa.store import open_store
from ressa.workers import device, fits, machine, rank_and_world_size, total

log = logging.getLogger(__name__)

ADAPTERS = "adapters"
"""What a repair has trained, kept for an export unless it is whole weights."""
REPORT_EVERY = 5  # repair steps between two reports
PROBE = 64  # questions on which the merged model is compared with the adapters

Steps: TypeAlias = Generator[Progress, None, Outcome]


def run(
    trial: TrialSpec,
    store: str,
    *,
    earlier: Sequence[str] = (),
    claims: Claims | None = None,
    kept: Kept | None = None,
    fresh: bool = False,
) -> Steps:
    """Runs one trial and returns its outcome, which is then also a stage in the store.

    Args:
        trial: what to do.
        store: where stages are found and left.
        earlier: keys of the trial's earlier attempts that ran with another number of workers or
            micro-batch; a repair goes on from their checkpoints too.
        claims: how trials beside this one agree on who makes a stage; None if there are none.
        kept: what this process keeps from trial to trial; None keeps nothing.
        fresh: makes every stage anew, in a place of its own, and leaves only the outcome.
    """
    place = open_store(store)
    if fresh:
        with _place_of_its_own() as folder:
            own = Stages(open_store(folder))
            outcome = yield from _Trial(trial, own, Kept(), rungs=Stages(place)).steps()
        Stages(place).replace(FRESH_OUTCOME, trial.key, outcome.to_json())
        return outcome
    stages = Stages(place, claims)
    done = stages.find("outcome", trial.key)
    rungs = [_rung(stages, trial, step) for step in trial.rungs]
    if done is not None and None not in rungs:
        # Of one killed just before it could.
        remove_checkpoints(stages.store, trial.key, *earlier)
        outcome = Outcome.from_json(done)
        yield from filter(None, rungs)
        outcome.summary.update(stages_computed=[], stages_reused=[f"outcome/{trial.key}"])
        return outcome
    outcome = yield from _Trial(trial, stages, kept or Kept(), earlier).steps()
    stages.leave("outcome", trial.key, outcome.to_json())
    remove_checkpoints(stages.store, trial.key, *earlier)
    return outcome


@contextmanager
def _place_of_its_own() -> Iterator[str]:
    """Makes a folder for a trial that shares nothing, on this machine alone, as its troubles are.

    Raises:
        TrialError: "node": it cannot be written to.
    """
    with TemporaryDirectory(prefix="ressa-fresh-") as folder:
        try:
            yield folder
        except StoreError as error:
            if folder not in str(error):
                raise
            where = "--fresh works in this machine's TMPDIR."
            raise TrialError(f"{error} {where}", "node") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Remade:
    """A trial's model made again: pruned, what repair trained in place and not merged yet."""

    vlm: VLM
    adapters: Adapters
    pruning: Pruning
    repeats: bool
    """Whether the repair was run again, because the store no longer holds what it trained."""
    probe: Callable[[], Tensor]
    """Logits of a few questions, as `merge_gap` compares them."""
    scores: Callable[[], list[dict[str, Any]]]
    """Scores the model as it is by then."""


def remake(trial: TrialSpec, store: str, learnt: str | None) -> Generator[Progress, None, Remade]:
    """Makes a finished trial's model again: quickly where the store holds its masks and adapters.

    What it does not hold is computed as the trial did, and left there.

    Args:
        trial: what was done.
        store: where it was.
        learnt: the hash of what its repair trained, by its row.
    """
    work = _Trial(replace(trial, rungs=()), Stages(open_store(store)), Kept())
    adapters = yield from work.remake(learnt)
    return Remade(
        vlm=work.vlm,
        adapters=adapters,
        pruning=work.pruning,
        repeats=bool(work.outcome.curves),
        probe=work.probe,
        scores=work.final_scores,
    )


class _Trial:
    """The work on one trial, and the notes taken on the way."""

    def __init__(
        self,
        trial: TrialSpec,
        stages: Stages,
        kept: Kept,
        earlier: Sequence[str] = (),
        rungs: Stages | None = None,
    ) -> None:
        self.spec, self.stages, self.kept, self.earlier = trial, stages, kept, earlier
        self.rungs = rungs or stages  # where the driver reads
        self.vlm: VLM = kept.dense(trial)
        size = self.vlm.model.get_memory_footprint()
        if fits(size):
            self.vlm.model.to(device())  # type: ignore[arg-type]  # transformers wraps it untyped
        else:
            short = (
                f"the model's weights take {size / 2**30:.1f} GiB, and this GPU has too little "
                "room for them and the work on them. From the CPU it is pruned, a block at a time, "
            )
            advice = "take a GPU with more memory, or model.dtype bfloat16."
            if trial.repair is not None:
                raise RepairError(f"{short}and not repaired: {advice}")
            log.warning("%sand scored there, which is slow: %s", short, advice)
        if trial.repair is not None:  # what it cannot train is refused before all work
            trained_layers(self.vlm.model, self.vlm.towers, trial.repair)
        self.inventory = self.vlm.towers.inventory
        task, examples = self._data(trial.calibration)
        self.pruning = Pruning(trial, self.vlm, stages, examples, task.image)
        self._probed = PROBE
        self.seconds: dict[str, float] = {}
        self.outcome = Outcome(summary=machine())

    def steps(self) -> Steps:
        """The story: each line is a chapter, told below in the same order."""
        began, cpu_began = time.perf_counter(), time.process_time()
        yield Progress(stage="score dense")
        yield from self.score_dense()
        yield Progress(stage="calibrate")
        with self._clock("calibration"):
            yield from self.pruning.calibrate()
        yield Progress(stage="teacher")
        teacher = yield from self.dense_teacher()
        yield Progress(stage="prune")
        with self._clock("prune"):
            yield from self.pruning.prune()
        yield Progress(stage="score pruned")
        self.score_model("pruned")
        if 0 in self.spec.rungs:
            self.measure_rung(0)
            yield from filter(None, [_rung(self.rungs, self.spec, 0)])
        if self.spec.repair is not None:
            yield from self.repair(teacher)
            yield Progress(stage="score repaired")
            self.score_model("repaired")
        self.outcome.scores.extend(self._means(self.outcome.scores))
        self.prove_zeros()
        self.outcome.summary.update(
            {f"{stage}_seconds": seconds for stage, seconds in self.seconds.items()},
            stages_computed=self.stages.computed,
            stages_reused=self.stages.reused,
            total_seconds=time.perf_counter() - began,
            cpu_seconds=total(time.process_time() - cpu_began),
        )
        return self.outcome

    def score_dense(self) -> Shared[None]:
        """Sets the yardsticks beside every score: the dense model, blind answers, the majority."""

        def make() -> bytes:
            return json.dumps([row for ref in self.spec.evaluate for row in measure(ref)]).encode()

        def measure(ref: DataRef) -> list[dict[str, Any]]:
            rows = [row for blank in (False, True) for row in self._scores("dense", ref, blank)]
            task, examples = self._data(ref)
            if hasattr(task, "majority_answer"):
                given = [Answer(task.majority_answer(e.question)) for e in examples]
                scores, _ = measure_of(task).score(task, examples, given)
                rows += _score_rows(ref, "majority", "real", scores, len(examples))
            return rows

        with self._clock("evaluate"):
            scores = yield from self.stages.once("dense", dense_key(self.spec), make)
            self.outcome.scores.extend(json.loads(scores))

    def dense_teacher(self) -> Shared[AnyTeacher | None]:
        """Asks the dense model for its logits on the repair data, before anything is pruned."""
        plan = self.spec.repair
        if plan is not None and plan.objective == "features":
            return FeatureTeacher(self.vlm)
        if plan is None or not plan.distillation.weight:
            return None
        key = teacher_key(self.spec)
        if key is None:
            return LiveTeacher(self.vlm)
        blank = plan.objective == "text"

        def make() -> Iterator[bytes]:
            task, examples = self._data(plan.data)
            for part in teacher_parts(self.vlm, examples, task, blank=blank):
                yield part.to_bytes()

        with self._clock("teacher"):
            return StoredTeacher((yield from self.stages.once_in_parts("teacher", key, make)))

    def repair(self, teacher: AnyTeacher | None) -> Generator[Progress]:
        """Trains what is left of the weights as the spec asks, and merges it, zeros untouched."""
        plan = self.spec.repair
        assert plan is not None
        adapters = yield from self.trained(plan, teacher)
        trained = adapters.trainable_weights()
        yield Progress(stage="merge")
        if plan.method == "lora":  # the paper's baseline: its zeros hold only beside a dense update
            yield Progress(stage="score unmerged")
            self.score_model("repaired_unmerged")
        with self._clock("repair"):
            learnt = self.leave(adapters)
            before = self.probe()
            merge(adapters)
            gap = (self.probe() - before).abs().max().item()
        self.outcome.summary.update(
            {
                f"{part}_trainable_weights": trained.get(part, 0)
                for part in self.inventory.parameters
            },
            trainable_weights=sum(trained.values()),
            adapters_hash=learnt,
            merge_gap=gap,
            micro_batch=self.outcome.curves[-1]["micro_batch"],
        )

    def leave(self, adapters: Adapters) -> str:
        """Keeps what was trained for an export, unless it is whole weights; returns its hash."""
        digest = adapters.digest()
        if adapters.are_updates:
            # By its hash: two drivers that run the trial at once may train other bits on GPUs, and
            # the outcome that counts is of the first.
            self.stages.leave(ADAPTERS, self._adapters_key(digest), adapters.to_bytes())
        return digest

    def _adapters_key(self, digest: str | None) -> str:
        return f"{self.spec.key}-{digest}"

    def remake(self, digest: str | None) -> Generator[Progress, None, Adapters]:
        """Prunes and repairs without scoring; what the store holds is read, all else made again."""
        plan = self.spec.repair
        learnt = None if plan is None else self.stages.find(ADAPTERS, self._adapters_key(digest))
        teacher = None
        if plan is not None and learnt is None:
            yield Progress(stage="teacher")
            teacher = yield from self.dense_teacher()
        if not self.pruning.restore():
            yield Progress(stage="calibrate")
            yield from self.pruning.calibrate()
            yield Progress(stage="prune")
            yield from self.pruning.prune()
        if plan is None:
            return Adapters({})
        if learnt is None:
            adapters = yield from self.trained(plan, teacher)
            self.leave(adapters)
            remove_checkpoints(self.stages.store, self.spec.key)
        else:
            adapters = self._attached(plan)
            adapters.load(learnt)
        return adapters

    def final_scores(self) -> list[dict[str, Any]]:
        """Scores the model as it is now on real images, means over tasks included."""
        for ref in self.spec.evaluate:
            self.outcome.scores.extend(self._scores("final", ref, blank=False))
        return [*self.outcome.scores, *self._means(self.outcome.scores)]

    def _attached(self, plan: Repair) -> Adapters:
        masks, towers = self.pruning.masks, self.vlm.towers
        return attach(self.vlm.model, masks, towers, plan, seed=plan.seed)

    def trained(
        self, plan: Repair, teacher: AnyTeacher | None
    ) -> Generator[Progress, None, Adapters]:
        """Puts adapters on what is left of the weights and trains them; they are not merged."""
        task, examples = self._data(plan.data)
        with self._clock("repair"):
            adapters = self._attached(plan)
            checkpoints = Checkpoints(
                self.stages.store,
                self.spec.key,
                mask_hash=mask_hash(self.pruning.masks),
                earlier=self.earlier,
            )
            yield Progress(stage="repair", steps=plan.steps, micro_batch=plan.micro_batch)
            contents = content_key(contents_of(self.spec, plan.data))
            # All that decides which examples are seen.
            batches = (plan.order_seed, plan.batch_size, plan.steps)
            asked = ("repair", plan.data, contents, plan.objective, *batches)

            def keep(encode: Callable[[], Batch]) -> Batch:
                [whole] = self.kept.encoded(asked, lambda: [encode()])
                return whole

            for step in train(
                self.vlm,
                adapters,
                examples,
                task,
                teacher,
                plan,
                seed=plan.order_seed,
                checkpoints=checkpoints,
                at_step=partial(self._look, adapters),
                keep=keep,
            ):
                self.outcome.curves.append(asdict(step))
                if step.step in self.spec.rungs:
                    yield from filter(None, [_rung(self.rungs, self.spec, step.step)])
                if step.step % REPORT_EVERY == 0:
                    yield Progress(
                        stage="repair",
                        step=step.step,
                        steps=plan.steps,
                        micro_batch=step.micro_batch,
                    )
        return adapters

    def _look(self, adapters: Adapters, step: RepairStep) -> None:
        """Looks at a repair between two steps; before the checkpoint, so that none skips a rung."""
        if step.step in self.spec.rungs:
            adapters.train(False)
            self.measure_rung(step.step, step)
            adapters.train()

    def measure_rung(self, step: int, last: RepairStep | None = None) -> None:
        """Scores the model as it is on a few questions, and leaves that with all found so far."""
        rows = [row for row in self.outcome.scores if row["state"] == "dense"]
        with self._clock("evaluate"):
            for ref in self.spec.evaluate:
                _, whole = self._data(ref)
                few = min(self.spec.rung_samples, len(whole))
                _, scores, *_ = self._answered(ref, blank=False, few=few)
                rows += _score_rows(ref, "rung", "real", scores, few)
        stand = {
            f"{row['task']}.{row['metric']}": row["value"] for row in rows if row["state"] == "rung"
        }
        stand |= {r["metric"]: r["value"] for r in self._means(rows) if r["state"] == "rung"}
        zeros = {
            tower: sum(report.zeros for report in self.pruning.reports[tower]) for tower in TOWERS
        }
        so_far = replace(
            self.outcome,
            scores=[*self.outcome.scores, *self._means(self.outcome.scores)],
            summary=self.outcome.summary
            | {f"{tower}_zeros": count for tower, count in zeros.items()}
            | {"sparsity": sum(zeros.values()) / self.inventory.prunable()}
            | {"mask_hash": mask_hash(self.pruning.masks)},
            curves=[*self.outcome.curves, *([] if last is None else [asdict(last)])],
        )
        content = {"scores": stand, "outcome": asdict(so_far)}
        self.rungs.leave("rung", self.spec.rung_key(step), json.dumps(content).encode())

    def score_model(self, state: str) -> None:
        """Scores the model as it is now, on real and on blank images."""
        with self._clock("evaluate"):
            for ref in self.spec.evaluate:
                for blank in (False, True):
                    self.outcome.scores.extend(self._scores(state, ref, blank))

    def prove_zeros(self) -> None:
        """Counts, weight by weight, what was asked, what was pruned and what is zero at the end."""
        layers = self.inventory.layers
        counts = count_zeros(self.vlm.model, layers, self.pruning.masks)
        reports = [report for tower in TOWERS for report in self.pruning.reports[tower]]
        positions = self._positions()
        itemsize = getattr(torch, self.spec.model.dtype).itemsize
        packed, macs = dict.fromkeys(TOWERS, 0), dict.fromkeys(TOWERS, 0)
        for layer, count, report in zip(layers, counts, reports, strict=True):
            kept = count.weights - count.pruned
            pattern = None if report.pattern is None else Target.parse(report.pattern).pattern
            packed[layer.tower] += packed_bytes(layer, kept, pattern, itemsize)
            macs[layer.tower] += kept * positions[layer.name]
            self.outcome.layers.append(
                {
                    **asdict(report),
                    "requested_sparsity": report.requested_zeros / count.weights,
                    "sparsity": report.zeros / count.weights,
                    "zeros_after_merge": count.zeros,
                    "positions": positions[report.name],
                }
            )
        pruned = {t: sum(c.pruned for c in counts if c.tower == t) for t in TOWERS}
        nonzero = sum(count.violations for count in counts)
        whole_zeros = sum(int((p == 0).sum()) for p in self.vlm.model.parameters())
        whole = sum(p.numel() for p in self.vlm.model.parameters())
        self.outcome.summary.update(
            {f"{tower}_zeros": zeros for tower, zeros in pruned.items()},
            **{f"{tower}_packed_bytes": size for tower, size in packed.items()},
            **{f"{tower}_macs": count for tower, count in macs.items()},
            sparsity=sum(pruned.values()) / self.inventory.prunable(),
            whole_zeros=whole_zeros,
            whole_parameters=whole,
            whole_sparsity=whole_zeros / whole,
            zeros_after_merge_ok=nonzero == 0,
            pruned_nonzero=nonzero,
            mask_hash=mask_hash(self.pruning.masks),
        )

    def _data(self, use: Calibration | DataRef) -> tuple[Any, tuple[Example, ...]]:
        """Returns a task and the examples of it that a part of the spec names."""
        task, examples = examples_of(use.task, use, self.spec.task_data(use.task))
        return task, examples

    @torch.no_grad()
    def probe(self) -> Tensor:
        """Answers a few questions of the first evaluation: logits, to compare bit by bit."""
        task, examples = self._data(self.spec.evaluate[0])
        few = examples[:PROBE]

        def logits(size: int) -> Tensor:
            self._probed = size
            chunks = [few[first : first + size] for first in range(0, len(few), size)]
            batches = (self.vlm.encode(chunk, task.image, answers=True) for chunk in chunks)
            return torch.cat([self.vlm.answer_logits(batch)[0] for batch in batches])

        # As many at once as last time: other batches would differ by rounding.
        return in_batches(logits, self._probed)

    def _positions(self) -> dict[str, int]:
        """Counts the rows that each layer reads for the first question of the first evaluation."""
        task, examples = self._data(self.spec.evaluate[0])
        batch = self.vlm.encode(examples[:1], task.image, answers=True)
        return self.vlm.positions(batch, [layer.name for layer in self.inventory.layers])

    def _scores(self, state: str, ref: DataRef, blank: bool) -> list[dict[str, Any]]:
        """Scores the model as it is, and keeps the answers to real images."""
        if blank and not measure_of(self._data(ref)[0]).reads_pictures:
            return []
        image = "blank" if blank else "real"
        examples, scores, answers, each = self._answered(ref, blank=blank)
        if not blank and state != "dense":
            self.outcome.answers.extend(
                {
                    "task": ref.task,
                    "split": ref.split,
                    "state": state,
                    "image": image,
                    "example_id": example.id,
                    "image_id": example.image_id,
                    "answer": given.text,
                    "true_answer": example.answer,
                    "correct": given.text == example.answer,
                    **asdict(own),
                }
                for example, given, own in zip(examples, answers, each, strict=True)
            )
        return _score_rows(ref, state, image, scores, len(examples))

    def _answered(
        self, ref: DataRef, *, blank: bool, few: int | None = None
    ) -> tuple[Sequence[Example], Scores, list[Answer], list[Own]]:
        """Lets the workers answer all questions, or so few, and scores that.

        Returns:
            The examples, their scores, and each one's answer and what it contributes.
        """
        asked = ref if few is None else ref.model_copy(update={"samples": few})
        task, examples = self._data(asked)
        measure = measure_of(task)
        own = rank_and_world_size()
        name = content_key("questions", own, asked, contents_of(self.spec, ref), blank)
        keep = partial(self.kept.encoded, name)
        answers = measure.answer(self.vlm, task, examples, blank=blank, keep=keep)
        scores, each = measure.score(task, examples, answers)
        return examples, scores, answers, each

    def _means(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Means over tasks, where there are several."""
        data = {ref.task: self.spec.task_data(ref.task) for ref in self.spec.evaluate}
        tasks = {name: name if own is None else own.source.task for name, own in data.items()}
        return aggregates(rows, tasks) if len(tasks) > 1 else []

    @contextmanager
    def _clock(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - began


def _rung(stages: Stages, trial: TrialSpec, step: int) -> Progress | None:
    """Reads how a trial stood at a rung, if it was there."""
    found = stages.find("rung", trial.rung_key(step))
    if found is None:
        return None
    steps = 0 if trial.repair is None else trial.repair.steps
    return Progress(stage="rung", step=step, steps=steps, rung=json.loads(found)["scores"])


def _score_rows(
    ref: DataRef, state: str, image: str, scores: Scores, items: int
) -> list[dict[str, Any]]:
    """Turns scores into rows of the table of that name; a standard error stands by its metric."""
    suffix = "_standard_error"
    rows = []
    for metric, value in scores.items():
        if metric.endswith(suffix):
            continue
        error = scores.get(f"{metric}{suffix}", math.nan)
        rows.append(
            {
                "task": ref.task,
                "split": ref.split,
                "state": state,
                "image": image,
                "metric": metric,
                "value": value,
                "standard_error": None if math.isnan(error) else error,
                "items": items,
            }
        )
    return rows
