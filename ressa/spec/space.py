"""The space that a sweep searches: its dimensions, and every value in them as exact text.

A value of a point is text throughout ("0.5", "2:4", "100", "wanda"): it survives YAML, JSON,
Parquet and Optuna unchanged, where a float does not.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    Tag,
    model_validator,
)
from pydantic.fields import FieldInfo

from ressa.errors import SpecError
from ressa.sparsity import exact_fraction, format_fraction

Scalar = bool | int | Decimal | str

SPARSITIES = ("vision_sparsity", "language_sparsity")
SPARSITY = "sparsity"
"""One sparsity for both towers: each loses it, or with `group: all` both together."""
BUDGET = "budget"
REPLICATE = "replicate"
"""Which of the runs of a point, from 0, where a sweep asks for more than one."""

_INTEGER = re.compile(r"[-+]?[0-9]+")
_DECIMAL = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]{1,3})?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_LONGEST_NUMBER = 40  # characters; a longer one stays text and is then refused by its field


def parse_scalar(text: str) -> Scalar | None:
    """Reads unquoted text as YAML 1.2's core schema does, but decimals exactly."""
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return text.lower() == "true"
    if len(text) > _LONGEST_NUMBER:
        return text
    if _INTEGER.fullmatch(text):
        return int(text)
    if _DECIMAL.fullmatch(text):
        return Decimal(text)
    if _NOT_FINITE.fullmatch(text):
        return Decimal(text.lower().replace(".inf", "Infinity").replace(".nan", "NaN"))
    return text


def scalar_text(value: Scalar) -> str:
    """Writes a value as the text that stands for it in a point: equal numbers, equal text."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | Decimal):
        return format_fraction(Fraction(value))
    return value


def exact_decimal(value: Any) -> Decimal:
    """Returns a number as an exact decimal; a Python float means the digits it prints with."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        # Not a TypeError: pydantic collects ValueErrors alone.
        raise ValueError(f"a number, got {shorten(value)}.")
    try:
        decimal = Decimal(repr(value) if isinstance(value, float) else value)
        exact_fraction(decimal)
    except (SpecError, InvalidOperation) as error:
        raise ValueError(f"a finite number of at most 40 digits, got {value}.") from error
    return decimal


def as_tuple(value: Any) -> Any:
    """Turns YAML's lists into the tuples of frozen specs; leaves all else to validation."""
    return tuple(value) if isinstance(value, list) else value


ExactNumber = Annotated[Decimal, BeforeValidator(exact_decimal)]


def one_scalar(value: Any) -> Scalar:
    """Returns a single value of a field, numbers exactly; refuses anything else."""
    if isinstance(value, float | Decimal):
        return exact_decimal(value)
    if isinstance(value, bool | int | str):
        return value
    raise ValueError(f"a number, a text or true/false, got {shorten(value)}.")


def shorten(value: Any) -> str:
    """Writes a value that a message quotes, cut to one short line."""
    text = str(value) if isinstance(value, Decimal) else repr(value)
    return text if len(text) <= _LONGEST_NUMBER else f"{text[:_LONGEST_NUMBER]}…"


class SpecModel(BaseModel):
    """Strict, frozen and closed: a wrong type or an unknown key is a fault."""

    model_config = ConfigDict(
        strict=True,
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        arbitrary_types_allowed=True,
        serialize_by_alias=True,
    )

    @classmethod
    def by_key(cls) -> dict[str, FieldInfo]:
        """Returns the fields by the keys of a sweep file, of which some are words of Python."""
        return {field.alias or name: field for name, field in cls.model_fields.items()}


class Choices(SpecModel):
    """Values to choose from; a constant is a single choice."""

    choices: Annotated[
        tuple[Annotated[Scalar, PlainValidator(one_scalar)], ...], BeforeValidator(as_tuple)
    ] = Field(
        min_length=1,
        description="The values, in the order in which a grid visits them.",
    )

    @model_validator(mode="after")
    def _are_distinct(self) -> Self:
        texts = [scalar_text(value) for value in self.choices]
        twice = sorted({text for text in texts if texts.count(text) > 1})
        if twice:
            raise ValueError(f"each choice once, got {', '.join(twice)} more than once.")
        return self


