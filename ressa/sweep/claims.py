"""Who makes a stage that several trials of one driver want at once: a small Ray actor decides.

A claim dies with its claimant. The coordinator holds the claimant's actor handle and keeps a call
to it pending: Ray ends that call with an error as soon as the process or its node is gone.
"""

import asyncio
import contextlib
from typing import Any

import ray
from ray.exceptions import RayActorError

NAME = "ressa-claims"
"""The coordinator's name, in the driver's own namespace."""

_MOMENT = 2.0
"""Seconds that a trial waits at a time: between two of them it can be stopped."""
_BETWEEN_CALLS = 0.5  # seconds


class Coordinator:
    """Holds the claims of one driver; it runs as an actor with as many callers as there are."""

    def __init__(self) -> None:
        self._holders: dict[str, str] = {}
        self._freed: dict[str, asyncio.Event] = {}
        self._watches: set[asyncio.Task[None]] = set()

    async def take(self, name: str, claimant: str, actor: Any) -> bool:
        """Claims a name for an actor, given by its id and handle; False if another one has it."""
        if name in self._holders:
            return self._holders[name] == claimant
        self._holders[name] = claimant
        self._freed[name] = asyncio.Event()
        watch = asyncio.create_task(self._watch(name, claimant, actor, self._freed[name]))
        self._watches.add(watch)  # the loop itself holds tasks but weakly
        watch.add_done_callback(self._watches.discard)
        return True

    async def drop(self, name: str, claimant: str) -> None:
        """Gives a claim back."""
        if self._holders.get(name) == claimant:
            del self._holders[name]
            self._freed.pop(name).set()

    async def wait(self, name: str, seconds: float) -> None:
        """Returns when a name is free, or after so many seconds."""
        freed = self._freed.get(name)
        if freed is not None:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(freed.wait(), seconds)

    async def _watch(self, name: str, claimant: str, actor: Any, freed: asyncio.Event) -> None:
        while not freed.is_set():
            try:
                # Answered when the actor is done with its present step, or dead.
                await actor.__ray_ready__.remote()
            except RayActorError:
                await self.drop(name, claimant)
                return
            await asyncio.sleep(_BETWEEN_CALLS)


def start() -> Any:
    """Starts the driver's coordinator and returns its handle, which keeps it alive."""
    actor: Any = ray.remote(Coordinator)
    return actor.options(name=NAME, num_cpus=0, max_concurrency=1000).remote()


class RayClaims:
    """The claims of a trial in a Ray actor.

    If the coordinator is gone everyone works alone: the first to finish counts, as across drivers.
    """

    def __init__(self) -> None:
        try:
            self._coordinator: Any = ray.get_actor(NAME)
        except ValueError:  # there is none of that name
            self._coordinator = None
        context = ray.get_runtime_context()
        self._id, self._actor = context.get_actor_id(), context.current_actor

    def take(self, name: str) -> bool:
        """Claims a stage."""
        return bool(self._ask("take", name, self._id, self._actor, otherwise=True))

    def wait(self, name: str) -> None:
        """Waits for a moment."""
        self._ask("wait", name, _MOMENT)

    def drop(self, name: str) -> None:
        """Gives a claim back."""
        self._ask("drop", name, self._id)

    def _ask(self, method: str, *arguments: Any, otherwise: Any = None) -> Any:
        if self._coordinator is None:
            return otherwise
        try:
            return ray.get(getattr(self._coordinator, method).remote(*arguments))
        except RayActorError:
            return otherwise
