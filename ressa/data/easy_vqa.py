"""easy-VQA: 48,248 questions about 5,000 pictures of one coloured shape (MIT, package `easy-vqa`).

Every picture is 64x64 pixels and shows one shape (3 kinds) in one colour (8). The package holds a
train and a test set; the test set is ours too, and the train set's pictures are dealt to three
splits by their number, so that no picture is in two splits:

=============  ==================================  =======  ==========
split          official picture                    images   questions
=============  ==================================  =======  ==========
validation     train, number divisible by 10       400      3,899
calibration    train, number ≡ 5 modulo 20         200      1,917
train          train, all others                   3,400    32,759
test           test                                1,000    9,673
=============  ==================================  =======  ==========
"""

import json
import random
from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from itertools import groupby
from pathlib import Path

import easy_vqa
from PIL import Image

from ressa.data.files import DataError
from ressa.records import Example

_DATA = Path(easy_vqa.__file__).parent / "data"
_MEAN_COLOUR = (231, 231, 229)  # of the train split's pixels; a test counts it again
_SHAPES = frozenset({"circle", "rectangle", "triangle"})


class EasyVQA:
    """The examples and pictures of easy-VQA, read once from the installed package."""

    name = "easy-vqa"
    splits = ("train", "calibration", "validation", "test")

    def examples(
        self, split: str, samples: int | None = None, seed: int = 0
    ) -> tuple[Example, ...]:
        """Returns questions of one split, those of one picture next to each other.

        Args:
            split: one of `splits`.
            samples: how many questions; None means all, in their fixed order.
            seed: of the draw. Pictures are drawn without replacement, with all their questions; the
                last picture's are cut so that exactly `samples` come out.
        """
        if split not in self.splits:
            raise DataError(f"easy-vqa has no split {split!r}; it has {', '.join(self.splits)}.")
        everything = self._splits[split]
        if samples is None:
            return everything
        if not 0 < samples <= len(everything):
            raise DataError(
                f"easy-vqa's {split} split has {len(everything)} questions; {samples} were asked "
                f"for. Choose between 1 and {len(everything)}."
            )
        by_image = [list(group) for _, group in groupby(everything, key=lambda e: e.image_id)]
        # Seeded by a text, which Python hashes by SHA-512: the same order in every process, and
        # draws from two splits have nothing to do with each other.
        random.Random(f"easy-vqa {split} {seed}").shuffle(by_image)
        drawn = [example for group in by_image for example in group]
        return tuple(drawn[:samples])

    def image(self, image_id: str) -> Image.Image:
        """Opens a picture, such as "train/17", as RGB."""
        folder, number = image_id.split("/")
        with Image.open(_DATA / folder / "images" / f"{number}.png") as image:
            return image.convert("RGB")

    def blank_image(self) -> Image.Image:
        """Returns a picture of the train split's mean colour, which leaves the question alone."""
        return Image.new("RGB", (64, 64), _MEAN_COLOUR)

    @property
    def answers(self) -> tuple[str, ...]:
        """The 13 answers there are, in alphabetical order."""
        return tuple(sorted((_DATA / "answers.txt").read_text().split()))

    def majority_answer(self, question: str) -> str:
        """Returns the train split's most frequent answer to this very question.

        A question that the train split lacks gets the most frequent answer of all. Ties go to the
        first answer in the alphabet.
        """
        return self._majority.get(question, self._overall_majority)

    @cached_property
    def _splits(self) -> dict[str, tuple[Example, ...]]:
        train, test = _read("train"), _read("test")
        return {
            "train": tuple(e for e in train if _split_of(e.image_id) == "train"),
            "calibration": tuple(e for e in train if _split_of(e.image_id) == "calibration"),
            "validation": tuple(e for e in train if _split_of(e.image_id) == "validation"),
            "test": tuple(test),
        }

    @cached_property
    def _majority(self) -> dict[str, str]:
        counts: dict[str, Counter[str]] = {}
        for example in self._splits["train"]:
            counts.setdefault(example.question, Counter())[example.answer] += 1
        return {question: _most_frequent(counter) for question, counter in counts.items()}

    @cached_property
    def _overall_majority(self) -> str:
        return _most_frequent(Counter(e.answer for e in self._splits["train"]))


def _split_of(image_id: str) -> str:
    """The one-line rule that carves up the official train pictures."""
    number = int(image_id.removeprefix("train/"))
    return "validation" if number % 10 == 0 else "calibration" if number % 20 == 5 else "train"


def _read(folder: str) -> list[Example]:
    rows: Iterable[tuple[str, str, int]] = json.loads(
        (_DATA / folder / "questions.json").read_text(encoding="utf-8")
    )
    return [
        Example(
            id=f"{folder}/{row}",
            image_id=f"{folder}/{number}",
            question=question,
            answer=answer,
            kind=_kind(answer),
        )
        for row, (question, answer, number) in enumerate(rows)
    ]


def _kind(answer: str) -> str:
    return "yes-no" if answer in ("yes", "no") else "shape" if answer in _SHAPES else "color"


def _most_frequent(counts: Counter[str]) -> str:
    return min(counts, key=lambda answer: (-counts[answer], answer))
