"""Captioning: COCO, Flickr30k, NoCaps, CC3M, and any data set with pictures and captions.

What is learnt from and calibrated on is the prefix task of the paper's code (LAVIS): a caption is
cut at a random character of its first half; what stands before is asked, the rest is the answer.
"""

import random
from collections.abc import Iterable
from typing import ClassVar

from ressa.data.files import BadItem, FileTask, Record, clean_caption
from ressa.records import Example


class Captioning(FileTask):
    """Pictures to describe, or captions to go on with."""

    measure: ClassVar[str] = "captions"

    def make(self, record: Record, split: str) -> Iterable[Example | BadItem]:
        """Makes one example of a picture to score, or one of each of its captions to learn."""
        captions = self.captions(record)
        if not captions:
            yield BadItem(record.id, "no caption" if not record.answers else "empty caption")
        elif split in ("validation", "test"):
            yield Example(
                id=record.id,
                image_id=record.image_id,
                question=self.source.prompt,
                answer=captions[0],
                kind=record.kind,
                references=captions,
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

    def captions(self, record: Record) -> tuple[str, ...]:
        """Returns a record's captions as they are read, without those that have no word."""
        clean = clean_caption if self.source.clean_text else str.strip
        return tuple(caption for caption in map(clean, record.answers) if caption)


def cut(caption: str, seed: str) -> tuple[str, str]:
    """Cuts a caption at a random character in [1, half its length]; the same for the same seed."""
    place = random.Random(f"prefix {seed}").randint(1, max(1, len(caption) // 2))
    return caption[:place], caption[place:] or caption
