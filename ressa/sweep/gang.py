"""The workers of one trial, advancing through `trial.run` in step (SPMD).

One worker runs in the trial's own process. Several are actors on the bundles of the trial's
placement group, joined in one torch.distributed group whose rank 0 decides.
"""

import gc
import os
import platform
import re
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from ressa.errors import DamagedStage, FullStore, NotFoundError, RessaError, StoreError, TrialError
from ressa.records import Outcome, Progress, TrialSpec
from ressa.spec import Resources
from ressa.store import open_store
from ressa.sweep.diary import Diary, Subject
from ressa.sweep.kills import memory_kills, this_node
from ressa.sweep.places import bundle, meeting_place, node_address

if TYPE_CHECKING:
    from ressa.kept import Kept

_GLANCE_SECONDS = 1.0
"""How often a trial that waits for its workers looks whether one of them has failed."""
_GRACE_SECONDS = 3.0
"""How long the others are waited for when one worker failed: the cause may be another's."""
_LOST_SECONDS = 90.0
"""The same when one lost its connection: until Ray notices that a machine is gone, which takes it
a minute by its defaults, it would put the next attempt onto that machine again."""
_LOST_CONNECTION = re.compile(
    r"^Dist(Backend|Network|Store)Error|^RuntimeError.*(\bgloo\b|NCCL)", re.IGNORECASE
)


Where: TypeAlias = tuple[str, int]
"""A worker's node, and how many kills for memory it had counted when the attempt began."""


class _ToldToEnd(BaseException):
    """SIGTERM: the machine is wanted back. No `Exception`, so that nothing on the way keeps it."""


def _listen() -> None:
    """Makes SIGTERM break off what this process does, once; the next one ends the process."""
    if threading.current_thread() is not threading.main_thread():
        return
    before = signal.getsignal(signal.SIGTERM)
    if getattr(before, "__name__", "") == "_end":
        return

    def _end(number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, before)
        raise _ToldToEnd

    signal.signal(signal.SIGTERM, _end)


@contextmanager
def _preemptible() -> Iterator[None]:
    """Turns a SIGTERM meanwhile into the failure that it is."""
    _listen()
    try:
        yield
    except _ToldToEnd:
        raise TrialError("the trial's process was told to end (SIGTERM)", "preempted") from None


@contextmanager
def _on_this_machine() -> Iterator[None]:
    """Says in an error of the store which machine it is that cannot use it."""
    try:
        yield
    except (FullStore, DamagedStage):
        raise
    except StoreError as error:
        raise StoreError(f"on {platform.node()}: {error}") from error


def _end_with_raylet() -> None:
    """Ends this process when its raylet ends, even in an exchange with machines that are gone.

    Ray's own way waits for the exchange, which holds a GPU's memory until it gives up.
    """
    raylet = os.getppid()

    def watch() -> None:
        while os.getppid() == raylet:
            time.sleep(_GLANCE_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="ressa-raylet", daemon=True).start()


class Worker:
    """One rank of a gang: holds the trial's generator and moves it on."""

    def __init__(self, rank: int, resources: Resources, fresh: bool) -> None:
        _end_with_raylet()
        self._resources, self._fresh = resources, fresh
        self._diary = Diary(rank)
        self._kept: Kept | None = None
        self._steps: Generator[Progress] | None = None
        self._outcome: Outcome | None = None
        self._meeting: Any = None  # goes with this worker

    def rendezvous(self) -> tuple[str, int]:
        """Offers an open port of this worker's for the gang to meet at."""
        address, self._meeting = meeting_place()
        return address, self._meeting.port

    def join(self, rank: int, world_size: int, address: str, port: int) -> None:
        """Joins the process group; rank, size and rendezvous come from Ray, never host names."""
        from ressa import workers

        self._settle()
        workers.join(rank, world_size, address, port, own=node_address())

    def _settle(self) -> None:
        """Takes the share of this machine that the trial was given."""
        from ressa import workers

        workers.use_device(
            self._resources.gpus_per_worker, deterministic=self._resources.deterministic
        )
        workers.set_threads(self._resources.cpus_per_worker)

    def begin(self, trial: TrialSpec, earlier: Sequence[str], subject: Subject) -> Where:
        """Starts an attempt, which may go on from repair checkpoints of the trial's other keys.

        Returns:
            Where it runs.
        """
        from ressa.kept import Kept
        from ressa.memory import free_cache
        from ressa.sweep.claims import RayClaims
        from ressa.trial import run

        if self._steps is not None:
            self._steps.close()  # of a trial that early stopping ended: its engine goes first
            self._steps = None
            free_cache()  # or the next model would find the last one's memory taken
        else:
            gc.freeze()  # what imports made; to look through it each time takes 0.3 s
        with _on_this_machine():
            check_seen(subject)
        self._diary.begin(subject)
        self._settle()
        self._kept = self._kept or Kept()
        self._steps = self._follow(
            run(
                trial,
                subject.store,
                earlier=earlier,
                claims=RayClaims(),
                kept=self._kept,
                fresh=self._fresh,
            )
        )
        return this_node(), memory_kills()

    def advance(self) -> Progress | Outcome:
        """Runs until the trial reports progress, or to its end.

        Raises:
            TrialError: the trial failed; "preempted" if the process was told to end.
        """
        assert self._steps is not None, "begin() comes first"
        try:
            with _preemptible(), _on_this_machine():
                for progress in self._steps:
                    self._diary.note(_said(progress))
                    return progress
        except Exception:
            self._diary.fail()
            raise
        assert self._outcome is not None
        self._diary.note("done")
        self._diary.store()
        return self._outcome

    def _follow(self, steps: Any) -> Generator[Progress]:
        self._outcome = yield from steps


