"""Runs a sweep on Ray Tune: one Tune trial is one attempt, and the store is told everything.

Tune gives placement, process reuse and failure detection. What to run next is the ledger's word,
and what happened is what the store holds: no `Tuner.restore`, no Tune retries.
"""

import functools
import json
import logging
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar

from ray import tune
from ray.tune import FailureConfig, RunConfig, TuneConfig
from ray.tune.search import Searcher

from ressa.errors import ConflictError, StoreError
from ressa.records import Failure, Outcome, Progress
from ressa.store import Lease, Store
from ressa.sweep import claims, rows
from ressa.sweep.ledger import Attempt, Ledger
from ressa.sweep.plan import SweepPlan
from ressa.sweep.stopping import StopAtRungs
from ressa.sweep.trainable import TrialTrainable, placement

P = ParamSpec("P")
R = TypeVar("R")


class Watcher(Protocol):
    """Is told how the sweep goes, for people to see."""

    def planned(self, trials: int, finished: dict[str, Any]) -> None: ...
    def began(self, attempt: Attempt) -> None: ...
    def moved(self, attempt: Attempt, progress: Progress) -> None: ...
    def ended(self, attempt: Attempt, row: dict[str, Any]) -> None: ...


def run_trials(
    plan: SweepPlan,
    store: Store,
    ledger: Ledger,
    lease: Lease,
    watcher: Watcher,
    *,
    folder: Path,
    fresh: bool,
) -> None:
    """Runs every trial that is left, with Ray already up; raises what ended the sweep early.

    Args:
        folder: where Tune may keep its own state; nothing reads it again.
        fresh: lets each trial make all of its stages itself.
    """
    watcher.planned(ledger.planned, dict(ledger.results))
    searcher = StoreSearcher(ledger, plan, store, lease, watcher, fresh)
    coordinator = claims.start()  # it lives as long as this handle
    resources = plan.spec.resources
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
            storage_path=str(folder / "tune"),
            verbose=0,
            failure_config=FailureConfig(max_failures=0),
        ),
    )
    # What Tune has to say of trials is said by the watcher and kept in rows.
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    try:
        tuner.fit()
        del coordinator
    except _GiveUp as end:
        raise end.error from end.error.__cause__


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


class StoreSearcher(Searcher):
    """Hands the ledger's attempts to Tune and commits what comes back."""

    def __init__(
        self,
        ledger: Ledger,
        plan: SweepPlan,
        store: Store,
        lease: Lease,
        watcher: Watcher,
        fresh: bool,
    ) -> None:
        super().__init__()
        self._ledger, self._plan, self._store = ledger, plan, store
        self._lease, self._watcher, self._fresh = lease, watcher, fresh
        self._running: dict[str, Attempt] = {}
        self._begun: dict[str, datetime] = {}
        self._stages: dict[str, str] = {}
        self._stopped: dict[str, Progress] = {}

    @_ends_the_sweep
    def suggest(self, trial_id: str) -> Any:
        """Returns the configuration of the next attempt, None to wait, or that all is done."""
        if self._lease.lost:
            raise ConflictError("another driver took this sweep over; this one stops.")
        if len(self._running) >= self._plan.spec.search.parallel:
            return None
        attempt = self._ledger.next()
        if attempt == "wait":
            return None
        if not isinstance(attempt, Attempt):
            return str(Searcher.FINISHED)
        self._running[trial_id] = attempt
        self._begun[trial_id] = datetime.now(UTC)
        self._watcher.began(attempt)
        return {
            "trial": attempt.spec,
            "store": self._store.location,
            "resources": self._plan.spec.resources,
            "fresh": self._fresh,
        }

    @_ends_the_sweep
    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Passes a trial's progress on."""
        progress = result.get("progress")
        if isinstance(progress, Progress):
            self._stages[trial_id] = progress.stage
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
        attempt = self._running.pop(trial_id)
        started = self._begun.pop(trial_id)
        failure = (result or {}).get("failure")
        state = "failed"
        if error or not (result or {}).get("done"):
            state, failure = "lost", self._lost(trial_id)
        if isinstance(failure, Failure) and failure.stage == "store":
            raise StoreError(failure.message)  # the trial is as unfinished as before
        rung = self._stopped.pop(trial_id, None)
        if rung is not None:
            so_far = self._so_far(attempt, rung)
            tables = rows.stopped(attempt, so_far, self._plan, rung, started=started)
        elif isinstance(failure, Failure):
            tables = rows.unsuccessful(attempt, failure, self._plan, started=started, state=state)
        else:
            tables = rows.succeeded(attempt, self._outcome(attempt), self._plan, started=started)
        self._ledger.finish(attempt, tables)
        self._watcher.ended(attempt, tables["trials"][0])

    def _lost(self, trial_id: str) -> Failure:
        return Failure(
            kind="node",
            stage=self._stages.get(trial_id, "start"),
            message="the trial's process went away; `ressa resume --failed` tries it again",
        )

    def _so_far(self, attempt: Attempt, rung: Progress) -> Outcome:
        files = self._store.stages.get("rung", attempt.spec.rung_key(rung.step))
        assert files is not None, "a trial stores what it has before it reports a rung"
        return Outcome(**json.loads(files["content"])["outcome"])

    def _outcome(self, attempt: Attempt) -> Outcome:
        stage = "outcome-fresh" if self._fresh else "outcome"
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
