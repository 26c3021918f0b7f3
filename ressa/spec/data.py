"""The `data` section: data sets that lie in files, each under the name that the sweep calls it by.

What is asked of them (prompt, decoding, text) is part of a trial's identity; where they lie is not.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from ressa.spec.space import SpecModel, exact_decimal, shorten

SPLITS = ("train", "calibration", "validation", "test")
"""What a task's examples are dealt to, disjoint by image."""

_SLICE = re.compile(r"(?P<name>[^\[\]\s]+)(\[(?P<low>\d{0,3})%?:(?P<high>\d{0,3})%?\])?")
_PLACES = ("path", "images", "model", "model_revision")
_SCORED = {"vqa": 2, "captioning": 2, "retrieval": 3, "perplexity": 2}
"""How a task's answers are scored; raised where that changes."""
HUB = "hf://datasets/"
"""What the path of a data set on the hub begins with."""


def _as_number(value: Any) -> Any:
    return float(exact_decimal(value)) if not isinstance(value, str | bool | None) else value


Number = Annotated[float, BeforeValidator(_as_number)]


class Columns(SpecModel):
    """Which column of a Hugging Face data set holds what; a task reads those it needs."""

    image: str | None = Field(
        default="image", description="Pictures; null where there are none: a blank one is shown."
    )
    image_id: str | None = Field(
        default=None,
        description="Ids of pictures; null: their paths where image names files, else a row's own.",
    )
    id: str | None = Field(default=None, description="Ids of rows; null takes their numbers.")
    question: str = Field(default="question", description="Questions.")
    answers: str = Field(
        default="answers",
        description="Answers: a text, a list of texts, or a list of {answer: text}.",
    )
    captions: str = Field(default="caption", description="Captions: a text, or a list of texts.")
    choices: str = Field(default="choices", description="Lists of the answers to choose from.")
    correct: str = Field(
        default="answer", description="The right choice: its number from 0, or its text."
    )
    kind: str | None = Field(
        default=None, description="Types of questions, by which scores are also given."
    )


class Decoding(SpecModel):
    """How answers are generated."""

    beams: int = Field(default=1, ge=1, description="Beams of the search, ≥ 1; 1 is greedy.")
    max_new_tokens: int = Field(default=30, ge=1, description="Longest answer, in tokens, ≥ 1.")
    min_new_tokens: int = Field(default=0, ge=0, description="Shortest answer, in tokens.")
    length_penalty: Number = Field(
        default=1.0, description="Exponent of the length that a beam's score is divided by."
    )
    repetition_penalty: Number = Field(
        default=1.0, gt=0, description="Divides the odds of tokens that were said already, > 0."
    )


class DataSource(SpecModel):
    """A data set in files: what it is, where it lies and how models are asked about it."""

    task: str = Field(description="vqa, captioning, retrieval, multiple_choice or perplexity.")
    format: str = Field(
        description="Layout of the files: vqav2, okvqa, gqa, aokvqa, karpathy, coco_captions, "
        "nocaps, or datasets for any Hugging Face data set."
    )
    path: str = Field(
        min_length=1,
        description="Folder of the files; with datasets also hf://datasets/org/name, on the hub.",
    )
    images: str | None = Field(
        default=None, description="Folder of the pictures; null looks under path."
    )
    revision: str | None = Field(
        default=None, description="Commit of a data set on the hub, where it has to be given."
    )
    subset: str | None = Field(
        default=None, description="Configuration of a Hugging Face data set that has several."
    )
    splits: dict[str, str] = Field(
        default={},
        description="Which split of the data serves as train, calibration, validation and test; "
        "'train[:5%]' is a twentieth of its pictures. Default: the format's.",
    )
    columns: Columns = Field(default=Columns(), description="Columns, with format datasets.")
    prompt: str = Field(
        default="{}",
        description="What a model is asked; {} is the question. Default: the task's.",
    )
    clean_text: bool = Field(
        default=True,
        description="Questions and captions as the paper's code reads them: lower case, without "
        '.!"()*#:;~, 50 words at most.',
    )
    decoding: Decoding = Field(default=Decoding(), description="How answers are generated.")
    batch_size: int = Field(default=64, ge=1, description="Examples per forward pass, ≥ 1.")
    model: str | None = Field(
        default=None,
        description="The BLIP-2 image-text matching model of retrieval: a folder or a hub id.",
    )
    model_revision: str | None = Field(
        default=None,
        description="Commit, tag or branch of that model on the hub; none takes the newest.",
    )
    rerank: int = Field(
        default=128,
        ge=1,
        description="Candidates that retrieval ranks by matching, ≥ 1 (the paper's code: k_test).",
    )
    on_bad_item: Literal["fail", "skip"] = Field(
        default="fail",
        description="A damaged picture, an empty answer, an id without a picture: fail names them "
        "and stops, skip leaves them out and counts them.",
    )

    @field_validator("splits")
    @classmethod
    def _name_splits(cls, splits: dict[str, str]) -> dict[str, str]:
        for name, wanted in splits.items():
            if name not in SPLITS:
                raise ValueError(f"of {', '.join(SPLITS)}, got {name!r}.")
            slice_of(wanted)
        return splits

    @field_validator("prompt")
    @classmethod
    def _has_one_place(cls, prompt: str) -> str:
        if re.sub(r"\{\}", "", prompt, count=1).count("{") or "}" in prompt.replace("{}", "", 1):
            raise ValueError(f"a text with at most one {{}}, got {shorten(prompt)}.")
        return prompt

    @property
    def identity(self) -> dict[str, Any]:
        """All of it but where the files lie: what they hold counts, wherever that is."""
        content = self.model_dump(mode="json", exclude=set(_PLACES))
        scored = _SCORED.get(self.task)
        return content if scored is None else content | {"scored": scored}


def slice_of(text: str) -> tuple[str, int, int]:
    """Reads 'train[5%:]' as a split's name and the percentages at which its slice begins and ends.

    Raises:
        ValueError: it is not of that form.
    """
    found = _SLICE.fullmatch(text)
    low, high = (int(found["low"] or 0), int(found["high"] or 100)) if found else (0, 0)
    if found is None or not 0 <= low < high <= 100:
        raise ValueError(f"a split such as train or 'train[:5%]', got {shorten(text)}.")
    return found["name"], low, high
