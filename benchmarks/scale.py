"""A sweep of 10,000 trials on 1,000 GPUs, in virtual time: `python -m benchmarks.scale`.

The GPUs and what runs on them are pretended; what decides is the real thing: the searcher, the
ledger, the scheduler of early stopping, and a store on disk into which every row is committed. A
trial takes as long as a recorded one of the pocket models' sweeps (`durations.json`, each divided
by its sweep's mean), with half an hour for the mean; one in a hundred loses its machine and is
tried again. The driver does one thing after the other, in virtual time too: each call takes what
its processor time was measured to be here, and what Tune itself takes is added.
"""

import argparse
import heapq
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np

from ressa.records import Outcome, Progress
from ressa.spec import spec_from_mapping
from ressa.store import acquire, open_store
from ressa.sweep.ledger import Attempt, Ledger
from ressa.sweep.plan import SweepPlan, make_plan
from ressa.sweep.stopping import StopAtRungs
from ressa.sweep.tuner import StoreSearcher

T = TypeVar("T")

GPUS, GANG = 1_000, 4
MEAN_SECONDS = 1_800.0
LOST = 0.01
TUNE_SECONDS = 0.1
"""Tune's own work for a trial: all of a smallest trial takes 0.11 s (`make bench ONLY=service`)."""
STEPS, RUNGS = 100, (25, 50)
METRIC = "easy-vqa.balanced_accuracy"

DURATIONS: list[float] = json.loads((Path(__file__).parent / "durations.json").read_text())


