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


@dataclass(frozen=True, slots=True)
class Own:
    """What one example contributes to the main scores of its task, if anything."""

    value: float | None
    """To the mean over examples."""
    weight: float | None = None
    """How much it counts in that mean, Σ value / Σ weight; None: one."""
    image_value: float | None = None
    """What its image contributes to the mean over images; alike in all of the image's examples."""


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
    ) -> tuple[Scores, list[Own]]:
        """Returns the scores, and what each example contributes to the main ones."""