class Range(SpecModel):
    """Numbers between two ends, both included."""

    low: ExactNumber = Field(description="The lower end, included.")
    high: ExactNumber = Field(description="The upper end, included.")
    step: ExactNumber | None = Field(
        default=None,
        description="Distance between values, above 0; none makes it continuous.",
    )
    log: bool = Field(
        default=False,
        description="Sample in the logarithm: for fields that span decades.",
    )

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.low > self.high:
            raise ValueError(
                f"low must not be above high, got low {self.low} and high {self.high}. "
                f"Did you mean {{low: {self.high}, high: {self.low}}}?"
            )
        if self.step is not None and self.step <= 0:
            raise ValueError(f"step must be above 0, got {self.step}.")
        if self.log and self.low <= 0:
            raise ValueError(f"with log: true low must be above 0, got {self.low}.")
        if self.log and self.step is not None:
            raise ValueError("log: true goes without step. Leave one of them out.")
        return self


def as_space(value: Any) -> Any:
    """Turns a constant into a single choice; leaves all else to validation."""
    return {"choices": (value,)} if isinstance(value, bool | int | float | Decimal | str) else value


def _kind(value: Any) -> str:
    has_choices = isinstance(value, Choices) or (isinstance(value, dict) and "choices" in value)
    return "choices" if has_choices else "range"


SpaceEntry = Annotated[
    Annotated[Choices, Tag("choices")] | Annotated[Range, Tag("range")],
    Discriminator(_kind),
    BeforeValidator(as_space),
]
"""One dimension as the sweep file gives it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dimension:
    """One axis of the search: choices as text, or a range of numbers."""

    name: str
    choices: tuple[str, ...] | None = None
    low: Decimal = Decimal(0)
    high: Decimal = Decimal(0)
    step: Decimal | None = None
    """Distance between the values of a range; None if it is continuous."""
    log: bool = False

    @property
    def size(self) -> int | None:
        """How many values the axis has; None if it is continuous. Counted, not listed."""
        if self.choices is not None:
            return len(self.choices)
        if self.step is None:
            return 1 if self.low == self.high else None
        return int((Fraction(self.high) - Fraction(self.low)) // Fraction(self.step)) + 1

    @property
    def values(self) -> tuple[str, ...] | None:
        """All values in fixed order, or None if the axis is continuous."""
        return None if self.size is None else tuple(map(self.value, range(self.size)))

    def value(self, index: int) -> str:
        """Returns the value at a place among `size` ones, from 0."""
        if self.choices is not None:
            return self.choices[index]
        return format_fraction(Fraction(self.low) + index * Fraction(self.step or 0))

    def snap(self, number: float) -> str:
        """Returns the exact value of a range that a sampled float stands for."""
        low, high = Fraction(self.low), Fraction(self.high)
        if self.step is None:
            # Six digits are finer than one weight of any tower of the catalog.
            return format_fraction(max(low, min(high, Fraction(f"{number:.6g}"))))
        steps = round((Fraction(number) - low) / Fraction(self.step))
        return format_fraction(low + max(0, min(steps, (self.size or 1) - 1)) * Fraction(self.step))

    @classmethod
    def of(cls, name: str, entry: Choices | Range, *, integer: bool) -> Self:
        """Makes the axis of one entry of the space; integers have a step of at least 1."""
        if isinstance(entry, Choices):
            return cls(name=name, choices=tuple(map(scalar_text, entry.choices)))
        step = Decimal(1) if integer and entry.step is None else entry.step
        return cls(name=name, low=entry.low, high=entry.high, step=step, log=entry.log)


def grid(dimensions: Sequence[Dimension]) -> Iterator[dict[str, str]]:
    """Yields every point of a discrete space, the last dimension running fastest."""
    names = [dimension.name for dimension in dimensions]
    for values in itertools.product(*(dimension.values or () for dimension in dimensions)):
        yield dict(zip(names, values, strict=True))
