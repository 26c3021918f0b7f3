"""Image-text retrieval: Flickr30k, and any data set with pictures and captions."""

from collections.abc import Iterable
from typing import ClassVar

from ressa.data.files import BadItem, FileTask, Record
from ressa.records import Example


class Retrieval(FileTask):
    """Captions to find among those of all pictures, and pictures among all."""

    measure: ClassVar[str] = "retrieval"

    def make(self, record: Record, split: str) -> Iterable[Example | BadItem]:
        """Makes one example of each caption."""
        captions = self.captions(record)
        if not captions:
            yield BadItem(record.id, "no caption" if not record.answers else "empty caption")
        for number, caption in enumerate(captions):
            yield Example(
                id=f"{record.id}/{number}",
                image_id=record.image_id,
                question=caption,
                answer=record.image_id,
                kind=record.kind,
                verbatim=True,
            )
