"""What can go wrong, grouped by what the reader does next; exit codes follow the groups.

RessaError
├── SpecError                  fix the sweep file; nothing has run yet               exit 2
│   ├── UnknownNameError       a method, model or task that is not registered
│   └── InfeasibleAllocation   no split meets the sparsity budget
├── MissingExtraError          the work needs packages that are not installed        exit 2
├── NotFoundError              no such sweep, trial or store                         exit 3
├── ConflictError              same name, other spec; the lease is held              exit 4
├── ClusterError               Ray cannot start or be reached                        exit 5
├── StoreError                 results cannot be read or written                     exit 5
│   ├── FullStore              the sweep stops
│   └── DamagedStage           the trial that came upon it is tried again
├── TooManyFailures            `limits.failed_trials` ended the sweep                exit 1
├── TrialError                 one trial is lost; the sweep goes on                  exit 1
│   └── CalibrationError · PruneError · RepairError · EvaluationError
└── VerificationError          something is not what its record says                 exit 7
"""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Literal

FailureClass = Literal["oom", "numeric", "data", "node", "preempted", "timeout", "code"]


class RessaError(Exception):
    """Root of every error that `ressa` raises on purpose: its message is meant for the user."""

    exit_code: ClassVar[int] = 1


class SpecError(RessaError):
    """The sweep file, or a `--set`, asks for something that cannot be; nothing has run.

    Attributes:
        faults: all that is wrong with a sweep file, each as one line of text; may be empty.
    """

    exit_code = 2

    def __init__(self, message: str, faults: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.faults = tuple(faults)


class UnknownNameError(SpecError):
    """A name that no built-in and no installed plug-in answers to."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind, self.name, self.known = kind, name, sorted(known)
        super().__init__(
            f"unknown {kind} {name!r}.{did_you_mean(name, self.known)} "
            f"Known: {', '.join(self.known)}."
        )

    def __reduce__(self) -> tuple[type, tuple[str, str, list[str]]]:
        return type(self), (self.kind, self.name, self.known)


class InfeasibleAllocation(SpecError):
    """No split of the towers meets the sparsity budget."""


class MissingExtraError(RessaError):
    """A verb that runs models was called on an installation that lacks torch, Ray or DeepSpeed."""

    exit_code = 2


class NotFoundError(RessaError):
    """No such store, sweep or trial."""

    exit_code = 3


class ConflictError(RessaError):
    """The same name with another spec, or a sweep that another live driver works on."""

    exit_code = 4


class ClusterError(RessaError):
    """Ray cannot be started or reached, or can never place a trial."""

    exit_code = 5


class StoreError(RessaError):
    """The store cannot be read or written."""

    exit_code = 5


class FullStore(StoreError):
    """The store has no room left: what one machine cannot write there, none can."""


class DamagedStage(StoreError):
    """A stage's bytes are no longer those that were written; it will be made again."""


@contextmanager
def as_stored(what: str) -> Iterator[None]:
    """Makes one error of whatever a decoder of stored bytes stumbles over: a stranger's, say."""
    try:
        yield
    except (RessaError, MemoryError):
        raise
    except Exception as error:
        raise DamagedStage(
            f"what the store holds as {what} is not what ressa writes there ({error}). "
            "Remove that folder of its stages/, or name another store."
        ) from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Makes the folder of a file that the user asked for; what goes wrong in the block names it.

    Raises:
        StoreError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error


class TooManyFailures(RessaError):
    """As many trials have failed as `limits.failed_trials` allows; the sweep went no further."""


class TrialError(RessaError):
    """One trial failed by itself; `failure` says what kind of failure it was."""

    stage: ClassVar[str] = "trial"

    def __init__(self, message: str, failure: FailureClass = "code") -> None:
        super().__init__(message)
        self.failure = failure

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        # Ray carries errors between processes by pickling; keep the failure class on the way.
        return type(self), (str(self), self.failure)


class CalibrationError(TrialError):
    """Statistics could not be taken."""

    stage = "calibration"


class PruneError(TrialError):
    """A mask could not be made."""

    stage = "prune"


class RepairError(TrialError):
    """Repair diverged or could not run."""

    stage = "repair"


class EvaluationError(TrialError):
    """A model's answers could not be scored."""

    stage = "evaluate"


class VerificationError(RessaError):
    """A model or file is not what its record says."""

    exit_code = 7


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or its type where it says nothing."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns ' Did you mean …?' for the nearest known name, or nothing if none is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""