def plan_of(trials: int, *, stops: bool, **search: Any) -> SweepPlan:
    """The sweep that is searched: both sparsities, gangs of four GPUs, early stopping or none."""
    axis = {"low": 0.1, "high": 0.8}
    spec = spec_from_mapping(
        {
            "ressa": 1,
            "name": "scale",
            "model": "pocket-blip2",
            "space": {"vision_sparsity": axis, "language_sparsity": axis},
            "repair": {"steps": STEPS},
            "early_stopping": {"rungs": list(RUNGS), "reduction": 3} if stops else None,
            "resources": {"workers": GANG},
            "search": {"sampler": "random", "trials": trials, "parallel": GPUS // GANG} | search,
            "constraints": ["density >= 0.2"],
            "baselines": [],
        }
    ).spec
    return make_plan(spec)


@dataclass
class Found:
    """What a simulated sweep came to."""

    busy: float
    """Share of the GPUs' time that trials used, from when all first ran to the last new trial."""
    hours: float
    driver: float
    """Share of one core that the driver's measured work took, Tune's included."""
    ours: float
    """Processor seconds of an attempt in the driver, without Tune."""
    attempts: int
    stopped: int
    best: float


@dataclass
class Simulation:
    """One sweep in virtual time."""

    plan: SweepPlan
    folder: Path
    answers: int = 100
    now: float = 0.0
    free_at: float = 0.0
    """When the driver has done what it was given so far."""
    spent: float = 0.0
    events: list[tuple[float, int, str, Callable[[], None]]] = field(default_factory=list)
    spans: list[tuple[float, float]] = field(default_factory=list)
    running: dict[str, tuple[Attempt, float]] = field(default_factory=dict)
    count: int = 0
    last: float = 0.0
    """When the last trial began that had not been tried before."""
    over: bool = False

    def run(self) -> Found:
        """Plays the sweep to its end."""
        store = open_store(self.folder, create=True)
        self.store = store
        sweep = store.create_sweep("scale", self.plan.spec.to_yaml())
        lease = acquire(sweep)
        try:
            ledger = Ledger(sweep, self.plan, epoch=lease.epoch)
            session: Any = SimpleNamespace(check=lambda: None)
            watcher: Any = _Silent()
            self.searcher = StoreSearcher(
                ledger, self.plan, store, lease, watcher, session, fresh=False
            )
            self.scheduler = StopAtRungs(self.searcher.stops)
            self.fill()
            while self.events:
                self.now, _, trial_id, happens = heapq.heappop(self.events)
                if trial_id in self.running:
                    happens()
                    self.fill()
        finally:
            lease.release()
        trials = sweep.trials(["state", "score"])
        return self.found(len(self.spans), int((trials["state"] == "stopped").sum()), trials)

    def found(self, attempts: int, stopped: int, trials: Any) -> Found:
        starts, ends = np.array(sorted(self.spans)).T
        parallel = self.plan.spec.search.parallel
        first, last = starts[parallel - 1], self.last
        used = (np.minimum(ends, last) - np.maximum(starts, first)).clip(0).sum()
        tune = attempts * TUNE_SECONDS
        return Found(
            busy=float(used / (parallel * (last - first))),
            hours=float(ends.max() / 3600),
            driver=float((self.spent + tune) / ends.max()),
            ours=self.spent / attempts,
            attempts=attempts,
            stopped=stopped,
            best=float(trials["score"].max()),
        )

    def drive(self, work: Callable[[], T], tune: float = 0.0) -> T:
        """Lets the driver do something, after what it was given before."""
        began = time.process_time()
        result = work()
        took = time.process_time() - began
        self.spent += took
        self.free_at = max(self.free_at, self.now) + took + tune
        return result

    def fill(self) -> None:
        """Starts what the searcher proposes, as long as there are GPUs."""
        while not self.over and len(self.running) < self.plan.spec.search.parallel:
            trial_id = f"x{self.count}"
            config = self.drive(lambda name=trial_id: self.searcher.suggest(name))
            if config is None:
                return
            if isinstance(config, str):
                self.over = True
                return
            self.count += 1
            self.begin(trial_id, self.searcher._running[trial_id])

    def begin(self, trial_id: str, attempt: Attempt) -> None:
        self.free_at += TUNE_SECONDS
        start = self.free_at
        self.running[trial_id] = attempt, start
        self.last = self.last if attempt.attempt else start
        score = _score(attempt)
        chance = np.random.default_rng([attempt.number or 0, attempt.attempt])
        lasts = MEAN_SECONDS * chance.choice(DURATIONS)
        if chance.random() < LOST:
            self.at(start + lasts * chance.random(), trial_id, lambda: self.lose(trial_id))
            return
        for step in RUNGS:
            self.at(
                start + lasts * step / STEPS,
                trial_id,
                lambda step=step: self.reach(trial_id, step, score),
            )
        self.at(start + lasts, trial_id, lambda: self.end(trial_id, score))

    def at(self, when: float, trial_id: str, happens: Callable[[], None]) -> None:
        heapq.heappush(self.events, (when, len(self.events) + self.count * 10, trial_id, happens))

    def reach(self, trial_id: str, step: int, score: float) -> None:
        attempt, _ = self.running[trial_id]
        outcome = _outcome(score, step, self.answers).to_json()
        stage = json.dumps({"outcome": json.loads(outcome)}).encode()
        self.store.stages.put("rung", attempt.spec.rung_key(step), {"content": stage})
        progress = Progress(stage="repair", step=step, steps=STEPS, rung={METRIC: score})
        trial: Any = SimpleNamespace(trial_id=trial_id)
        result = {"progress": progress}
        nobody: Any = None
        self.drive(lambda: self.searcher.on_trial_result(trial_id, result))
        word = self.drive(lambda: self.scheduler.on_trial_result(nobody, trial, result))
        if word == StopAtRungs.STOP:
            self.drive(lambda: self.searcher.on_trial_complete(trial_id, result))
            self.leave(trial_id)

    def end(self, trial_id: str, score: float) -> None:
        attempt, _ = self.running[trial_id]
        content = _outcome(score, STEPS, self.answers).to_json()
        self.store.stages.put("outcome", attempt.spec.key, {"content": content})
        self.drive(lambda: self.searcher.on_trial_complete(trial_id, {"done": True}))
        self.leave(trial_id)

    def lose(self, trial_id: str) -> None:
        self.searcher._trials = [SimpleNamespace(trial_id=trial_id, pickled_error_file=None)]
        self.drive(lambda: self.searcher.on_trial_complete(trial_id, None, error=True))
        self.leave(trial_id)

    def leave(self, trial_id: str) -> None:
        _, start = self.running.pop(trial_id)
        self.spans.append((start, self.now))


class _Silent:
    """Looks at a sweep and says nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


def _score(attempt: Attempt) -> float:
    chance = np.random.default_rng(attempt.number)
    vision, language = (float(attempt.point[f"{t}_sparsity"]) for t in ("vision", "language"))
    return float(1 - 0.6 * vision**3 - 0.9 * language**4 + chance.normal(0, 0.01))


def _outcome(score: float, steps: int, answers: int) -> Outcome:
    """Rows as many as a trial has: scores, a curve, layers and answers."""
    which = {"task": "easy-vqa", "split": "validation"}
    return Outcome(
        summary={"vision_zeros": 100_000, "language_zeros": 200_000, "sparsity": 0.5}
        | {f"{stage}_seconds": 100.0 for stage in ("prune", "repair", "evaluate", "total")},
        scores=[
            {**which, "state": state, "image": image, "metric": metric, "value": score, "items": 99}
            for state in ("dense", "pruned", "repaired", "majority")
            for image in ("real", "blank")
            for metric in ("balanced_accuracy", "accuracy")
        ],
        curves=[
            {"step": step + 1, "loss": 0.1, "ce": 0.1, "kl": 0.1, "learning_rate": 1e-3}
            for step in range(steps)
        ],
        layers=[
            {"name": f"layer.{n}", "tower": "vision", "zeros": 9, "sparsity": 0.5}
            for n in range(36)
        ],
        answers=[
            {**which, "state": "repaired", "image": "real", "example_id": str(n), "answer": "yes"}
            for n in range(answers)
        ],
    )


def sweeps(trials: int) -> Iterator[tuple[str, SweepPlan, int]]:
    """What is simulated: words, the sweep, answers a trial."""
    yield f"{trials:,} trials, random", plan_of(trials, stops=False), 100
    few = trials // 20
    yield f"{few:,} trials with 4,000 answers each", plan_of(few, stops=False), 4_000
    some = trials // 5
    for factor in (1, 2, 4):
        window = factor * (GPUS // GANG)
        searches = {"random, early stopping": "random", "tpe": "tpe"}
        for words, sampler in searches.items():
            plan = plan_of(some, stops=sampler == "random", sampler=sampler, window=window)
            yield f"{some:,} trials, {words}, W = {factor} × parallel", plan, 100


def main() -> None:
    """Simulates and prints one line of a Markdown table for each sweep."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--trials", type=int, default=10_000, help="of the whole sweep")
    given = parser.parse_args()
    print(
        "| sweep | attempts | stopped | GPUs busy | hours | driver, of one core | ms an attempt |"
    )
    print("|---|---|---|---|---|---|---|")
    for words, plan, answers in sweeps(given.trials):
        folder = Path(tempfile.mkdtemp(prefix="ressa-scale-"))
        try:
            found = Simulation(plan, folder, answers).run()
        finally:
            shutil.rmtree(folder)
        print(
            f"| {words} | {found.attempts:,} | {found.stopped:,} | {100 * found.busy:.1f} % "
            f"| {found.hours:.1f} | {100 * found.driver:.1f} % | {1000 * found.ours:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
