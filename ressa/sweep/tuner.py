"""Runs a sweep on Ray Tune: one Tune trial is one attempt, and the store is told everything.

Tune gives placement, process reuse and failure detection. What to run next is the ledger's word,
and what happened is what the store holds: no `Tuner.restore`, no Tune retries.
"""

import functools
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, ParamSpec, Protocol, TypeVar

import ray
from ray import tune
from ray.exceptions import RayTaskError
from ray.tune import Callback, CheckpointConfig, FailureConfig, RunConfig, TuneConfig
from ray.tune.execution import class_cache
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from ressa.errors import ConflictError, StoreError
from ressa.keys import FRESH_OUTCOME
from ressa.records import Failure, Outcome, Progress
from ressa.store import Lease, Store
from ressa.sweep import claims, rows
from ressa.sweep.diary import Subject
from ressa.sweep.gang import Where
from ressa.sweep.joined_ray import free_places, unplaced_groups
from ressa.sweep.kills import memory_kills_on
from ressa.sweep.ledger import Again, Attempt, Ledger
from ressa.sweep.local_ray import Session
from ressa.sweep.places import bundle, said
from ressa.sweep.plan import SweepPlan
from ressa.sweep.stopping import StopAtRungs
from ressa.sweep.trainable import AttemptFailed, TrialTrainable, kind_of_death, placement

_LONG_SECONDS = 15.0
"""After which a trial that has no process waits for a place, and is not just starting."""

P = ParamSpec("P")
R = TypeVar("R")


class Watcher(Protocol):
    """Is told how the sweep goes, for people to see."""

    def planned(self, trials: int, finished: dict[str, Any], first: tuple[Again, ...]) -> None: ...
    def started(self) -> None: ...
    def began(self, attempt: Attempt) -> None: ...
    def moved(self, attempt: Attempt, progress: Progress) -> None: ...
    def ended(self, attempt: Attempt, row: dict[str, Any]) -> None: ...


