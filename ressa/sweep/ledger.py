"""Which attempt comes next, from the store alone: the driver's memory of a sweep.

Baselines first, then what an earlier driver left unfinished, then new proposals. A proposal is
stored before its trial starts, so a driver killed at any time proposes the same points again.
"""

import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ressa.records import Progress, TrialSpec
from ressa.search import Proposer, Seen
from ressa.search.halving import threshold
from ressa.store import SweepStore
from ressa.sweep import rows
from ressa.sweep.plan import SweepPlan

BASELINES = ("dense", "dense-repaired")
RETRIED = frozenset({"failed", "lost"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One try of one trial."""

    trial: str
    attempt: int
    spec: TrialSpec
    number: int | None
    """Number of the proposal; None for a baseline."""
    point: Mapping[str, Any]
    reason: str | None = None
    """Why this is not the first attempt."""

    @property
    def role(self) -> str:
        """Whether the search proposed the trial."""
        return "baseline" if self.number is None else "search"


def trial_name(number: int) -> str:
    """Names the trial of a proposal: t000, t001, …"""
    return f"t{number:03d}"


class Ledger:
    """Finished trials and stored proposals of one sweep, kept up to date by its driver.

    Args:
        sweep: the sweep's rows.
        plan: the resolved spec with its model's layers.
        epoch: of the driver's lease.
        redo_failed: whether trials that failed or were lost get another attempt.
    """

    def __init__(
        self, sweep: SweepStore, plan: SweepPlan, *, epoch: int, redo_failed: bool = False
    ) -> None:
        self._sweep, self._plan, self._epoch = sweep, plan, epoch
        self._proposer = Proposer(plan.spec, plan.key_of)
        self.results: dict[str, Mapping[str, Any]] = {
            row["trial"]: row for row in sweep.trials().to_dict("records")
        }
        self._row_attempts = {trial: int(row["attempt"]) for trial, row in self.results.items()}
        self._points: list[Mapping[str, Any]] = []
        self._notes: list[str] = []
        """What the sampler noted about each point."""
        self._firsts = {plan.baseline(name).key: name for name in plan.baselines}
        """The first trial of each key."""
        self._originals: dict[str, str] = {}
        """Repeats: points that came to the same trial as an earlier one → that one."""
        self._attempts: dict[str, int] = {}
        self._rungs: dict[int, dict[int, float]] = {}
        """Rung → number of the trial → how it stood there."""
        for row in sweep.read("rungs").to_pylist():
            self._rungs.setdefault(row["step"], {})[row["number"]] = row["value"]
        self._read_proposals()
        self._exhausted = False
        self.left_over = deque(self._unfinished(redo_failed))
        for again, _ in self.left_over:
            # What is redone has no result until it ends, and neither have its repeats.
            for trial in (again, *self._repeats_of(again)):
                self.results.pop(trial, None)

    def _read_proposals(self) -> None:
        for row in self._sweep.proposals().to_dict("records"):
            trial, attempt = row["trial"], int(row["attempt"])
            self._attempts[trial] = max(attempt, self._attempts.get(trial, -1))
            if trial not in BASELINES and int(row["number"]) == len(self._points):
                self._add(json.loads(row["point"]), row["system_attrs"])

    def _add(self, point: Mapping[str, Any], notes: str) -> str | None:
        """Takes the next point in; returns the earlier trial that it comes to, if there is one."""
        trial = trial_name(len(self._points))
        first = self._firsts.setdefault(self._plan.key_of(point), trial)
        self._points.append(point)
        self._notes.append(notes)
        if first == trial:
            return None
        self._originals[trial] = first
        return first

    def _repeats_of(self, trial: str) -> list[str]:
        return [repeat for repeat, original in self._originals.items() if original == trial]

    def _unfinished(self, redo_failed: bool) -> list[tuple[str, str | None]]:
        """Trials to run before anything new is proposed, and why they run again."""
        left: list[tuple[str, str | None]] = []
        wanted = [*self._plan.baselines, *map(trial_name, range(len(self._points)))]
        for trial in wanted:
            if trial in self._originals:
                continue
            state = self.results[trial]["state"] if trial in self.results else None
            if state is None:
                tried = trial in self._attempts
                left.append((trial, "the driver ended before the trial did" if tried else None))
            elif redo_failed and state in RETRIED:
                left.append((trial, f"redone: it was {state}"))
        return left

    @property
    def planned(self) -> int:
        """How many distinct trials the sweep is to run, baselines included."""
        return len(self._plan.baselines) + self._wanted

    @property
    def _wanted(self) -> int:
        """How many distinct trials the search is to run: `trials`, or all there are."""
        distinct, trials = self._proposer.trials, self._plan.spec.search.trials
        if distinct is None:
            return trials
        baselines = {self._plan.baseline(name).key for name in self._plan.baselines}
        return min(trials, len(distinct - baselines))

    @property
    def _executions(self) -> int:
        """How many distinct trials the search has proposed."""
        return len(self._points) - len(self._originals)

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to run, and nothing to write down."""
        trials = [*self._plan.baselines, *map(trial_name, range(len(self._points)))]
        if self.left_over or any(trial not in self.results for trial in trials):
            return False
        return self._executions >= self._wanted and not self._more_repeats()

    def _more_repeats(self) -> bool:
        """Whether the next point of a sampler that looks at no result comes to an earlier trial."""
        if not self._proposer.is_fixed:
            return False
        proposal = self._proposer.propose(len(self._points), ())
        return proposal is not None and self._is_known(proposal.point)

    def next(self) -> Attempt | Literal["wait", "finished"]:
        """Returns the next attempt to start; 'wait' while the window is full, or 'finished'.

        Points that come to an earlier trial are written down on the way; they start nothing.
        """
        for first in sorted(set(self._originals.values())):
            self._settle(first)
        if self.left_over:
            return self._start(*self.left_over.popleft())
        while True:
            number, enough = len(self._points), self._executions >= self._plan.spec.search.trials
            if self._exhausted or (enough and not self._proposer.is_fixed):
                return "finished"
            visible = self._visible(number)
            if visible is None:
                return "wait"
            seen = [self._as_seen(n, visible=n in visible) for n in range(number)]
            proposal = self._proposer.propose(number, seen)
            if proposal is None or (enough and not self._is_known(proposal.point)):
                self._exhausted = True
                return "finished"
            original = self._add(proposal.point, proposal.system_attrs)
            trial, notes = trial_name(number), proposal.system_attrs
            names = [trial_name(n) for n in sorted(visible)]
            if original is None:
                return self._start(trial, None, seen=names, notes=notes)
            self._propose(trial, f"the same trial as {original}", seen=names, notes=notes)
            self._settle(original)

    def _is_known(self, point: Mapping[str, Any]) -> bool:
        return self._plan.key_of(point) in self._firsts

    def _settle(self, original: str) -> None:
        """Writes down what a finished trial means for those that repeat it."""
        if original not in self.results:
            return
        row = self.results[original]
        for repeat in self._repeats_of(original):
            if repeat in self.results:
                continue
            attempt = self._attempt(repeat, self._row_attempts.get(repeat, -1) + 1)
            self.results[repeat] = rows.reused(attempt, row, self._plan, trial=original)
            self._row_attempts[repeat] = attempt.attempt
            self._commit("trials", [dict(self.results[repeat])], attempt)

    def _visible(self, number: int) -> set[int] | None:
        """The trials whose results a proposal is a function of; None while one is missing.

        Those before the window, whichever finished first; or what there is, if the search is
        asynchronous.
        """
        search = self._plan.spec.search
        if search.asynchronous:
            return {n for n in range(number) if trial_name(n) in self.results}
        before = set(range(number - search.window + 1))
        return before if all(trial_name(n) in self.results for n in before) else None

    def _as_seen(self, number: int, *, visible: bool) -> Seen:
        point, notes = self._points[number], self._notes[number]
        if not visible:
            return Seen(point=point, values=None, system_attrs=notes)
        row = self.results[trial_name(number)]
        if row["state"] not in (*rows.SUCCESSFUL, "stopped"):
            return Seen(point=point, values=None, failed=True, system_attrs=notes)
        return Seen(point=point, values=rows.objectives(row, self._plan), system_attrs=notes)

    def _start(
        self, trial: str, reason: str | None, *, seen: list[str] | None = None, notes: str = "{}"
    ) -> Attempt:
        attempt = self._propose(trial, reason, seen=seen, notes=notes)
        self._sweep.event("trial_started", epoch=self._epoch, trial=trial, attempt=attempt.attempt)
        return attempt

    def _attempt(self, trial: str, attempt: int, reason: str | None = None) -> Attempt:
        number = None if trial in BASELINES else int(trial[1:])
        point = {} if number is None else self._points[number]
        spec = self._plan.baseline(trial) if number is None else self._plan.trial(point)
        return Attempt(
            trial=trial, attempt=attempt, spec=spec, number=number, point=point, reason=reason
        )

    def _propose(
        self, trial: str, reason: str | None, *, seen: list[str] | None, notes: str
    ) -> Attempt:
        """Stores that a trial is to run, or that it repeats another one, before anything starts."""
        attempt = self._attempt(trial, self._attempts.get(trial, -1) + 1, reason)
        self._attempts[trial] = attempt.attempt
        row = {
            "number": attempt.number,
            "key": attempt.spec.key,
            "point": json.dumps(dict(attempt.point)),
            "seen": seen,
            "sampler": None if attempt.number is None else self._plan.spec.search.sampler,
            "system_attrs": notes,
            "reason": reason,
        }
        self._commit("proposals", [row], attempt)
        return attempt

    def reach(self, attempt: Attempt, progress: Progress) -> bool:
        """Takes note of how a trial stands at a rung; returns whether it ends there.

        What was noted first counts, should a trial that was killed come by again.
        """
        stopping = self._plan.spec.early_stopping
        number, scores = attempt.number, progress.rung
        if stopping is None or number is None or scores is None:
            return False
        here = self._rungs.setdefault(progress.step, {})
        value = here.setdefault(number, scores[self._plan.spec.objectives[0].maximize])
        search = self._plan.spec.search
        before = here.keys() if search.asynchronous else range(number - search.window + 1)
        others = [here[n] for n in before if n in here and n != number]
        lowest = threshold(others, stopping.reduction)
        ends = lowest is not None and value < lowest
        row = {
            "number": number,
            "step": progress.step,
            "value": value,
            "threshold": lowest,
            "stopped": ends,
        }
        self._commit("rungs", [row], attempt)
        return ends

    def finish(self, attempt: Attempt, tables: Mapping[str, list[dict[str, Any]]]) -> None:
        """Commits an attempt's rows; its `trials` row comes last and makes them count."""
        for table, made in tables.items():
            if table != "trials":
                self._commit(table, made, attempt)
        self._commit("trials", tables["trials"], attempt)
        self.results[attempt.trial] = tables["trials"][0]
        self._settle(attempt.trial)

    def _commit(self, table: str, rows: list[dict[str, Any]], attempt: Attempt) -> None:
        self._sweep.commit(
            table, rows, epoch=self._epoch, trial=attempt.trial, attempt=attempt.attempt
        )
