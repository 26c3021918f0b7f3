"""Work that trials share: found in the store under its key, or made now and left there."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import overload

from ressa.store import StageFiles, Store
from ressa.workers import agree, rank_and_world_size


class Stages:
    """Work that is done once per store: found there by its key, or done now and left there."""

    def __init__(self, store: Store) -> None:
        self.store = store.stages

    def find(self, stage: str, key: str) -> bytes | None:
        """Returns what a stage left, or None."""
        return agree(self._look(stage, key))

    def once(self, stage: str, key: str, make: Callable[[], bytes]) -> bytes:
        """Returns what a stage left under its key, or makes it with all workers."""
        content = self.find(stage, key)
        if content is None:
            content = make()
            self.leave(stage, key, content)
        return content

    def once_in_parts(self, stage: str, key: str, make: Callable[[], Iterable[bytes]]) -> "Parts":
        """Returns what a stage left, part by part, or makes it with all workers.

        For what is too large to be held at once: a part is written before the next one is made.
        """
        leads = rank_and_world_size()[0] == 0
        files = self.store.open(stage, key) if leads else None
        if not agree(files is not None):
            writer = self.store.writer(stage, key) if leads else None
            number = 0  # counted by hand: `enumerate` would hold a part while the next is made
            for content in make():
                if writer is not None:
                    writer.add(f"{number:05d}", content)
                number += 1  # noqa: SIM113
                del content
            if writer is not None:
                writer.finish()
                files = self.store.open(stage, key)
        return Parts(files)

    def leave(self, stage: str, key: str, content: bytes) -> None:
        """Stores what a stage made; if another trial was first, its bytes stay."""
        if rank_and_world_size()[0] == 0:
            self.store.put(stage, key, {"content": content})

    def _look(self, stage: str, key: str) -> bytes | None:
        if rank_and_world_size()[0] != 0:
            return None
        files = self.store.get(stage, key)
        return None if files is None else files["content"]


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