class Gang(Protocol):
    """What the trainable needs of a trial's workers."""

    ran_on: tuple[Where, ...]
    """Where each worker runs; nothing is known before an attempt has begun."""

    def begin(self, trial: TrialSpec, earlier: Sequence[str], subject: Subject) -> None: ...
    def advance(self) -> Progress | Outcome: ...
    def close(self) -> None: ...


class OwnProcess:
    """A gang of one, in the trial's own process."""

    def __init__(self, resources: Resources, fresh: bool) -> None:
        self._worker = Worker(0, resources, fresh)
        self.ran_on: tuple[Where, ...] = ()

    def begin(self, trial: TrialSpec, earlier: Sequence[str], subject: Subject) -> None:
        """Starts an attempt."""
        self.ran_on = (self._worker.begin(trial, earlier, subject),)

    def advance(self) -> Progress | Outcome:
        """Runs to the next report."""
        return self._worker.advance()

    def close(self) -> None:
        """Nothing to stop."""


class Actors:
    """A gang of actors, one on each bundle of the trial's own placement group."""

    def __init__(self, resources: Resources, fresh: bool) -> None:
        import ray
        from ray.util import get_current_placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        remote: Any = ray.remote(Worker)
        group: Any = get_current_placement_group()
        self._ray = ray
        self.ran_on: tuple[Where, ...] = ()
        # Ray drops the empty bundle of the trial's own process, so workers are bundles 0, 1, …
        self._actors = [
            remote.options(
                **_options(resources),
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    placement_group=group, placement_group_bundle_index=index
                ),
            ).remote(index, resources, fresh)
            for index in range(resources.workers)
        ]
        try:
            address, port = ray.get(self._actors[0].rendezvous.remote())
            self._all("join", lambda rank: (rank, resources.workers, address, port))
        except BaseException:
            self.close()  # nobody else would: those who still wait for one that died hold a GPU
            raise

    def _all(self, method: str, arguments: Callable[[int], tuple[Any, ...]]) -> list[Any]:
        """Calls a method of every worker; raises what is to blame if one of them fails.

        A worker that died or failed leaves the others waiting for it in an exchange, or failing
        because it is gone: neither is waited for long, nor taken for the cause.
        """
        calls = [
            getattr(actor, method).remote(*arguments(rank))
            for rank, actor in enumerate(self._actors)
        ]
        done: list[Any] = []
        with _preemptible():
            while len(done) < len(calls):
                done, _ = self._ray.wait(
                    calls, num_returns=len(calls), timeout=_GLANCE_SECONDS, fetch_local=False
                )
                errors = list(filter(None, map(self._error, done)))
                if errors:
                    lost = any(lost_connection(getattr(e, "cause", e)) for e in errors)
                    patience = _LOST_SECONDS if lost else _GRACE_SECONDS
                    done, _ = self._ray.wait(
                        calls, num_returns=len(calls), timeout=patience, fetch_local=False
                    )
                    raise min(filter(None, map(self._error, done)), key=self._remoteness)
        return self._ray.get(calls)

    def _error(self, call: Any) -> Exception | None:
        try:
            self._ray.get(call)
        except Exception as error:
            return error
        return None

    def _remoteness(self, error: Exception) -> int:
        """How far from the cause an error is: a death, a trial's failure, a lost connection."""
        if isinstance(error, self._ray.exceptions.RayActorError):
            return 0
        return 1 if isinstance(getattr(error, "cause", error), RessaError) else 2

    def begin(self, trial: TrialSpec, earlier: Sequence[str], subject: Subject) -> None:
        """Starts an attempt on every worker."""
        self.ran_on = tuple(self._all("begin", lambda rank: (trial, earlier, subject)))

    def advance(self) -> Progress | Outcome:
        """Runs every worker to the next report; rank 0's is returned."""
        reports: list[Progress | Outcome] = self._all("advance", lambda rank: ())
        return reports[0]

    def close(self) -> None:
        """Ends the workers."""
        for actor in self._actors:
            self._ray.kill(actor)


def lost_connection(cause: BaseException) -> bool:
    """Whether it is torch.distributed's word that another worker, or the way to it, is gone."""
    return bool(_LOST_CONNECTION.search(f"{type(cause).__name__}: {cause}"))


def _said(progress: Progress) -> str:
    return (
        f"{progress.stage}  {progress.step}/{progress.steps}" if progress.steps else progress.stage
    )


def _options(resources: Resources) -> dict[str, Any]:
    """What a worker asks of its bundle, in the words of an actor's options."""
    asks = bundle(resources)
    named = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}
    options: dict[str, Any] = {name: asks.pop(kind, 0) for name, kind in named.items()}
    return {name: amount for name, amount in options.items() if amount} | {"resources": asks}


def check_seen(subject: Subject) -> None:
    """Makes sure that this machine sees the store that the driver writes to.

    Raises:
        StoreError: it does not.
    """
    try:
        open_store(subject.store).sweep(subject.sweep)
    except NotFoundError as error:
        raise StoreError(
            f"this machine does not see the store {subject.store}, where the driver writes: "
            f"{error} Every node needs that folder, shared, or a store at a URL."
        ) from error
