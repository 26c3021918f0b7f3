"""Captioning: COCO, Flickr30k, NoCaps, CC3M, and any data set with pictures and captions.

What is learnt from and calibrated on is the prefix task of the paper's code (LAVIS): a caption is
cut at a random character of its first half; what stands before is asked, the rest is the answer.
What is scored is a picture, against all of its captions as people wrote them.
"""

import random
from collections.abc import Iterable
from dataclasses import replace
from itertools import groupby
from typing import ClassVar

from ressa.data.files import BadItem, Drawn, FileTask, Record
from ressa.records import Example

_SCORED = ("validation", "test")


class Captioning(FileTask):
    """Pictures to describe, or captions to go on with."""

    measure: ClassVar[str] = "captions"

    def make(self, record: Record, split: str) -> Iterable[Example | BadItem]:
        """Makes one example of a picture to score, or one of each of its captions to learn."""
        captions = self.captions(record)
        if not captions:
            yield BadItem(record.id, "no caption" if not record.answers else "empty caption")
        elif split in _SCORED:
            written = tuple(text for text in map(str.strip, record.answers) if text)
            yield Example(
                id=record.id,
                image_id=record.image_id,
                question=self.source.prompt,
                answer=written[0],
                kind=record.kind,
                references=written,
                verbatim=True,
            )
        else:
            for number, caption in enumerate(captions):
                prefix, rest = cut(caption, f"{record.id} {number}")
                yield Example(
                    id=f"{record.id}/{number}",
                    image_id=record.image_id,
                    question=prefix,
                    answer=rest,
                    kind=record.kind,
                    verbatim=True,
                )

    def _read(self, split: str) -> Drawn:
        """Reads a split; rows about one picture are scored as one, each with its captions."""
        if split not in self._splits:
            good, bad = super()._read(split)
            if split in _SCORED:
                rows = groupby(good, key=lambda example: example.image_id)
                good = tuple(_gathered(tuple(group)) for _, group in rows)
            self._splits[split] = good, bad
        return self._splits[split]


def _gathered(rows: tuple[Example, ...]) -> Example:
    """Makes one example of those of one picture, under the name of the first."""
    return replace(rows[0], references=tuple(text for row in rows for text in row.references))


def cut(caption: str, seed: str) -> tuple[str, str]:
    """Cuts a caption at a random character in [1, half its length]; the same for the same seed."""
    place = random.Random(f"prefix {seed}").randint(1, max(1, len(caption) // 2))
    return caption[:place], caption[place:] or caption
