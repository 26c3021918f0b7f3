"""The frozen values that stages hand on, and the identity of a trial."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

from ressa.errors import FailureClass, as_stored

if TYPE_CHECKING:
    from ressa.sparsity import Tower
    from ressa.spec import Calibration, DataRef, DataSource, ModelRef, Repair, TowerTarget

TRIAL_VERSION = 1
"""Raised when the same `TrialSpec` would come to other results than before."""

ASKED = 3
"""How models are asked, what counts as their answers' tokens and which rows calibration counts.

Raised when one of these changes."""
# Fingerprints of the models that version 1 asked just so; their keys stay what they were.
_POCKET_BLIP2 = "b5b69b36149c5630d55f51c57b226fb0"
_POCKET_LLAVA = "1ad63c34dca2bfda3581eb15168a6e15"


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One question about one image, with its answer."""

    id: str
    image_id: str
    question: str
    answer: str
    kind: str
    """The question type, such as "shape" or "color": scores are also given per type."""
    references: tuple[str, ...] = ()
    """What people said, where that is more than one answer; a score is taken against all."""
    choices: tuple[str, ...] = ()
    """The answers to choose from, if that is asked."""
    verbatim: bool = False
    """True if `question` is the whole prompt, so that only a chat template is put around it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskData:
    """A data set in files that a trial uses, and which examples it takes from it."""

    name: str
    """By which the trial's sections call it."""
    source: DataSource
    contents: tuple[tuple[str, str], ...]
    """A use, as `use_of` writes it, and the hash of its examples and pictures; and "model" with
    that of the model that scores it, if one does."""

    def identity(self, use: Calibration | DataRef) -> tuple[Any, ...]:
        """What a use comes to, wherever the files lie."""
        found = dict(self.contents)
        return self.source.identity, found[use_of(use)], found.get("model")


def use_of(ref: Calibration | DataRef) -> str:
    """Names a draw of examples, within one data set."""
    return f"{ref.split} {ref.samples} {ref.seed}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialSpec:
    """Everything that can change a trial's result, and nothing else."""

    model: ModelRef
    fingerprint: str
    """Hash of the model's files, so that two models under one name are never taken for one."""
    vision: TowerTarget
    language: TowerTarget
    calibration: Calibration
    repair: Repair | None
    """None leaves the model as pruned."""
    evaluate: tuple[DataRef, ...]
    data: tuple[TaskData, ...] = ()
    """The data sets in files that the sections above name; tasks with their own are not here."""
    workers: int = 1
    cpus_per_worker: int = 1
    rungs: tuple[int, ...] = ()
    """Repair steps after which the search wants to know how the trial stands."""
    rung_samples: int = 0
    """Questions of each evaluation that are asked then."""

    def task_data(self, name: str) -> TaskData | None:
        """Returns the data set of a name; None for a task that brings its own."""
        return next((data for data in self.data if data.name == name), None)

    def tower(self, tower: Tower) -> TowerTarget:
        """Returns what is asked of one tower."""
        return self.vision if tower == "vision" else self.language

    @property
    def model_options(self) -> dict[str, Any]:
        """What is made of the model's files, where that is not as by default; dtype is not here."""
        options = self.model.model_dump(mode="json", exclude_defaults=True)
        made = {
            name: value
            for name, value in options.items()
            if name not in ("id", "revision", "dtype")  # the fingerprint tells the first two
        }
        return made | {"asked": ASKED} if self._is_asked_anew else made

    @property
    def _is_asked_anew(self) -> bool:
        """Whether version 1 asked the model otherwise."""
        if self.fingerprint == _POCKET_LLAVA:  # where a decoder's repetition was counted otherwise
            return any(data.source.decoding.repetition_penalty != 1 for data in self.data)
        return self.fingerprint != _POCKET_BLIP2

    @property
    def key(self) -> str:
        """Hash of all that can change the result; equal keys are the same trial.

        The model counts by its fingerprint and options, and data by their contents: where they lie
        changes nothing. Nor does what is looked at on the way.
        """
        unread = ("model", "rungs", "rung_samples")
        rest = {
            name: getattr(self, name) for name in self.__dataclass_fields__ if name not in unread
        }
        rest["data"] = [(data.name, data.source.identity, data.contents) for data in self.data]
        if self.model_options:
            rest["model"] = self.model_options
        return content_key("trial", TRIAL_VERSION, self.model.dtype, rest)

    def rung_key(self, step: int) -> str:
        """Names what is found at a rung: the same at any number of workers and micro-batch."""
        repair = (
            None if self.repair is None else self.repair.model_copy(update={"micro_batch": None})
        )
        alone = replace(self, repair=repair, workers=1, cpus_per_worker=1)
        return content_key("rung", alone.key, step, self.rung_samples)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a trial is: one of its stages, and the step in it."""

    stage: str
    step: int = 0
    steps: int = 0
    rung: Mapping[str, float] | None = None
    """At a rung, how the trial stands: "task.metric" → value."""
    micro_batch: int | None = None
    """Of a repair, once it is known: what a next attempt would have to stay below."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """How a trial ended if not well."""

    kind: FailureClass
    stage: str
    message: str
    traceback: str | None = None
    micro_batch: int | None = None
    """Of the repair that ran out of memory, if it is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a trial found, as plain rows: columns are those of the store's tables."""

    summary: dict[str, Any]
    scores: list[dict[str, Any]] = field(default_factory=list)
    curves: list[dict[str, Any]] = field(default_factory=list)
    layers: list[dict[str, Any]] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> bytes:
        """Writes the outcome as UTF-8 JSON."""
        # Not by `asdict`, which copies every row.
        return json.dumps({name: getattr(self, name) for name in self.__slots__}).encode()

    @classmethod
    def from_json(cls, content: bytes) -> Self:
        """Reads what `to_json` wrote."""
        with as_stored("an outcome"):
            return cls.of(json.loads(content))

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Self:
        """Reads its JSON; what an older version also wrote there is left out."""
        return cls(**{name: content[name] for name in cls.__slots__})


def content_key(*parts: Any) -> str:
    """Hashes plain values, dataclasses and specs into 32 hexadecimal digits."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def as_json(value: Any) -> Any:
    """Turns plain values, dataclasses and specs into what JSON has."""
    return json.loads(json.dumps(value, allow_nan=False, default=_plain))


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if hasattr(value, "__dataclass_fields__"):
        return {name: getattr(value, name) for name in value.__dataclass_fields__}
    return str(value)
