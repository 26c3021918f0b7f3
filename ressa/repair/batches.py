"""Which questions each step of repair sees, and which of them each worker gets.

The global batches follow from the examples and a seed alone. Workers share out each batch, so the
number of workers changes neither what is learnt from nor in which order.
"""

import random
from collections.abc import Iterator, Sequence
from itertools import count, pairwise

from ressa.records import Example

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
    """One worker's part of a global batch: a contiguous run of whole images.

    An image goes to the worker in whose equal part of the batch its first question falls, so parts
    differ by less than one image's questions.
    """
    size = sum(len(questions) for questions in batch)
    part: list[int] = []
    start = 0
    for questions in batch:
        if start * world_size // size == rank:
            part.extend(questions)
        start += len(questions)
    return part


def pieces(part: Sequence[int], how_many: int) -> list[list[int]]:
    """Cuts a worker's part into nearly equal micro-batches."""
    cuts = [len(part) * index // how_many for index in range(how_many + 1)]
    return [list(part[start:stop]) for start, stop in pairwise(cuts)]
