"""What a measure is, and what a model answered, as every measure hands it on."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ressa.evaluate.metrics import Scores
from ressa.evaluate.predictions import Keep
from ressa.models.vlm import VLM
from ressa.records import Example


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model answered to one example."""

    text: str
    values: tuple[float, ...] = ()
    """Numbers that the measure scores it by, if the text does not say it all."""


class Measure(ABC):
    """Answers and scores the examples of one kind of task."""

    reads_pictures: ClassVar[bool] = True
    """Whether its score on a blank picture says anything."""

    @abstractmethod
    def answer(
        self,
        vlm: VLM,
        task: Any,
        examples: Sequence[Example],
        *,
        blank: bool,
        keep: Keep | None = None,
    ) -> list[Answer]:
        """Answers all examples, in order, with all workers.

        Args:
            vlm: the model, left as it is.
            task: opens the pictures, and says how to ask.
            examples: those about one picture are next to each other.
            blank: True shows the task's blank picture instead of each.
            keep: where a small data set's questions may be kept as tensors, for the next trial.
        """

    @abstractmethod
    def score(
        self, task: Any, examples: Sequence[Example], answers: Sequence[Answer]
    ) -> tuple[Scores, list[float | None]]:
        """Returns the scores, and what each example contributes to the main one, if anything."""

    def of_images(
        self, examples: Sequence[Example], answers: Sequence[Answer]
    ) -> list[float | None]:
        """Returns what each example's image contributes to a main score over images, if any is."""
        return [None] * len(examples)
