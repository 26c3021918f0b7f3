"""Which attempt comes next, from the store alone: the driver's memory of a sweep.

Baselines first, then what an earlier driver left unfinished, then new proposals. A proposal is
stored before its trial starts, so a driver killed at any time proposes the same points again.
"""

import json
import math
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ressa.errors import NotFoundError, SpecError, did_you_mean
from ressa.records import Progress, TrialSpec
from ressa.search import Seen
from ressa.store import ENDED_WELL, SweepStore
from ressa.sweep import rows
from ressa.sweep.mapped import Decision, Lines, proposer
from ressa.sweep.plan import SweepPlan

BASELINES = ("dense", "dense-repaired")
FAILED = frozenset({"failed", "lost"})
"""States of trials that count as failed, and that a user may have redone."""
CANCELLED = "cancelled"
"""The state of a trial that a user ended: a resumed sweep runs it again."""


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
    earlier: tuple[str, ...] = ()
    """Other keys that earlier attempts had, whose repair checkpoints serve this one as well."""
    confirms: bool = False
    """Whether the sweep confirms what another one found."""

    @property
    def role(self) -> str:
        """Who asked for the trial: it is a baseline, or the search or `ressa confirm` did."""
        if self.number is None:
            return "baseline"
        return "confirm" if self.confirms else "search"


