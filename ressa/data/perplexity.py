"""Perplexity: how likely a model finds texts about pictures, such as captions.

A data set without pictures (`columns: {image: null}`) is read behind a blank one.
"""

from collections.abc import Iterable
from typing import ClassVar

from ressa.data.files import BadItem, FileTask, Record
from ressa.records import Example


class Perplexity(FileTask):
    """Texts, each given its picture and the prompt."""

    measure: ClassVar[str] = "likelihood"

    def make(self, record: Record, split: str) -> Iterable[Example | BadItem]:
        """Makes one example of each text."""
        texts = self.captions(record)
        if not texts:
            yield BadItem(record.id, "no text" if not record.answers else "empty text")
        for number, text in enumerate(texts):
            yield Example(
                id=f"{record.id}/{number}",
                image_id=record.image_id,
                question=self.source.prompt,
                answer=text,
                kind=record.kind,
                verbatim=True,
            )
