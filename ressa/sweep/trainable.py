"""One attempt of one trial as a Ray Tune class trainable: `step()` is the trial's `next()`."""

import traceback
from typing import Any

import ray
from ray import tune
from ray.tune import PlacementGroupFactory

from ressa.errors import (
    DamagedStage,
    FailureClass,
    FullStore,
    RepairError,
    RessaError,
    StoreError,
    TrialError,
)
from ressa.records import Failure, Outcome, Progress
from ressa.spec import Resources
from ressa.sweep.gang import Actors, Gang, OwnProcess, lost_connection
from ressa.sweep.places import bundle

OUTSIDE_STEPS = "repair, outside its steps"
"""Where memory ran out that half a micro-batch would not have spared: the questions as tensors, or
those of a rung. Of what runs out in a step the repair loop makes an error of its own."""


class AttemptFailed(Exception):
    """Carries what happened to an attempt from its process to the driver.

    Args:
        failure: what is known of it there.
        went_away: whether a worker's process ended that could not say why itself.
    """

    def __init__(self, failure: Failure, went_away: bool) -> None:
        super().__init__(failure.message)
        self.failure, self.went_away = failure, went_away

    def __reduce__(self) -> tuple[type, tuple[Failure, bool]]:
        return type(self), (self.failure, self.went_away)


def placement(resources: Resources) -> PlacementGroupFactory:
    """Says what a trial occupies: its own process, or an empty head and one bundle a worker."""
    each = bundle(resources)
    if resources.workers == 1:
        return PlacementGroupFactory([each])
    return PlacementGroupFactory(
        [{}] + [each] * resources.workers, strategy=resources.placement.upper()
    )


class TrialTrainable(tune.Trainable):
    """Moves a gang through a trial; the gang stays up from trial to trial (`reuse_actors`).

    A trial that fails by itself raises `AttemptFailed`: Tune then ends the process instead of
    giving it to the next trial, and the gang with it. (To refuse in `reset_config` would cost the
    next trial its attempt.)
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Starts the gang and the first trial."""
        self._gang: Gang | None = None
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Goes on with another trial."""
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        self._config = config
        self._begun = False
        self._stage = "start"

    def step(self) -> dict[str, Any]:
        """Runs the trial up to its next report."""
        try:
            report = self._advance()
        except Exception as error:
            went_away = isinstance(error, ray.exceptions.RayActorError)
            raise AttemptFailed(describe_failure(error, self._stage), went_away) from error
        assert self._gang is not None
        if isinstance(report, Progress):
            self._stage = report.stage
            return {"done": False, "progress": report, "ran_on": self._gang.ran_on}
        # The outcome itself is a stage in the store.
        return {"done": True, "ran_on": self._gang.ran_on}

    def _advance(self) -> Progress | Outcome:
        if self._gang is None:
            self._gang = start_gang(self._config["resources"], self._config["fresh"])
        if not self._begun:
            self._begun = True
            self._gang.begin(
                self._config["trial"], self._config["earlier"], self._config["subject"]
            )
        return self._gang.advance()

    def cleanup(self) -> None:
        """Ends the gang's workers."""
        if self._gang is not None:
            self._gang.close()


def start_gang(resources: Resources, fresh: bool) -> Gang:
    """Starts the workers of a trial: in this process if it is one, else as actors."""
    gang = OwnProcess if resources.workers == 1 else Actors
    return gang(resources, fresh)


def describe_failure(error: BaseException, stage: str) -> Failure:
    """Says what kind of failure an exception is, and where it happened.

    Args:
        stage: where the trial was last, for errors that do not know their stage themselves.
    """
    cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
    kind: FailureClass = "code"
    if isinstance(cause, TrialError):
        kind = cause.failure
    elif isinstance(cause, StoreError) and not isinstance(cause, FullStore):
        kind = "node"  # of this machine's way to the store, or of a stage that is made again
    elif isinstance(cause, MemoryError) or "out of memory" in str(cause).lower():
        kind = "oom"
    elif isinstance(error, ray.exceptions.RayActorError):
        kind = kind_of_death(str(error))
    elif lost_connection(cause):
        kind = "node"  # Ray may notice the other worker's death half a minute later
    known = isinstance(cause, RessaError)
    return Failure(
        kind=kind,
        stage=_stage_of(cause, kind, stage),
        message=str(cause) if known else f"{type(cause).__name__}: {cause}",
        traceback="".join(traceback.format_exception(error)),
    )


def _stage_of(cause: BaseException, kind: FailureClass, stage: str) -> str:
    if isinstance(cause, StoreError) and not isinstance(cause, DamagedStage):
        return "store"
    if isinstance(cause, TrialError) and cause.stage != TrialError.stage:
        return cause.stage
    died = isinstance(cause, ray.exceptions.RayActorError)
    if stage == RepairError.stage and kind == "oom" and not died:
        return OUTSIDE_STEPS
    return stage


def kind_of_death(text: str) -> FailureClass:
    """Says from Ray's words why a process went away that cannot say it itself."""
    if "low on memory" in text:  # Ray ends processes before the system has to
        return "oom"
    return "preempted" if "preempted" in text else "node"
