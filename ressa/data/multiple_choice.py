"""Multiple choice: A-OKVQA, and any data set with questions and answers to choose from."""

from collections.abc import Iterable
from typing import ClassVar

from ressa.data.files import BadItem, FileTask, Record
from ressa.records import Example


class MultipleChoice(FileTask):
    """Questions about pictures; each choice is scored by how likely a model finds it."""

    measure: ClassVar[str] = "choices"

    def make(self, record: Record, split: str) -> Iterable[Example | BadItem]:
        """Makes one example of a question."""
        if not record.answers:
            yield BadItem(record.id, "no answer")
        elif record.answers[0] not in record.choices or len(record.choices) < 2:
            yield BadItem(record.id, "right answer among no choices")
        elif not all(choice.strip() for choice in record.choices):
            yield BadItem(record.id, "empty choice")
        else:
            yield Example(
                id=record.id,
                image_id=record.image_id,
                question=self.prompt(record.text),
                answer=record.answers[0],
                kind=record.kind,
                choices=record.choices,
                verbatim=True,
            )
