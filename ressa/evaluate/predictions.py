"""Answers of a model to a task's questions."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import Protocol, TypeAlias, TypeVar, runtime_checkable

import torch

from ressa.memory import in_batches
from ressa.models.vlm import GREEDY, VLM, Batch, Pictures, evaluating
from ressa.records import Example
from ressa.spec import Decoding

T = TypeVar("T")

_CPU = torch.device("cpu")
_SPARE_TOKENS = 1  # beyond the longest answer and its end: room to be wrong at length

Keep: TypeAlias = Callable[[Callable[[], Iterable[Batch]]], Iterable[Batch]]


@runtime_checkable
class PictureTask(Pictures, Protocol):
    """A task that also knows every answer there is."""

    @property
    def answers(self) -> Sequence[str]: ...


def predictions(
    vlm: VLM,
    task: PictureTask,
    examples: Sequence[Example],
    *,
    batch_size: int = 256,
    blank: bool = False,
    keep: Keep | None = None,
) -> list[str]:
    """Answers questions greedily, in their order; equal questions about one picture only once.

    Args:
        vlm: the model, left as it is.
        task: opens the pictures, and says which answer is the longest.
        examples: the questions; those about one picture are next to each other.
        batch_size: how many questions at a time, fewer where memory is short. It changes a result
            only by rounding.
        blank: True shows the task's blank picture instead of each, so that only distinct questions
            are left to compute.
        keep: yields the questions as tensors, by the function that it is given or from the last
            time. None encodes batch after batch, and holds one.
    """
    tokens = _longest_answer(vlm, task) + _SPARE_TOKENS
    decoding = GREEDY.model_copy(update={"max_new_tokens": tokens})
    return generated(vlm, task, examples, decoding, batch_size=batch_size, blank=blank, keep=keep)


def generated(
    vlm: VLM,
    task: Pictures,
    examples: Sequence[Example],
    decoding: Decoding,
    *,
    batch_size: int,
    blank: bool,
    keep: Keep | None = None,
) -> list[str]:
    """Answers as `predictions` does, but as `decoding` says and to the length it says."""
    distinct = {_key(example, blank): example for example in examples}

    def answers_to(size: int) -> dict[tuple[str, str], str]:
        chunks = list(batches(list(distinct.values()), size))

        def encode() -> Iterator[Batch]:
            return encoded(vlm, task, chunks, answers=False, blank=blank)

        is_kept = size == batch_size  # smaller ones are other batches
        asked = keep(encode) if keep and is_kept else encode()
        found: dict[tuple[str, str], str] = {}
        for chunk, batch in zip(chunks, asked, strict=True):
            answers = vlm.generate(batch, decoding.max_new_tokens, decoding)
            found.update(zip((_key(example, blank) for example in chunk), answers, strict=True))
        return found

    with evaluating(vlm.model):
        answer_of = in_batches(answers_to, batch_size)
    return [answer_of[_key(example, blank)] for example in examples]


def encoded(
    vlm: VLM, task: Pictures, chunks: Iterable[Sequence[Example]], *, answers: bool, blank: bool
) -> Iterator[Batch]:
    """Encodes chunk after chunk; arguments as of `VLM.encode`.

    With the model on a GPU the next chunk's pictures are read and resized while it works on one.
    On a CPU that would take from the model what it gives to the pictures.
    """
    picture = task.blank_image() if blank else None
    device = vlm.model.device
    made = (
        vlm.encode(chunk, task.image, answers=answers, blank=picture, device=_CPU)
        for chunk in chunks
    )
    for batch in made if device == _CPU else ahead(made):
        yield batch.to(device)


def ahead(items: Iterable[T]) -> Iterator[T]:
    """Makes the next item in a thread while the caller works on one; no more are made ahead."""
    rest = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix="ressa-ahead") as thread:
        following = thread.submit(next, rest, None)
        while (item := following.result()) is not None:
            following = thread.submit(next, rest, None)
            yield item


def batches(examples: Sequence[Example], size: int) -> Iterator[list[Example]]:
    """Cuts examples into batches of about equally long texts, so that little is padding.

    A picture's examples stay together, so that it is encoded once; a batch that they would
    overfill is ended before them. One picture's that are more than a batch are cut.
    """
    groups = [list(group) for _, group in groupby(examples, key=lambda e: e.image_id)]
    groups.sort(key=lambda group: max(map(_length, group)), reverse=True)  # stable; longest first
    batch: list[Example] = []
    for group in groups:
        if batch and len(batch) + len(group) > size:
            yield batch
            batch = []
        batch += group
        while len(batch) > size:
            yield batch[:size]
            batch = batch[size:]
    if batch:
        yield batch


def _length(example: Example) -> int:
    return len(example.question) + len(example.answer)


def _key(example: Example, blank: bool) -> tuple[str, str]:
    return ("" if blank else example.image_id, example.question)


def _longest_answer(vlm: VLM, task: PictureTask) -> int:
    """Counts the tokens of the task's longest answer, with the one that ends it."""
    ids = vlm.processor.tokenizer(list(task.answers), add_special_tokens=False)["input_ids"]
    return max(len(answer) for answer in ids) + 1
