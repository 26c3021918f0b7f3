"""What a process keeps from trial to trial, so that the next one need not read it again.

Nothing here changes a result: each trial gets a fresh copy of the dense model, questions are the
same tensors whoever encodes them, and pictures look the same to vision towers of equal weights.
"""

import copy
from collections.abc import Callable, Generator, Hashable, Iterable
from dataclasses import replace
from typing import Any

from ressa.models import VLM, Batch, load_vlm
from ressa.records import TrialSpec

_MODEL_BYTES = 2**30
"""A larger model is read anew: from the file it takes as long as from memory, and less of that."""
_BATCH_BYTES = 2**28
"""Questions that take more are encoded anew by each trial."""


class Kept:
    """The dense model that trials of this process began with, and questions as tensors."""

    def __init__(self) -> None:
        self._model: tuple[Hashable, VLM] | None = None
        self._batches: dict[Hashable, list[Batch]] = {}
        self._bytes = 0

    def dense(self, trial: TrialSpec) -> VLM:
        """Returns a dense model that the trial may change, on the CPU."""
        name = (trial.model.model_dump_json(), trial.fingerprint)
        if self._model is None or self._model[0] != name:
            self.__init__()  # type: ignore[misc]  # questions were encoded for the old model
            vlm = load_vlm(trial.model)
            if vlm.model.get_memory_footprint() > _MODEL_BYTES:
                return vlm
            self._model = (name, vlm)
        vlm = self._model[1]
        return replace(vlm, model=copy.deepcopy(vlm.model))

    def encoded(
        self, name: Hashable, encode: Callable[[], Iterable[Batch]]
    ) -> Generator[Batch, None, None]:
        """Yields what `encode` yielded under a name the first time.

        That first time each batch is handed on as it is made. All are kept once they are read to
        the end, and no more than may be kept is held on the way there.
        """
        if name in self._batches:
            yield from self._batches[name]
            return
        held: list[Batch] = []
        room = 0 if self._model is None else _BATCH_BYTES - self._bytes
        size = 0
        for batch in encode():
            size += _bytes(batch)
            if size > room:
                held.clear()
                yield batch
            else:
                held.append(replace(batch, seen={}))
                yield held[-1]
        if size <= room:
            self._bytes += size
            self._batches[name] = held


def _bytes(batch: Batch) -> int:
    tensors: list[Any] = [*batch.inputs.values(), batch.image_index, batch.labels]
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)