def run_trials(
    plan: SweepPlan,
    store: Store,
    ledger: Ledger,
    lease: Lease,
    watcher: Watcher,
    session: Session,
    *,
    fresh: bool,
) -> None:
    """Runs every trial that is left, with Ray already up; raises what ended the sweep early.

    It returns with trials left if somebody asked for that (`lease.asked`), or too many failed.

    Args:
        session: the Ray to run on; Tune keeps its own state there, and nothing reads it again.
        fresh: lets each trial make all of its stages itself.
    """
    searcher = StoreSearcher(ledger, plan, store, lease, watcher, session, fresh)
    coordinator = claims.start()  # it lives as long as this handle
    resources = plan.spec.resources
    # Tune would hand on what opens a bucket, and Ray would log it; nodes have their own.
    secrets = {name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")}
    class_cache.ENV_VARS_TO_PROPAGATE.difference_update(secrets)
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(plan.spec.search.parallel)
    tuner = tune.Tuner(
        tune.with_resources(TrialTrainable, placement(resources)),
        tune_config=TuneConfig(
            search_alg=searcher,
            scheduler=StopAtRungs(searcher.stops) if plan.spec.early_stopping else None,
            num_samples=-1,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=RunConfig(
            name="tune",
            storage_path=str(session.folder / "tune"),
            verbose=0,
            callbacks=[_Glance(searcher)],
            failure_config=FailureConfig(max_failures=0),
            # Tune would save into the driver's own folder, which other nodes do not see.
            checkpoint_config=CheckpointConfig(checkpoint_at_end=False),
        ),
    )
    # What Tune has to say of trials is said by the watcher and kept in rows.
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    try:
        tuner.fit()
        del coordinator
    except _GiveUp as end:
        raise end.error from end.error.__cause__


class Cancelled(KeyboardInterrupt):
    """The user ended the sweep and its running trials from elsewhere; their rows say so."""


def _error_of(trial: Trial) -> Exception | None:
    """Reads the error that Tune kept of a trial, in this session's own folder, if it kept one."""
    path = trial.pickled_error_file
    if path is None:
        return None
    with open(path, "rb") as file:
        error: Exception = ray.cloudpickle.load(file)
    return error


class _GiveUp(BaseException):
    """Carries an error out of Tune, which logs or wraps every `Exception` and goes on."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def _ends_the_sweep(method: Callable[P, R]) -> Callable[P, R]:
    """Lets a method's error end the sweep: what the driver cannot do no trial can make up for."""

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(*args, **kwargs)
        except Exception as error:
            raise _GiveUp(error) from error

    return call


class _Glance(Callback):
    """Lets the searcher look around in every turn of Tune's loop, also when no trial reports."""

    def __init__(self, searcher: "StoreSearcher") -> None:
        self._searcher = searcher

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Is called some ten times a second."""
        self._searcher.glance(trials)

    def __getstate__(self) -> dict[str, Any]:
        """Is pickled empty, as the searcher is."""
        return {}


class StoreSearcher(Searcher):
    """Hands the ledger's attempts to Tune and commits what comes back."""

    def __init__(
        self,
        ledger: Ledger,
        plan: SweepPlan,
        store: Store,
        lease: Lease,
        watcher: Watcher,
        session: Session,
        fresh: bool,
    ) -> None:
        super().__init__()
        self._ledger, self._plan, self._store = ledger, plan, store
        self._lease, self._watcher, self._session = lease, watcher, session
        self._fresh = fresh
        self._running: dict[str, Attempt] = {}
        self._begun: dict[str, datetime] = {}
        self._progress: dict[str, Progress] = {}
        self._stopped: dict[str, Progress] = {}
        self._trials: list[Trial] = []
        self._deadlines: dict[str, float] = {}
        self._timed_out: set[str] = set()
        self._ran_on: dict[str, tuple[Where, ...]] = {}
        """The nodes of a trial's workers, with their kills for memory when it began."""
        self._kills: dict[str, int] = {}
        """The same, by node, when the last of its deaths was looked into."""
        self._without_store: Counter[str] = Counter()
        """How many of a trial's attempts in a row could not use the store where they were."""
        self._notes = 0  # of trials that wait or were placed
        self._unplaced: dict[str, float] = {}
        """When a trial without a process will have waited for long."""
        self._waiting: set[str] = set()

    @_ends_the_sweep
    def glance(self, trials: list[Trial]) -> None:
        """Does what must not wait for a trial to report.

        Raises:
            Cancelled: the user wants the running trials to end now.
            ClusterError: Ray has ended. ConflictError: another driver took the sweep over.
        """
        self._trials = trials
        self._session.check()
        if self._lease.asked == "cancel":
            for trial_id, attempt in self._running.items():
                tables = rows.cancelled(attempt, self._plan, started=self._begun[trial_id])
                self._ledger.finish(attempt, tables)
                self._watcher.ended(attempt, tables["trials"][0])
            raise Cancelled
        self._note_what_waits()
        self._end_what_takes_too_long()

    def _note_what_waits(self) -> None:
        """Stores why a trial is not placed, once it has waited for a while, and that it is."""
        now = time.monotonic()
        without = []
        for trial in self._trials:
            name = trial.trial_id
            if name not in self._running:
                continue
            if trial.temporary_state.ray_actor is None:
                if now > self._unplaced.setdefault(name, now + _LONG_SECONDS):
                    without.append(name)
                continue
            self._unplaced.pop(name, None)
            if name in self._waiting:
                self._waiting.remove(name)
                self._ledger.note(self._running[name], "trial_placed", self._next_note())
        if not self._waiting.issuperset(without):
            # The others have their place, and their processes are slow to start.
            count = unplaced_groups()
            for name in set(without[-count:] if count else ()) - self._waiting:
                self._waiting.add(name)
                self._ledger.note(
                    self._running[name], "trial_waits", self._why() | self._next_note()
                )
            for name in without:
                self._unplaced[name] = now + _LONG_SECONDS

    def _next_note(self) -> dict[str, int]:
        """Tells a note from an earlier one in the same words, which would be the same event."""
        self._notes += 1
        return {"note": self._notes}

    def _why(self) -> dict[str, Any]:
        asks = bundle(self._plan.spec.resources)
        free = [
            f"{place.name}: {said({name: place.has.get(name, 0.0) for name in asks})} free"
            for place in free_places()
        ]
        workers = self._plan.spec.resources.workers
        return {"needs": f"{workers} × {said(asks)}", "nodes": free}

    def _end_what_takes_too_long(self) -> None:
        hours = self._plan.spec.limits.trial_hours
        if hours is None:
            return
        now = time.monotonic()
        for trial in self._trials:
            name, actor = trial.trial_id, trial.temporary_state.ray_actor
            if name not in self._running or name in self._timed_out or actor is None:
                continue
            if now > self._deadlines.setdefault(name, now + 3600 * hours):
                self._timed_out.add(name)
                ray.kill(actor)  # also one that stands still: its machine ends it

    @_ends_the_sweep
    def suggest(self, trial_id: str) -> Any:
        """Returns the configuration of the next attempt, None to wait, or that all is done."""
        self._check_lease()
        if self._lease.asked:
            return str(Searcher.FINISHED)
        if len(self._running) >= self._plan.spec.search.parallel:
            return None
        attempt = self._ledger.next()
        if not isinstance(attempt, Attempt):
            # What runs may fail and be tried again: until then the search is not over.
            over = attempt == "finished" and not (self._running and not self._ledger.is_hopeless)
            return str(Searcher.FINISHED) if over else None
        self._running[trial_id] = attempt
        self._begun[trial_id] = datetime.now(UTC)
        self._watcher.began(attempt)
        return {
            "trial": attempt.spec,
            "earlier": attempt.earlier,
            "subject": Subject(
                store=self._store.location,
                sweep=self._plan.spec.name,
                trial=attempt.trial,
                attempt=attempt.attempt,
            ),
            "resources": self._plan.spec.resources,
            "fresh": self._fresh,
        }

    @_ends_the_sweep
    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Passes a trial's progress on."""
        self._ran_on[trial_id] = result["ran_on"]
        progress = result.get("progress")
        if isinstance(progress, Progress):
            self._progress[trial_id] = progress
            self._watcher.moved(self._running[trial_id], progress)

    @_ends_the_sweep
    def stops(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Says whether a trial ends with this report, which is stored first."""
        progress = result.get("progress")
        if not isinstance(progress, Progress) or trial_id not in self._running:
            return False
        if not self._ledger.reach(self._running[trial_id], progress):
            return False
        self._stopped[trial_id] = progress
        return True

    @_ends_the_sweep
    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Commits the rows of an attempt that ended, however it did."""
        self._session.check()  # a trial that ended with Ray is as unfinished as before
        self._check_lease()
        attempt, started = self._running[trial_id], self._begun[trial_id]
        rung = self._stopped.pop(trial_id, None)
        if rung is not None:
            so_far = self._so_far(attempt, rung)
            tables = rows.stopped(attempt, so_far, self._plan, rung, started=started)
        elif error or not (result or {}).get("done"):
            state, failure = self._what_happened(trial_id)
            if failure.stage == "store":
                self._check_store(attempt.trial, failure)
            else:
                self._without_store.pop(attempt.trial, None)
            tables = rows.unsuccessful(attempt, failure, self._plan, started=started, state=state)
        else:
            outcome = self._outcome(attempt)
            why = rows.unscored(outcome, self._plan)
            if why is None:
                tables = rows.succeeded(attempt, outcome, self._plan, started=started)
            else:
                tables = rows.unsuccessful(
                    attempt, why, self._plan, started=started, state="failed"
                )
        del self._running[trial_id], self._begun[trial_id]
        self._unplaced.pop(trial_id, None)
        self._waiting.discard(trial_id)
        self._ledger.finish(attempt, tables)
        self._watcher.ended(attempt, tables["trials"][0])

    def _check_lease(self) -> None:
        if self._lease.lost:
            raise ConflictError("another driver took this sweep over; this one stops.")

    def _check_store(self, trial: str, failure: Failure) -> None:
        """Tells one machine's passing trouble with the store from what only the user can mend.

        The trial is not to blame, and no attempt is counted against it. But a machine that never
        sees the store fails within seconds and is free again, for the next attempt and the next.

        Raises:
            StoreError: the store is full, this process cannot write to it either, or a trial came
                as often in a row as it may be tried upon a machine that cannot use it.
        """
        if failure.kind != "node":
            raise StoreError(failure.message)
        self._store.objects.check_writable()
        self._without_store[trial] += 1
        times = self._without_store[trial]
        if times >= self._plan.spec.retry.attempts:
            raise StoreError(
                f"{failure.message} {trial} found no usable store at {times} attempts in a row, "
                "and so the sweep ends; no trial is lost. Mend that machine, or leave it out, and "
                f"go on: ressa resume {self._plan.spec.name}"
            )

    def _what_happened(self, trial_id: str) -> tuple[str, Failure]:
        """Says how an attempt ended that did not come to its end: its state, and why."""
        last = self._progress.get(trial_id, Progress(stage="start"))
        if trial_id in self._timed_out:
            hours = self._plan.spec.limits.trial_hours
            message = f"it took longer than limits.trial_hours ({hours:g}) and was ended"
            return "failed", Failure(kind="timeout", stage=last.stage, message=message)
        trial = next(trial for trial in self._trials if trial.trial_id == trial_id)
        error = _error_of(trial)
        cause = getattr(error, "cause", None) if isinstance(error, RayTaskError) else None
        if isinstance(cause, AttemptFailed):
            failure = replace(cause.failure, micro_batch=last.micro_batch)
            if cause.went_away and failure.kind == "node" and self._ran_out_of_memory(trial_id):
                message = "a worker's process went away: memory ran out"
                failure = replace(failure, kind="oom", message=message)
            is_lost = cause.went_away or failure.kind in ("node", "preempted")
            return "lost" if is_lost else "failed", failure
        kind = "oom" if self._ran_out_of_memory(trial_id) else kind_of_death(str(error))
        why = {"oom": ": memory ran out", "preempted": ": its machine was wanted back"}
        message = f"the trial's process went away{why.get(kind, '')}"
        failure = Failure(
            kind=kind,
            stage=last.stage,
            message=message,
            traceback=None if error is None else str(error),
            micro_batch=last.micro_batch,
        )
        return "lost", failure

    def _ran_out_of_memory(self, trial_id: str) -> bool:
        """Whether a node has ended a process for lack of memory since it began there: its own.

        Not one by which another trial's death was explained; and of a trial that had not reported
        yet it is not known where it was.
        """
        found = [self._has_killed(*where) for where in self._ran_on.get(trial_id, ())]
        return any(found)  # of all of them: each is also remembered

    def _has_killed(self, node: str, before: int) -> bool:
        before = max(before, self._kills.get(node, 0))
        self._kills[node] = max(before, memory_kills_on(node))
        return self._kills[node] > before

    def _so_far(self, attempt: Attempt, rung: Progress) -> Outcome:
        files = self._store.stages.get("rung", attempt.spec.rung_key(rung.step))
        assert files is not None, "a trial stores what it has before it reports a rung"
        return Outcome.of(json.loads(files["content"])["outcome"])

    def _outcome(self, attempt: Attempt) -> Outcome:
        stage = FRESH_OUTCOME if self._fresh else "outcome"
        files = self._store.stages.get(stage, attempt.spec.key)
        assert files is not None, "a trial stores its outcome before it reports its end"
        return Outcome.from_json(files["content"])

    def __getstate__(self) -> dict[str, Any]:
        """Is pickled empty: Tune keeps copies of what it is given, and nothing reads them."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Saves nothing: the store has it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Restores nothing."""
