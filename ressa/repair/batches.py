"""Which questions each step of repair sees, and which of them each worker gets.

The global batches follow from the examples and a seed alone. Workers share out each batch, so the
number of workers changes neither what is learnt from nor in which order.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, count, islice, pairwise
from tempfile import gettempdir
from typing import TypeAlias

import torch
from torch import Tensor

from ressa.errors import RepairError
from ressa.models.vlm import NO_LABEL, VLM, Batch, Pictures
from ressa.records import Example
from ressa.repair.distillation import AnyTeacher, StoredTeacher, trimmed
from ressa.repair.engine import accumulation
from ressa.spec import Repair
from ressa.workers import rank_and_world_size

MicroBatch: TypeAlias = tuple[Batch, Tensor | None]
"""Questions, where the model is, and what the teacher says of them if there is a teacher."""

QUESTIONS_PER_IMAGE = 4
"""Per batch: enough that encoding an image is shared, few enough that a batch has many images."""


def global_batches(
    examples: Sequence[Example], batch_size: int, seed: int
) -> Iterator[list[list[int]]]:
    """Yields batch after batch: exactly `batch_size` example indices, in one list per image.

    In every pass over the data the images come in a new order, each with up to four of its
    questions, drawn afresh; the image that ends a batch may bring fewer. The next pass begins
    within a batch, so every batch is full.
    """
    by_image: dict[str, list[int]] = {}
    for index, example in enumerate(examples):
        by_image.setdefault(example.image_id, []).append(index)
    batch: list[list[int]] = []
    room = batch_size
    for epoch in count():
        draw = random.Random(f"repair order {seed} {epoch}")
        for image_id in draw.sample(sorted(by_image), len(by_image)):
            questions = by_image[image_id]
            size = min(QUESTIONS_PER_IMAGE, len(questions), room)
            batch.append(draw.sample(questions, size))
            room -= size
            if room == 0:
                yield batch
                batch, room = [], batch_size


def share(batch: Sequence[Sequence[int]], rank: int, world_size: int) -> list[int]:
    """One worker's part of a global batch: a run of as many questions as the others have.

    At its ends a run may cut an image's questions in two, and both workers then encode the image.
    By whole images parts would differ, and a micro-batch of one might find no question left.
    """
    return pieces(list(chain.from_iterable(batch)), world_size)[rank]


def pieces(part: Sequence[int], how_many: int) -> list[list[int]]:
    """Cuts questions into runs that are nearly equal, and none empty if there are as many."""
    cuts = [len(part) * index // how_many for index in range(how_many + 1)]
    return [list(part[start:stop]) for start, stop in pairwise(cuts)]


class RepairData:
    """The global batches of a repair, and this worker's part of each."""

    def __init__(
        self,
        vlm: VLM,
        examples: Sequence[Example],
        task: Pictures,
        teacher: AnyTeacher | None,
        repair: Repair,
        seed: int,
        keep: Callable[[Callable[[], Batch]], Batch] | None = None,
    ) -> None:
        self._examples = examples
        self.repair = repair
        self.rank, self.world_size = rank_and_world_size()
        self._batches = list(
            islice(global_batches(examples, repair.batch_size, seed), repair.steps)
        )
        assert repair.batch_size % self.world_size == 0, "workers share a batch equally"
        used = sorted(
            {index for batch in self._batches for index in share(batch, self.rank, self.world_size)}
        )
        self._row = {index: number for number, index in enumerate(used)}
        if isinstance(teacher, StoredTeacher):
            teacher = teacher.about([examples[index] for index in used])
        self._teacher = teacher
        self.device = vlm.model.device
        """Where the model is."""

        def encode() -> Batch:
            return vlm.encode(
                [examples[index] for index in used],
                task.image,
                answers=True,
                blank=task.blank_image() if repair.objective == "text" else None,
                device=torch.device("cpu"),
            )

        # Reading, resizing and tokenising once is far cheaper than in every step. All of it lies in
        # main memory or on disk: a GPU has room for the pictures of a micro-batch alone.
        try:
            self._encoded = encode() if keep is None else keep(encode)
        except OSError as error:
            raise RepairError(
                f"the pictures of repair do not fit in {gettempdir()}: {error}. "
                "Set TMPDIR to a larger disk, or repair.data.samples lower",
                "node",
            ) from error

    @property
    def is_taught(self) -> bool:
        """Whether there is a teacher."""
        return self._teacher is not None

    @property
    def share(self) -> int:
        """Questions of a worker and step."""
        return self.repair.batch_size // self.world_size

    def pieces(self, step: int, size: int) -> list[list[int]]:
        """What each of this worker's micro-batches of a step, counted from 0, is to hold."""
        how_many = accumulation(self.repair, self.world_size, size)
        return pieces(share(self._batches[step], self.rank, self.world_size), how_many)

    def answer_tokens(self, step: int) -> int:
        """How many tokens the answers of this worker's part of a step have."""
        own = share(self._batches[step], self.rank, self.world_size)
        assert self._encoded.labels is not None
        labels = self._encoded.labels[[self._row[index] for index in own]]
        return int((labels != NO_LABEL).sum())

    def micro_batch(self, piece: Sequence[int]) -> MicroBatch:
        """Puts a micro-batch where the model is, and asks the teacher."""
        batch = self._encoded.select([self._row[index] for index in piece]).to(self.device)
        if self.repair.distillation.reduction == "reference":
            batch = trimmed(batch)
        asked = [self._examples[index] for index in piece]
        return batch, None if self._teacher is None else self._teacher.of(asked, batch)