def trial_name(number: int) -> str:
    """Names the trial of a proposal: t000, t001, …"""
    return f"t{number:03d}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Again:
    """A trial that runs before anything new is proposed."""

    trial: str
    tries: int
    """How many tries this one makes, of those that `retry.attempts` allows."""
    reason: str | None
    """Why it runs again; None if it never ran."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Redo:
    """Which of the trials that failed or were lost a user wants to have redone."""

    all: bool = False
    trials: frozenset[str] = frozenset()

    def __contains__(self, trial: str) -> bool:
        return self.all or trial in self.trials


class Ledger:
    """Finished trials and stored proposals of one sweep, kept up to date by its driver.

    Args:
        sweep: the sweep's rows.
        plan: the resolved spec with its model's layers.
        epoch: of the driver's lease.
        redo: which trials that failed or were lost get another attempt.

    Raises:
        NotFoundError: a trial to be redone does not exist.
        SpecError: it did not fail.
    """

    def __init__(
        self, sweep: SweepStore, plan: SweepPlan, *, epoch: int, redo: Redo | None = None
    ) -> None:
        self._sweep, self._plan, self._epoch = sweep, plan, epoch
        self._proposer = proposer(plan)
        self._lines = None if plan.spec.search.stop_when is None else Lines(plan)
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
        self._repeats: dict[str, list[str]] = {}
        """The other way round."""
        self._is_settled = False
        """Whether all repeats of trials that had finished before are written down."""
        self._attempts: dict[str, int] = {}
        self._tries: dict[str, int] = {}
        self._micro_batches: dict[str, int] = {}
        self._keys: dict[str, list[str]] = {}
        self._rungs: dict[int, dict[int, float]] = {}
        """Rung → number of the trial → how it stood there."""
        for row in sweep.read("rungs").to_pylist():
            self._rungs.setdefault(row["step"], {})[row["number"]] = row["value"]
        self._read_proposals()
        self._exhausted = False
        self._ended = 0
        """All trials before this number are known to have ended."""
        self.left_over = deque(self._unfinished(redo or Redo()))
        for again in self.left_over:
            for trial in (again.trial, *self._repeats.get(again.trial, ())):
                self.results.pop(trial, None)

    def _read_proposals(self) -> None:
        # An attempt that has a row counts though its proposal may be damaged.
        self._attempts.update(self._row_attempts)
        self._tries.update(dict.fromkeys(self._row_attempts, 1))
        for row in self._sweep.proposals().to_dict("records"):
            trial, attempt = row["trial"], int(row["attempt"])
            if attempt >= self._attempts.get(trial, -1):
                self._attempts[trial] = attempt
                self._tries[trial] = _whole(row["tries"]) or 1
                self._note_micro_batch(trial, _whole(row["micro_batch"]))
            self._keys.setdefault(trial, []).append(row["key"])
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
        self._repeats.setdefault(first, []).append(trial)
        return first

    def _note_micro_batch(self, trial: str, size: int | None) -> None:
        if size is not None:
            self._micro_batches[trial] = size

    def _unfinished(self, redo: Redo) -> list[Again]:
        """Trials to run before anything new is proposed, and why they run again."""
        wanted = [*self._plan.baselines, *map(trial_name, range(len(self._points)))]
        for trial in sorted(redo.trials):
            if trial not in wanted:
                hint = did_you_mean(trial, wanted)
                raise NotFoundError(f"sweep {self._sweep.name!r} has no trial {trial!r}.{hint}")
            if trial in self._originals:
                raise SpecError(f"trial {trial} repeats {self._originals[trial]}: redo that one.")
            if trial in self.results and self.results[trial]["state"] not in {*FAILED, CANCELLED}:
                raise SpecError(
                    f"trial {trial} {self.results[trial]['state']}: there is nothing to redo. "
                    "Trials that failed, were lost or were cancelled can be."
                )
        own = [trial for trial in wanted if trial not in self._originals]
        return [again for trial in own if (again := self._left(trial, redo)) is not None]

    def _left(self, trial: str, redo: Redo) -> Again | None:
        """Says why a trial is to run before anything new, or None if it is done with."""
        row, tries = self.results.get(trial), self._tries.get(trial, 1)
        if row is not None and row["state"] not in {*FAILED, CANCELLED}:
            return None
        if row is None or self._attempts[trial] > row["attempt"]:
            tried = trial in self._attempts
            reason = "the driver ended before the trial did" if tried else None
            return Again(trial=trial, tries=tries, reason=reason)
        if row["state"] == CANCELLED:
            return Again(trial=trial, tries=tries, reason="it was cancelled")
        if trial in redo:
            self._note_micro_batch(trial, self._smaller(trial, row))
            return Again(trial=trial, tries=1, reason=f"redone: it was {row['state']}")
        return self._retry(trial, row)

    def _retry(self, trial: str, row: Mapping[str, Any]) -> Again | None:
        """Returns the next try of an attempt that did not succeed, if `retry` allows one."""
        retry, tries = self._plan.spec.retry, self._tries[trial]
        kind = row.get("failure_class")
        if (kind, row.get("failure_stage")) == ("node", "store"):
            # The machine's fault, not the trial's; the driver sees to it that there is an end.
            return Again(trial=trial, tries=tries, reason="its machine could not use the store")
        if row["state"] not in FAILED or kind not in retry.on or tries >= retry.attempts:
            return None
        reason = f"{kind} at {row['failure_stage']}; try {tries + 1} of {retry.attempts}"
        if kind == "oom" and row["failure_stage"] == "repair":
            smaller = self._smaller(trial, row)
            if smaller is None:
                return None  # one question at a time is too much already
            self._note_micro_batch(trial, smaller)
            reason += f", with a micro-batch of {smaller}"
        return Again(trial=trial, tries=tries + 1, reason=reason)

    def _smaller(self, trial: str, row: Mapping[str, Any]) -> int | None:
        """Half the micro-batch of a repair that ran out of memory; None if it did not, or is 1."""
        if (row.get("failure_class"), row.get("failure_stage")) != ("oom", "repair"):
            return None
        spec = self._plan.spec
        share = math.ceil(spec.repair.batch_size / spec.resources.workers)
        size = _whole(row.get("micro_batch")) or self._micro_batches.get(trial) or share
        return None if size <= 1 else -(-size // 2)

    @property
    def failed(self) -> list[str]:
        """Trials that failed or were lost for good."""
        return [
            trial
            for trial, row in self.results.items()
            if row["state"] in FAILED and trial not in self._originals
        ]

    @property
    def is_hopeless(self) -> bool:
        """Whether as many trials have failed as `limits.failed_trials` allows."""
        limit = self._plan.spec.limits.failed_trials
        return limit is not None and len(self.failed) >= limit

    @property
    def planned(self) -> int:
        """How many distinct trials the sweep is to run, baselines included."""
        return len(self._plan.baselines) + self._wanted

    @property
    def _wanted(self) -> int:
        """How many distinct trials the search is to run: `trials`, or all there are."""
        baselines = {self._plan.baseline(name).key for name in self._plan.baselines}
        return self._proposer.distinct(self._plan.spec.search.trials, baselines)

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
        if self.decision is not None:
            return True
        return self._executions >= self._wanted and not self._more_repeats()

    @property
    def decision(self) -> Decision | None:
        """Why `search.stop_when` ends the sweep before its next proposal; None if it does not.

        A function of the results that this proposal may see: those before the window.
        """
        if self._lines is None or self._executions >= self._wanted:
            return None
        number = len(self._points)
        visible = self._visible(number)
        if visible is None:
            return None
        return self._lines.decide([self._as_seen(n, visible=True) for n in sorted(visible)])

    def _more_repeats(self) -> bool:
        """Whether the next point of a sampler that looks at no result comes to an earlier trial."""
        if not self._plan.spec.search.is_fixed:
            return False
        proposal = self._proposer.propose(len(self._points), ())
        return proposal is not None and self._is_known(proposal.point)

    def next(self) -> Attempt | Literal["wait", "finished"]:
        """Returns the next attempt to start; 'wait' while the window is full, or 'finished'.

        Points that come to an earlier trial are written down on the way; they start nothing.
        """
        if self.is_hopeless:
            return "finished"
        if not self._is_settled:
            for trial in sorted(self._repeats):
                self._settle(trial)
            self._is_settled = True
        if self.left_over:
            return self._start(self.left_over.popleft())
        spec = self._plan.spec
        looks = not spec.search.is_fixed
        while True:
            number, enough = len(self._points), self._executions >= spec.search.trials
            if self._exhausted or (enough and looks):
                return "finished"
            # A sampler that looks at no result waits for none; what may end early does.
            waits = looks or spec.early_stopping is not None or self._lines is not None
            visible = self._visible(number) if waits else ()
            if visible is None:
                return "wait"
            if self.decision is not None:
                return "finished"
            seen = [self._as_seen(n, visible=n in visible) for n in range(number if looks else 0)]
            proposal = self._proposer.propose(number, seen)
            if proposal is None or (enough and not self._is_known(proposal.point)):
                self._exhausted = True
                return "finished"
            original = self._add(proposal.point, proposal.system_attrs)
            again = Again(
                trial=trial_name(number),
                tries=1,
                reason=None if original is None else f"the same trial as {original}",
            )
            names = [trial_name(n) for n in sorted(visible)] if looks else []
            if original is None:
                return self._start(again, seen=names, notes=proposal.system_attrs)
            self._propose(again, seen=names, notes=proposal.system_attrs)
            self._settle(original)

    def _is_known(self, point: Mapping[str, Any]) -> bool:
        return self._plan.key_of(point) in self._firsts

    def _settle(self, original: str) -> None:
        """Writes down what a finished trial means for those that repeat it."""
        if original not in self.results:
            return
        row = self.results[original]
        for repeat in self._repeats.get(original, ()):
            if repeat in self.results:
                continue
            attempt = self._attempt(repeat, self._row_attempts.get(repeat, -1) + 1)
            self.results[repeat] = rows.reused(attempt, row, self._plan, trial=original)
            self._row_attempts[repeat] = attempt.attempt
            self._commit("trials", [dict(self.results[repeat])], attempt)

    def _visible(self, number: int) -> Collection[int] | None:
        """The trials whose results a proposal is a function of; None while one is missing.

        Those before the window, whichever finished first; or what there is, if the search is
        asynchronous.
        """
        search = self._plan.spec.search
        if search.asynchronous:
            return {n for n in range(number) if trial_name(n) in self.results}
        while trial_name(self._ended) in self.results:
            self._ended += 1
        before = range(number - search.window + 1)
        return before if len(before) <= self._ended else None

    def _as_seen(self, number: int, *, visible: bool) -> Seen:
        point, notes = self._points[number], self._notes[number]
        if not visible:
            return Seen(point=point, values=None, system_attrs=notes)
        row = self.results[trial_name(number)]
        came_to = row["state"] in ENDED_WELL
        values = rows.objectives(row, self._plan) if came_to else None
        return Seen(point=point, values=values, failed=values is None, system_attrs=notes)

    def _start(self, again: Again, *, seen: list[str] | None = None, notes: str = "{}") -> Attempt:
        attempt = self._propose(again, seen=seen, notes=notes)
        self.note(attempt, "trial_started", {})
        return attempt

    def _attempt(self, trial: str, attempt: int, reason: str | None = None) -> Attempt:
        """Makes an attempt of a trial, with the micro-batch that its earlier ones came to."""
        number = None if trial in BASELINES else int(trial[1:])
        point = {} if number is None else self._points[number]
        spec = self._plan.baseline(trial) if number is None else self._plan.trial(point)
        size = self._micro_batches.get(trial)
        if size is not None and spec.repair is not None:
            smaller = spec.repair.model_copy(update={"micro_batch": size})
            spec = replace(spec, repair=smaller)
        keys = self._keys.get(trial, [])
        return Attempt(
            trial=trial,
            attempt=attempt,
            spec=spec,
            number=number,
            point=point,
            reason=reason,
            earlier=tuple(key for key in dict.fromkeys(keys) if key != spec.key),
            confirms=self._plan.spec.confirms is not None,
        )

    def _propose(self, again: Again, *, seen: list[str] | None, notes: str) -> Attempt:
        """Stores that a trial is to run, or that it repeats another one, before anything starts."""
        attempt = self._attempt(again.trial, self._attempts.get(again.trial, -1) + 1, again.reason)
        self._attempts[again.trial], self._tries[again.trial] = attempt.attempt, again.tries
        self._keys.setdefault(again.trial, []).append(attempt.spec.key)
        row = {
            "number": attempt.number,
            "key": attempt.spec.key,
            "point": json.dumps(dict(attempt.point)),
            "seen": seen,
            "sampler": None if attempt.number is None else self._plan.spec.search.sampler,
            "system_attrs": notes,
            "reason": again.reason,
            "tries": again.tries,
            "micro_batch": self._micro_batches.get(again.trial),
        }
        self._commit("proposals", [row], attempt)
        return attempt

    def reach(self, attempt: Attempt, progress: Progress) -> bool:
        """Takes note of how a trial stands at a rung; returns whether it ends there.

        It is compared with the trials of its own budget: a smaller model scores less, and yet its
        line is asked about as well.
        What was noted first counts, should a trial that was killed come by again.
        """
        stopping = self._plan.spec.early_stopping
        number, scores = attempt.number, progress.rung
        if stopping is None or number is None or scores is None:
            return False
        found = scores.get(self._plan.spec.objectives[0].maximize, math.nan)
        if not math.isfinite(found):
            return False  # at its end such a trial fails
        here = self._rungs.setdefault(progress.step, {})
        value = here.setdefault(number, found)
        search, line = self._plan.spec.search, attempt.point.get("budget")
        before = here.keys() if search.asynchronous else range(number - search.window + 1)
        others = [
            here[n]
            for n in before
            if n in here and n != number and self._points[n].get("budget") == line
        ]
        lowest = _threshold(others, stopping.reduction)
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

    def note(self, attempt: Attempt, kind: str, detail: Mapping[str, Any]) -> None:
        """Stores an event of an attempt."""
        self._sweep.event(
            kind, detail, epoch=self._epoch, trial=attempt.trial, attempt=attempt.attempt
        )

    def finish(self, attempt: Attempt, tables: Mapping[str, list[dict[str, Any]]]) -> None:
        """Commits an attempt's rows; its `trials` row comes last and makes them count.

        An attempt that did not succeed may be followed by another one, as `retry` says.
        """
        for table, made in tables.items():
            if table != "trials":
                self._commit(table, made, attempt)
        self._commit("trials", tables["trials"], attempt)
        row = tables["trials"][0]
        again = self._retry(attempt.trial, row)
        if again is None:
            self.results[attempt.trial] = row
            if row["state"] != CANCELLED:
                self._settle(attempt.trial)
        else:
            self.left_over.appendleft(again)

    def _commit(self, table: str, rows: list[dict[str, Any]], attempt: Attempt) -> None:
        self._sweep.commit(
            table, rows, epoch=self._epoch, trial=attempt.trial, attempt=attempt.attempt
        )


def _threshold(values: Sequence[float], reduction: float) -> float | None:
    """Returns the lowest of the best 1/reduction of the values; None if that is not even one."""
    best = math.floor(len(values) / reduction)
    return sorted(values, reverse=True)[best - 1] if best else None


def _whole(value: Any) -> int | None:
    """A whole number of a table's row, or None: pandas has several ways to say that it is null."""
    try:
        return int(value)
    except (TypeError, ValueError):
        return None
