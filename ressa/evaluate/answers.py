"""What a model answered, as every measure hands it on."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model answered to one example."""

    text: str
    values: tuple[float, ...] = ()
    """Numbers that the measure scores it by, if the text does not say it all."""
