"""Which attempt comes next, from the store alone: the driver's memory of a sweep.

Baselines first, then what an earlier driver left unfinished, then new proposals. A proposal is
stored before its trial starts, so a driver killed at any time proposes the same points again.
"""

import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ressa.records import TrialSpec
from ressa.search import Proposer, Seen
from ressa.store import SweepStore
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
        self._points: list[Mapping[str, Any]] = []
        self._notes: list[str] = []
        """What the sampler noted about each point."""
        self._attempts: dict[str, int] = {}
        self._read_proposals()
        self._exhausted = False
        self.left_over = deque(self._unfinished(redo_failed))

    def _read_proposals(self) -> None:
        for row in self._sweep.proposals().to_dict("records"):
            trial, attempt = row["trial"], int(row["attempt"])
            self._attempts[trial] = max(attempt, self._attempts.get(trial, -1))
            if trial not in BASELINES and int(row["number"]) == len(self._points):
                self._points.append(json.loads(row["point"]))
                self._notes.append(row["system_attrs"])

    def _unfinished(self, redo_failed: bool) -> list[tuple[str, str | None]]:
        """Trials to run before anything new is proposed, and why they run again."""
        left: list[tuple[str, str | None]] = []
        wanted = [*self._plan.baselines, *map(trial_name, range(len(self._points)))]
        for trial in wanted:
            state = self.results[trial]["state"] if trial in self.results else None
            if state is None:
                tried = trial in self._attempts
                left.append((trial, "the driver ended before the trial did" if tried else None))
            elif redo_failed and state in RETRIED:
                left.append((trial, f"redone: it was {state}"))
        return left

    @property
    def planned(self) -> int:
        """How many trials the sweep is to have, baselines included."""
        distinct = self._proposer.trials
        trials = self._plan.spec.search.trials
        return len(self._plan.baselines) + (
            trials if distinct is None else min(trials, len(distinct))
        )

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to run."""
        return not self.left_over and len(self.results) >= self.planned

    def next(self) -> Attempt | Literal["wait", "finished"]:
        """Returns the next attempt to start; 'wait' while the window is full, or 'finished'."""
        if self.left_over:
            return self._start(*self.left_over.popleft())
        number, search = len(self._points), self._plan.spec.search
        if self._exhausted or number >= search.trials:
            return "finished"
        visible = self._visible(number)
        if visible is None:
            return "wait"
        seen = [self._as_seen(n, visible=n in visible) for n in range(number)]
        proposal = self._proposer.propose(number, seen)
        if proposal is None:
            self._exhausted = True
            return "finished"
        self._points.append(proposal.point)
        self._notes.append(proposal.system_attrs)
        names = [trial_name(n) for n in sorted(visible)]
        return self._start(trial_name(number), None, seen=names, notes=proposal.system_attrs)

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
        if row["state"] != "succeeded":
            return Seen(point=point, values=None, failed=True, system_attrs=notes)
        return Seen(point=point, values=(float(row["score"]),), system_attrs=notes)

    def _start(
        self, trial: str, reason: str | None, *, seen: list[str] | None = None, notes: str = "{}"
    ) -> Attempt:
        number = None if trial in BASELINES else int(trial[1:])
        point = {} if number is None else self._points[number]
        spec = self._plan.baseline(trial) if number is None else self._plan.trial(point)
        attempt = Attempt(
            trial=trial,
            attempt=self._attempts.get(trial, -1) + 1,
            spec=spec,
            number=number,
            point=point,
            reason=reason,
        )
        self._attempts[trial] = attempt.attempt
        row = {
            "number": number,
            "key": spec.key,
            "point": json.dumps(dict(point)),
            "seen": seen,
            "sampler": None if number is None else self._plan.spec.search.sampler,
            "system_attrs": notes,
            "reason": reason,
        }
        self._commit("proposals", [row], attempt)
        self._sweep.event("trial_started", epoch=self._epoch, trial=trial, attempt=attempt.attempt)
        return attempt

    def finish(self, attempt: Attempt, tables: Mapping[str, list[dict[str, Any]]]) -> None:
        """Commits an attempt's rows; its `trials` row comes last and makes them count."""
        for table, rows in tables.items():
            if table != "trials":
                self._commit(table, rows, attempt)
        self._commit("trials", tables["trials"], attempt)
        self.results[attempt.trial] = tables["trials"][0]

    def _commit(self, table: str, rows: list[dict[str, Any]], attempt: Attempt) -> None:
        self._sweep.commit(
            table, rows, epoch=self._epoch, trial=attempt.trial, attempt=attempt.attempt
        )
