"""Work that trials share: found in the store under its key, or made now and left there."""

from collections.abc import Callable

from ressa.store import Store
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

    def leave(self, stage: str, key: str, content: bytes) -> None:
        """Stores what a stage made; if another trial was first, its bytes stay."""
        if rank_and_world_size()[0] == 0:
            self.store.put(stage, key, {"content": content})

    def _look(self, stage: str, key: str) -> bytes | None:
        if rank_and_world_size()[0] != 0:
            return None
        files = self.store.get(stage, key)
        return None if files is None else files["content"]
