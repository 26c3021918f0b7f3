"""Greedy answers of a model to a task's questions."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, runtime_checkable

from PIL.Image import Image

from ressa.models.vlm import VLM, Batch
from ressa.records import Example

_SPARE_TOKENS = 1  # beyond the longest answer and its end: room to be wrong at length


@runtime_checkable
class PictureTask(Protocol):
    """What is asked of a task here: its pictures, and the answers it knows."""

    @property
    def answers(self) -> Sequence[str]: ...

    def image(self, image_id: str) -> Image: ...

    def blank_image(self) -> Image: ...


def predictions(
    vlm: VLM,
    task: PictureTask,
    examples: Sequence[Example],
    *,
    batch_size: int = 256,
    blank: bool = False,
    keep: Callable[[Callable[[], list[Batch]]], list[Batch]] | None = None,
) -> list[str]:
    """Answers questions greedily, in their order; equal questions about one picture only once.

    Args:
        vlm: the model, left as it is.
        task: opens the pictures.
        examples: the questions; keep those about one picture together, so that it is encoded once.
        batch_size: how many questions at a time. It changes a result only by rounding.
        blank: True shows the task's blank picture instead of each, so that only distinct questions
            are left to compute.
        keep: returns the questions as tensors, by the function that it is given or from the last
            time. None encodes batch after batch, and holds one.
    """
    distinct = {_key(example, blank): example for example in examples}
    keys, asked = list(distinct), list(distinct.values())
    new_tokens = _longest_answer(vlm, task) + _SPARE_TOKENS
    picture = task.blank_image() if blank else None

    def encode() -> Iterator[Batch]:
        for start in range(0, len(asked), batch_size):
            chunk = asked[start : start + batch_size]
            yield vlm.encode(chunk, task.image, answers=False, blank=picture)

    answers: list[str] = []
    training = vlm.model.training
    vlm.model.eval()
    try:
        for batch in encode() if keep is None else keep(lambda: list(encode())):
            answers += vlm.generate(batch, new_tokens)
    finally:
        vlm.model.train(training)
    answer_of = dict(zip(keys, answers, strict=True))
    return [answer_of[_key(example, blank)] for example in examples]


def _key(example: Example, blank: bool) -> tuple[str, str]:
    return ("" if blank else example.image_id, example.question)


def _longest_answer(vlm: VLM, task: PictureTask) -> int:
    """Counts the tokens of the task's longest answer, with the one that ends it."""
    ids = vlm.processor.tokenizer(list(task.answers), add_special_tokens=False)["input_ids"]
    return max(len(answer) for answer in ids) + 1
