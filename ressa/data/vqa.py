"""Visual question answering: VQAv2, OK-VQA, GQA, and any data set with questions and answers."""

from collections.abc import Iterable
from typing import ClassVar

from ressa.data.files import BadItem, FileTask, Record, most_frequent
from ressa.records import Example


class VQA(FileTask):
    """Questions about pictures; what most people answered is what a model is taught."""

    measure: ClassVar[str] = "vqa"

    def make(self, record: Record, split: str) -> Iterable[Example | BadItem]:
        """Makes one example of a question."""
        given = tuple(answer.strip() for answer in record.answers if answer.strip())
        if not given:
            yield BadItem(record.id, "no answer" if not record.answers else "empty answer")
            return
        yield Example(
            id=record.id,
            image_id=record.image_id,
            question=self.prompt(record.text),
            answer=most_frequent(given),
            kind=record.kind,
            references=given,
            verbatim=True,
        )
