"""The frozen values that stages hand on."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One question about one image, with its answer."""

    id: str
    image_id: str
    question: str
    answer: str
    kind: str
    """The question type, such as "shape" or "color": scores are also given per type."""
