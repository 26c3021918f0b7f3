"""Work that trials share: found in the store under its key, or made now and left there.

Trials of one driver that want the same stage at the same time agree, by `Claims`, on who makes it:
the others say that they wait, and read it. Across drivers nobody waits: the first to finish counts.
A trial never holds one claim while it asks for another, so that no two can wait for each other.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Protocol, TypeAlias, TypeVar, overload

from ressa.errors import DamagedStage
from ressa.records import Progress
from ressa.store import StageFiles, Store
from ressa.workers import agree, rank_and_world_size

T = TypeVar("T")
Shared: TypeAlias = Generator[Progress, None, T]
"""Yields while another trial is waited for, and returns what is shared."""


class Claims(Protocol):
    """Who makes a stage that several trials of a driver want at once."""

    def take(self, name: str) -> bool:
        """Claims a stage; False if another trial, which lives, has it. Ends with its claimant."""

    def wait(self, name: str) -> None:
        """Returns when a stage is free, or after a moment."""

    def drop(self, name: str) -> None:
        """Gives a claim back; one that is not held is fine."""


class Alone:
    """The claims of a trial that has nobody beside it."""

    def take(self, name: str) -> bool:
        """Nobody else has it."""
        return True

    def wait(self, name: str) -> None:
        """Nobody else has it."""

    def drop(self, name: str) -> None:
        """Nobody else wants it."""


class Stages:
    """Work that is done once per store: found there by its key, or done now and left there."""

    def __init__(self, store: Store, claims: Claims | None = None) -> None:
        self.store = store.stages
        self.computed: list[str] = []
        """Stages that were made here, as "stage/key", in their order."""
        self.reused: list[str] = []
        """Stages that were found."""
        self._claims = Alone() if claims is None else claims

    def find(self, stage: str, key: str) -> bytes | None:
        """Returns what a stage left, or None."""
        found = None
        if _leads():
            files = self.store.get(stage, key)
            found = None if files is None else files.get("content")
        return agree(found)

    def find_parts(self, stage: str, key: str) -> "Parts | None":
        """Returns what a stage left, part by part, or None."""
        files = self.store.open(stage, key) if _leads() else None
        return Parts(files) if agree(files is not None) else None

    def once(self, stage: str, key: str, make: Callable[[], bytes]) -> Shared[bytes]:
        """Returns what a stage left under its key, or makes it with all workers."""

        def made() -> bytes:
            content = make()
            self.leave(stage, key, content)
            return content

        return (yield from self._shared(stage, key, lambda: self.find(stage, key), made))

    def once_in_parts(
        self, stage: str, key: str, make: Callable[[], Iterable[bytes]]
    ) -> "Shared[Parts]":
        """Returns what a stage left, part by part, or makes it with all workers.

        For what is too large to be held at once: a part is written before the next one is made.
        """

        def made() -> Parts:
            writer = self.store.writer(stage, key) if _leads() else None
            number = 0  # counted by hand: `enumerate` would hold a part while the next is made
            for content in make():
                if writer is not None:
                    writer.add(f"{number:05d}", content)
                number += 1  # noqa: SIM113
                del content
            if writer is None:
                return Parts(None)
            writer.finish()
            files = self.store.open(stage, key)
            if files is None:  # a driver that had found an older one damaged, say
                raise DamagedStage(f"stage {stage} {key} was removed as it was made")
            return Parts(files)

        return (yield from self._shared(stage, key, lambda: self.find_parts(stage, key), made))

    def leave(self, stage: str, key: str, content: bytes) -> None:
        """Stores what a stage made; if another trial was first, its bytes stay."""
        if _leads():
            self.store.put(stage, key, {"content": content})

    def replace(self, stage: str, key: str, content: bytes) -> None:
        """Stores what a stage made in place of what was there."""
        if _leads():
            self.store.remove(stage, key)
        self.leave(stage, key, content)

    def _shared(
        self, stage: str, key: str, look: Callable[[], T | None], make: Callable[[], T]
    ) -> Shared[T]:
        name = f"{stage}/{key}"
        found = look()
        while found is None:
            if agree(self._claims.take(name) if _leads() else None):
                try:
                    found = look()  # its maker may have finished between our look and our claim
                    if found is None:
                        found = make()
                        self.computed.append(name)
                        return found
                finally:
                    if _leads():
                        self._claims.drop(name)
            else:
                yield Progress(stage=f"wait for {stage}")
                if _leads():
                    self._claims.wait(name)
                found = look()
        self.reused.append(name)
        return found


class Parts(Sequence[bytes]):
    """The parts of a stage, each read when it is asked for, by all workers together."""

    def __init__(self, files: StageFiles | None) -> None:
        self._files = files  # rank 0's alone
        self._names = agree(sorted(files or ()))

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[bytes]:
        # Unlike a sequence's own, it does not hold a part while the caller works on it.
        return map(self.__getitem__, range(len(self)))

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        name = self._names[index]  # raises IndexError on every worker, which ends an iteration
        return agree(None if self._files is None else self._files[name])


def _leads() -> bool:
    return rank_and_world_size()[0] == 0
