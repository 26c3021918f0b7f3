"""The fields of a sweep file: their types, ranges and defaults, and one line on each.

Every model is strict, frozen and refuses keys that it does not know. What needs more than one
field or a name from the catalog to be judged is in `check.py`, what needs the model's layers in
`inventory.py`.
"""

import hashlib
import json
from collections.abc import Iterable
from decimal import Decimal
from fnmatch import fnmatchcase
from fractions import Fraction
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    PlainValidator,
    Tag,
    field_validator,
)

from ressa.catalog import MODELS, CatalogModel
from ressa.errors import did_you_mean
from ressa.sparsity import Counting, Group, Tower, out_of_range
from ressa.spec.constraints import QUANTITIES, parse_constraint
from ressa.spec.data import DataSource
from ressa.spec.space import (
    BUDGET,
    REPLICATE,
    Choices,
    Dimension,
    ExactNumber,
    SpaceEntry,
    SpecModel,
    as_tuple,
    exact_decimal,
    one_scalar,
    scalar_text,
    shorten,
)
from ressa.spec.yaml import write

Part = Literal["vision", "connector", "language"]
Retriable = Literal["node", "preempted", "oom"]
Activations = Literal["dense", "tower", "sequential"]
Sampler = Literal["grid", "random", "qmc", "tpe", "gp", "nsga2", "map"]
RepairMethod = Literal["sparselora", "lora", "masked_finetune", "spp", "straight_through", "none"]


def _as_float(value: Any) -> Any:
    # YAML's numbers arrive as exact decimals.
    return float(value) if isinstance(value, Decimal) else value


def _as_plain(value: Any) -> Any:
    """Turns YAML's exact decimals into the numbers that DeepSpeed's configuration holds."""
    if isinstance(value, dict):
        return {key: _as_plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_plain(item) for item in value]
    if isinstance(value, Decimal):
        if not value.is_finite():
            raise ValueError(f"a finite number, got {value}.")
        return int(value) if value == int(value) else float(value)
    return value


def _as_budget(value: Any) -> Any:
    is_single = isinstance(value, int | float | Decimal | str)
    return (value,) if is_single else as_tuple(value)


def _as_texts(value: Any) -> Any:
    return (value,) if isinstance(value, str) else as_tuple(value)


def _as_constraint(value: str) -> str:
    return parse_constraint(value).text


def _as_parts(value: Any) -> Any:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(","))
    return as_tuple(value)


def _as_model(value: Any) -> Any:
    return {"id": value} if isinstance(value, str) else value


def _as_share(value: Any) -> Decimal:
    share = exact_decimal(value)
    if not 0 <= share <= 1:
        raise ValueError(out_of_range(Fraction(share)))
    return share


def _as_layers(value: Any) -> Any:
    if isinstance(value, dict) and value:
        table = {}
        for name, share in value.items():
            try:
                table[str(name)] = _as_share(share)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        return table
    if value in LAYERWISE:
        return value
    hint = did_you_mean(value, LAYERWISE) if isinstance(value, str) else ""
    given = "an empty table" if value == {} else shorten(value)
    raise ValueError(
        f"one of {', '.join(LAYERWISE)}, or a table of layers such as "
        f"{{'*.layers.0.*': 0.3}}, got {given}.{hint}"
    )


def _as_layers_or_none(value: Any) -> Any:
    return None if value is None else _as_layers(value)


LAYERWISE = ("uniform", "owl", "ecoflap")
"""The names of the rules that split a tower's sparsity over its layers."""

Number = Annotated[float, BeforeValidator(_as_float)]
Share = Annotated[ExactNumber, BeforeValidator(_as_share)]
ConstraintText = Annotated[str, AfterValidator(_as_constraint)]
Samples = Annotated[int, Field(ge=1)] | None
Layers = Annotated[str | dict[str, Decimal], PlainValidator(_as_layers)]
"""A name of `LAYERWISE`, or sparsities of layers by patterns of their names."""
LayersOrNone = Annotated[str | dict[str, Decimal] | None, PlainValidator(_as_layers_or_none)]


def _as_points(value: Any) -> Any:
    if not isinstance(value, list | tuple) or not all(isinstance(one, dict) for one in value):
        raise ValueError(f"a list of mappings from field to value, got {shorten(value)}.")
    return tuple(
        {str(name): scalar_text(one_scalar(item)) for name, item in one.items()} for one in value
    )


Points = Annotated[tuple[dict[str, str], ...], BeforeValidator(_as_points)]
"""Points of a space: the text of each field's value."""
Names = Annotated[tuple[str, ...], BeforeValidator(_as_texts)]


class TowerNames(SpecModel):
    """Modules or parameters of a model's parts, by their qualified names; one or a list."""

    vision: Names = Field(default=(), description="The vision tower, instead of what is found.")
    language: Names = Field(default=(), description="The language model, instead of what is found.")
    connector: Names = Field(default=(), description="Of the connector, besides what is found.")
    other: Names = Field(
        default=(), description="Takes no part in questions about pictures, besides what is found."
    )


class ModelRef(SpecModel):
    """The model that is pruned."""

    id: str = Field(
        min_length=1,
        description="A catalog name, a folder written by save_pretrained, or a hub id org/name.",
    )
    revision: str | None = Field(
        default=None,
        description="Commit, tag or branch of a hub model; none takes the newest.",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32",
        description="Type in which the weights are loaded and computed with.",
    )
    image_size: int | None = Field(
        default=None,
        ge=1,
        description="Side of the squares that pictures are brought to, in pixels; null: the size "
        "that the model was trained at. At others its position embeddings are interpolated.",
    )
    towers: TowerNames = Field(
        default=TowerNames(), description="Which modules are which part, where that is not found."
    )
    trust_remote_code: bool = Field(
        default=False, description="Let a hub model run the Python code that it brings."
    )

    @property
    def catalog(self) -> CatalogModel | None:
        """The model's entry in the catalog, if `id` is a name in it."""
        if self.id not in MODELS or self.towers != TowerNames():
            return None
        return MODELS[self.id]


class DataRef(SpecModel):
    """Examples of a task, drawn by seed."""

    task: str = Field(
        default="easy-vqa", description="A name of the data section, or a task with its own data."
    )
    split: str = Field(description="Which of the task's disjoint splits they come from.")
    samples: Samples = Field(default=None, description="Number of questions, ≥ 1; null takes all.")
    seed: int = Field(default=0, ge=0, description="Seed of the draw.")


class Calibration(SpecModel):
    """Examples, always of the calibration split, on which a method takes its statistics."""

    task: str = Field(
        default="easy-vqa", description="A name of the data section, or a task with its own data."
    )
    samples: int = Field(default=128, ge=1, description="Number of questions, ≥ 1.")
    seed: int = Field(default=0, ge=0, description="Seed of the draw.")
    activations: Activations = Field(
        default="dense",
        description="Which model the statistics are taken on. dense: the dense one. tower: each "
        "block behind the pruned blocks of its own tower. sequential: and language behind pruned "
        "vision, as the papers' code does.",
    )

    @property
    def split(self) -> str:
        """The split that calibration examples come from."""
        return "calibration"


class Owl(SpecModel):
    """Options of `layers: owl`; outliers are counted on the dense model."""

    threshold: Number = Field(
        default=5.0,
        gt=0,
        description="An outlier is above this many times its block's mean, > 0 (the paper's M).",
    )
    spread: Number = Field(
        default=0.08,
        ge=0,
        le=1,
        description="How far a block's sparsity may lie from its tower's, in [0, 1] (λ).",
    )


class Ecoflap(SpecModel):
    """Options of `layers: ecoflap`."""

    samples: int = Field(
        default=32,
        ge=1,
        description="Questions that the loss is measured on, ≥ 1: the first calibration questions.",
    )
    epsilon: Number = Field(
        default=1e-3, gt=0, description="Size of the noise on the weights, > 0."
    )
    spread: Number = Field(
        default=0.1,
        ge=0,
        le=1,
        description="How far a block's sparsity may lie above its tower's, in [0, 1].",
    )


class TowerPrune(SpecModel):
    """What one tower does differently; what is null follows `prune`."""

    method: str | None = Field(default=None, description="Pruning method of this tower alone.")
    initial: str | None = Field(
        default=None, alias="from", description="The method that dsnot refines in this tower."
    )
    group: Group | None = Field(default=None, description="Where weights of this tower compete.")
    layers: LayersOrNone = Field(
        default=None, description="How this tower's sparsity is split over its layers."
    )


class Prune(SpecModel):
    """How weights are chosen."""

    method: str = Field(
        default="wanda",
        description="random, magnitude, wanda, sparsegpt, dsnot, or the name of a plug-in.",
    )
    initial: str = Field(
        default="wanda",
        alias="from",
        description="The method whose mask dsnot refines; the others do not read it.",
    )
    group: Group = Field(
        default="row",
        description="Where weights compete: within a row, a matrix, the whole tower, or all: both "
        "towers, which then share one sparsity.",
    )
    counting: Counting = Field(
        default="exact",
        description="exact: a tower loses its count to the weight; reference: each row loses the "
        "floor of its share, as in the papers' code.",
    )
    layers: Layers = Field(
        default="uniform",
        description="How a tower's sparsity is split over its layers: uniform, owl, ecoflap, or a "
        "table of name patterns and sparsities, the other layers sharing the rest.",
    )
    owl: Owl = Field(default=Owl(), description="Options of owl.")
    ecoflap: Ecoflap = Field(default=Ecoflap(), description="Options of ecoflap.")
    dampening: Number = Field(
        default=0.01,
        ge=0,
        description="What sparsegpt adds to its Hessian, ≥ 0: a share of the mean diagonal.",
    )
    cycles: int | None = Field(
        default=None,
        ge=1,
        description="Swaps that dsnot makes in a row at most, ≥ 1; null takes 50, and one for 20 "
        "inputs in layers of fewer than 1,000.",
    )
    calibration: Calibration = Field(default=Calibration(), description="Calibration examples.")
    vision: TowerPrune = Field(default=TowerPrune(), description="For the vision tower alone.")
    language: TowerPrune = Field(default=TowerPrune(), description="For the language tower alone.")

    def of(self, tower: Tower, field: str) -> Any:
        """Returns what one tower's section says of a field, else what holds for both."""
        own = getattr(getattr(self, tower), field)
        return getattr(self, field) if own is None else own

    @property
    def sections(self) -> "dict[tuple[str, ...], Prune | TowerPrune]":
        """What holds for both towers and for each alone, by where it stands in a sweep file."""
        return {
            ("prune",): self,
            ("prune", "vision"): self.vision,
            ("prune", "language"): self.language,
        }


class Rank(SpecModel):
    """Rank of the low-rank updates of each part, ≥ 1."""

    vision: int = Field(default=4, ge=1, description="Rank in the vision tower.")
    language: int = Field(default=8, ge=1, description="Rank in the language tower.")
    connector: int = Field(default=2, ge=1, description="Rank in the connector.")


class Distillation(SpecModel):
    """Loss = (1 − weight) · task loss + weight · T² · KL(dense teacher ‖ student)."""

    weight: Number = Field(default=0.1, ge=0, le=1, description="Share of the loss, in [0, 1].")
    temperature: Number = Field(default=1.0, gt=0, description="Softens both models' answers, > 0.")
    reduction: Literal["token_mean", "reference"] = Field(
        default="token_mean",
        description="token_mean: over answer tokens, times T². reference: as the paper's code, "
        "over all positions, padding too, divided by the questions; needs a second, dense model.",
    )


class Repair(SpecModel):
    """How a pruned model is trained back. The defaults are the paper's code's."""

    method: RepairMethod = Field(
        default="sparselora",
        description="sparselora, lora (dense, pruned again after the merge), masked_finetune, spp, "
        "straight_through, or none to score the pruned model alone.",
    )
    data: DataRef = Field(
        default=DataRef(split="train", samples=6000),
        description="Examples to train on.",
    )
    train: Annotated[tuple[Part, ...], BeforeValidator(_as_parts)] = Field(
        default=("vision", "connector", "language"),
        min_length=1,
        description="Parts that are trained; what is not listed stays bit-identical. As a choice "
        "of an axis: their names with commas between them.",
    )
    objective: Literal["image_text", "text", "features"] = Field(
        default="image_text",
        description="What is learnt. image_text: answers to questions about pictures. text: the "
        "same questions and answers with a blank picture, as text alone; trains language. "
        "features: the dense vision tower's features of the pictures, ‖F − D‖² / ‖D‖², no "
        "question and no distillation; trains vision.",
    )
    rank: Rank = Field(default=Rank(), description="Rank of the updates in each part.")
    alpha: Number = Field(
        default=16.0, gt=0, description="Updates are scaled by alpha / rank, > 0."
    )
    targets: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = Field(
        default=(),
        description="Which layers of the towers are trained: last parts of their names, such as "
        "q_proj, or patterns of whole names, such as '*.mlp.*'. None given: all prunable ones.",
    )
    seed: int = Field(
        default=0,
        ge=0,
        description="Seed of what repair draws: first values of the updates, and dropout.",
    )
    order_seed: int = Field(
        default=0, ge=0, description="Seed of the order in which repair sees its examples."
    )
    dropout: Number = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of its input that an update misses in training, in [0, 1); lora alone "
        "has an input to thin.",
    )
    steps: int = Field(default=390, ge=1, description="Optimiser steps, ≥ 1.")
    batch_size: int = Field(
        default=64,
        ge=1,
        description="Questions a step, over all workers together, ≥ 1.",
    )
    micro_batch: int | None = Field(
        default=None,
        ge=1,
        description="Questions a worker holds at once at most, ≥ 1; null takes batch_size / "
        "workers on CPUs, and on GPUs the most that fit.",
    )
    learning_rate: Number = Field(default=1e-4, gt=0, description="Peak learning rate, > 0.")
    schedule: Literal["constant", "cosine"] = Field(
        default="constant", description="Learning rate after the warm-up."
    )
    warmup_steps: int = Field(default=0, ge=0, description="Steps of linear warm-up, ≤ steps.")
    clip: Number = Field(default=0.0, ge=0, description="Clips the gradient's norm; 0 does not.")
    distillation: Distillation = Field(
        default=Distillation(), description="The dense model as a teacher."
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32",
        description="Type of the trained updates and their gradients; fp32 masters are kept beside "
        "a shorter one. What is frozen stays in model.dtype. float16 needs GPUs.",
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(
        default=1,
        description="DeepSpeed ZeRO stage, what workers share out instead of copying: 1 optimiser "
        "state, 2 gradients too, 3 the trained layers' weights too. 0 is run as 1 unless "
        "repair.dtype is float32.",
    )
    offload: Literal["none", "cpu"] = Field(
        default="none",
        description="cpu keeps the optimiser's state and work in main memory instead of on GPUs.",
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="Runs each transformer block again in backward instead of keeping what it "
        "computed: less memory, a third more time.",
    )
    deepspeed: Annotated[dict[str, Any], BeforeValidator(_as_plain)] = Field(
        default={},
        description="DeepSpeed settings that override what follows from repair; those that decide "
        "what is learnt are fields of repair and refused here.",
    )
    checkpoint_steps: int = Field(
        default=100,
        ge=1,
        description="Steps between two checkpoints, ≥ 1, from which a killed repair goes on.",
    )

    @field_validator("train")
    @classmethod
    def _lists_each_part_once(cls, train: tuple[Part, ...]) -> tuple[Part, ...]:
        if len(set(train)) != len(train):
            raise ValueError(f"each part once, got {', '.join(train)}.")
        return train

    def reaches(self, layer: str) -> bool:
        """Whether a tower's layer of this name is among the targets."""
        return not self.targets or any(matches(target, layer) for target in self.targets)


def matches(target: str, layer: str) -> bool:
    """Whether a target is the last part of a layer's name, or a pattern of its whole name."""
    return layer.rpartition(".")[2] == target or fnmatchcase(layer, target)


def endings(layers: Iterable[str]) -> list[str]:
    """Returns the distinct last parts of layers' names, sorted: what a target may be."""
    return sorted({layer.rpartition(".")[2] for layer in layers})


class StopWhen(SpecModel):
    """When the map says that further trials would change no line's best by much: docs/map.md."""

    regret_points: Number = Field(
        default=1.0,
        gt=0,
        le=100,
        description="How far below its line's best the best allocation that ran may lie, in points "
        "of the objective (1 is 0.01), in (0, 100].",
    )
    confidence: Number = Field(
        default=0.9,
        gt=0.5,
        lt=1,
        description="How probable that must be, on every line, in (0.5, 1).",
    )


class Search(SpecModel):
    """How points of the space are proposed."""

    sampler: Sampler = Field(
        default="tpe",
        description="grid visits every point; random and qmc (Sobol) spread out; tpe, gp and nsga2 "
        "learn; map looks for the best of every budget's line. Default: grid if the space is "
        "discrete.",
    )
    trials: int = Field(
        default=20,
        ge=1,
        description="Distinct trials to run. Default: a grid's feasible points, else 20.",
    )
    parallel: int = Field(default=1, ge=1, description="Trials that run at once, ≤ window.")
    window: int = Field(
        default=2,
        ge=1,
        description="Proposal n sees results up to trial n − window. Default: 2 · parallel.",
    )
    seed: int = Field(default=0, ge=0, description="Seed of the proposals.")
    asynchronous: bool = Field(
        default=False,
        description="Propose from whatever has finished, without waiting for the window: a search "
        "that is run or resumed again may then propose other points.",
    )
    stop_when: StopWhen | None = Field(
        default=None,
        description="Ends the sweep before all trials ran, when every budget's line is decided.",
    )

    @property
    def is_fixed(self) -> bool:
        """Whether proposals depend on their numbers alone, and on no result."""
        return self.sampler in ("grid", "qmc", "random")


AGGREGATES = ("mean_relative", "macro")
"""Means over the main metrics of all tasks that are evaluated."""
ALL_TASKS = "all"
"""The task that rows of means over tasks name."""


class Objective(SpecModel):
    """What the search looks for."""

    maximize: str = Field(
        default="easy-vqa.balanced_accuracy",
        description="task.metric of an evaluation; or a mean over all of them: mean_relative, of "
        "score / dense score, or macro, of the scores. Of several objectives, any but the first "
        "may also be sparsity, vision_sparsity, language_sparsity or whole_sparsity.",
    )

    @property
    def task(self) -> str:
        """The task whose metric is meant; `ALL_TASKS` for a mean over them."""
        return ALL_TASKS if self.maximize in AGGREGATES else self.maximize.rpartition(".")[0]

    @property
    def metric(self) -> str:
        """The metric, without its task."""
        return self.maximize.rpartition(".")[2]


def _how_many(value: Any) -> str:
    return "several" if isinstance(value, list | tuple) else "one"


OneOrMore = Annotated[
    Annotated[Objective, Tag("one")]
    | Annotated[
        Annotated[tuple[Objective, ...], BeforeValidator(as_tuple), Field(min_length=1)],
        Tag("several"),
    ],
    Discriminator(_how_many),
]


class EarlyStopping(SpecModel):
    """Successive halving over repair steps: a trial below the best of its budget ends early."""

    rungs: Annotated[tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(as_tuple)] = Field(
        min_length=1,
        description="Repair steps after which a trial is scored and may end, rising; 0 is before "
        "repair, which changes the order of trials: see `ressa order`.",
    )
    reduction: Number = Field(
        default=3.0,
        gt=1,
        description="A trial goes on if it is among the best 1 / reduction of its budget at its "
        "rung, > 1.",
    )
    samples: int = Field(
        default=256, ge=1, description="Questions of each evaluation that a rung scores, ≥ 1."
    )


class Margin(SpecModel):
    """When allocations count as equally good, and how sure a verdict is."""

    margin: Number = Field(
        default=1.0,
        gt=0,
        le=100,
        description="Near-optimal is what lies less than this below the best, in points of the "
        "objective (1 is 0.01), in (0, 100].",
    )
    confidence: Number = Field(
        default=0.95,
        gt=0.5,
        lt=1,
        description="1 − the chance that any of the sweep's verdicts is wrong, in (0.5, 1).",
    )


class Resources(SpecModel):
    """What one trial takes."""

    workers: int = Field(default=1, ge=1, description="Processes of a trial, ≥ 1.")
    gpus_per_worker: Number = Field(
        default=0.0,
        ge=0,
        description="GPUs of a worker: 0 on a CPU, a share such as 0.5, or a whole number.",
    )
    cpus_per_worker: int = Field(default=1, ge=1, description="CPU cores of a worker, ≥ 1.")
    memory_gib: Number = Field(
        default=0.0,
        ge=0,
        description="Main memory that a worker's node keeps free for it, GiB; 0: not counted.",
    )
    accelerator: str | None = Field(
        default=None,
        min_length=1,
        description="Which GPUs, by Ray's name, such as A100 or H100; null: any.",
    )
    placement: Literal["pack", "spread"] = Field(
        default="pack", description="Workers on as few nodes as hold them, or as many."
    )
    deterministic: bool = Field(
        default=False,
        description="On GPUs only operations that add in a fixed order, slower; a trial that needs "
        "another fails and names it. On CPUs all do.",
    )


class Retry(SpecModel):
    """Which attempts of a trial are made again by themselves; errors of the code or NaN never."""

    attempts: int = Field(default=3, ge=1, description="Tries of a trial in all, ≥ 1.")
    on: Annotated[tuple[Retriable, ...], BeforeValidator(as_tuple)] = Field(
        default=("node", "preempted", "oom"),
        description="After what: node (its process or machine went away), preempted (it was told "
        "to end), oom (out of memory; in a step of repair the next try has half the micro-batch).",
    )


class Limits(SpecModel):
    """When a sweep or a trial is given up."""

    failed_trials: int | None = Field(
        default=None,
        ge=1,
        description="The sweep ends when so many trials have failed for good, ≥ 1; null: never.",
    )
    trial_hours: Number | None = Field(
        default=None,
        gt=0,
        description="An attempt that takes longer is ended as failed, > 0 hours; null: never.",
    )


QUESTION_LENGTH = 1000
"""Characters of a sweep's question at most."""


class SweepSpec(SpecModel):
    """One sweep: one question, one file."""

    ressa: Literal[1] = Field(description="Version of the file format.")
    name: str = Field(
        max_length=64,
        pattern=r"^[a-z0-9][a-z0-9_-]*$",
        description="Name of the sweep in the store: a-z, 0-9, - and _. Default: the file's name.",
    )
    question: str = Field(
        default="",
        max_length=QUESTION_LENGTH,
        description="What the sweep asks, in words, for its report. Default: the first paragraph "
        "of the comment at the file's top.",
    )
    model: Annotated[ModelRef, BeforeValidator(_as_model)] = Field(
        description="The model: a name alone, or a mapping."
    )
    data: dict[str, DataSource] = Field(
        default={},
        description="Data sets in files, by the name that calibration, repair and evaluate call "
        "them by.",
    )
    prune: Prune = Field(default=Prune(), description="How weights are chosen.")
    space: dict[str, SpaceEntry] = Field(
        description="What varies: vision_sparsity and language_sparsity, or one sparsity for "
        "both, and any field of prune or repair under its dotted name. A range, choices, or a "
        "constant."
    )
    points: Points | None = Field(
        default=None,
        min_length=1,
        description="The points to run, of all that the space holds: a list of mappings, each with "
        "a value for every field. The space need not be given then.",
    )
    budget: Annotated[tuple[Share, ...] | None, BeforeValidator(_as_budget)] = Field(
        default=None,
        min_length=1,
        description="Sparsity over both towers, in [0, 1]: one number or a list. The tower that "
        "the space leaves out is solved to meet it to the weight.",
    )
    constraints: Annotated[tuple[ConstraintText, ...], BeforeValidator(_as_texts)] = Field(
        default=(),
        description="What every point must meet before it is run, such as density >= 0.4: "
        "comparisons of sums and products of numbers and of " + ", ".join(QUANTITIES) + ".",
    )
    search: Search = Field(default=Search(), description="How points are proposed.")
    repair: Repair = Field(default=Repair(), description="How a pruned model is trained back.")
    evaluate: Annotated[tuple[DataRef, ...], BeforeValidator(as_tuple)] = Field(
        default=(DataRef(split="validation", samples=2000),),
        min_length=1,
        description="What the models are scored on; the search sees validation examples alone.",
    )
    confirm: Annotated[tuple[DataRef, ...], BeforeValidator(as_tuple)] = Field(
        default=(DataRef(split="test"),),
        description="What `ressa confirm` scores the best allocations on: test examples, which the "
        "search never sees. Default: all test examples of what is evaluated.",
    )
    confirms: str | None = Field(
        default=None,
        description="The sweep that this one confirms; `ressa confirm` writes it. Then evaluate "
        "is on test examples.",
    )
    verdict: Margin = Field(
        default=Margin(), description="When allocations count as equally good, how surely."
    )
    objective: OneOrMore = Field(
        default=Objective(),
        description="What the search looks for: {maximize: task.metric}, or a list of them for a "
        "Pareto front. Tables go by the first.",
    )
    early_stopping: EarlyStopping | None = Field(
        default=None, description="Which trials end before repair does; none given: none."
    )
    replicates: int = Field(
        default=1,
        ge=1,
        le=100,
        description="Runs of each point, ≥ 1. Run r adds r to prune.calibration.seed, repair.seed "
        "and repair.order_seed.",
    )
    baselines: Annotated[
        tuple[Literal["dense", "dense_repaired"], ...], BeforeValidator(as_tuple)
    ] = Field(
        default=("dense", "dense_repaired"),
        description="Unpruned models that are scored too, as they are and repaired alike.",
    )
    resources: Resources = Field(default=Resources(), description="What one trial takes.")
    retry: Retry = Field(default=Retry(), description="Which attempts are made again.")
    limits: Limits = Field(default=Limits(), description="When a sweep or a trial is given up.")
    store: str = Field(
        default="results",
        min_length=1,
        description="Where results go: a folder, or a URL.",
    )

    @field_validator("budget")
    @classmethod
    def _lists_each_budget_once(cls, budget: tuple[Decimal, ...] | None) -> Any:
        if budget is not None and len(set(budget)) != len(budget):
            raise ValueError(f"each budget once, got {', '.join(map(str, budget))}.")
        return budget

    @cached_property
    def dimensions(self) -> tuple[Dimension, ...]:
        """The axes in fixed order: the budget if there is one, the space, the replicates if any."""
        axes = [Dimension.of(name, e, integer=is_integer(name)) for name, e in self.space.items()]
        if self.budget is not None:
            axes.insert(0, Dimension.of(BUDGET, Choices(choices=self.budget), integer=False))
        if self.replicates > 1:
            runs = Choices(choices=tuple(range(self.replicates)))
            axes.append(Dimension.of(REPLICATE, runs, integer=True))
        return tuple(axes)

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """What the search looks for; tables and early stopping go by the first."""
        return self.objective if isinstance(self.objective, tuple) else (self.objective,)

    @property
    def solved_tower(self) -> Tower | None:
        """The tower whose sparsity the budget decides; None without a budget."""
        if self.budget is None:
            return None
        return "language" if "vision_sparsity" in self.space else "vision"

    def to_yaml(self) -> str:
        """Writes the spec so that `spec_from_yaml` reads back an equal one."""
        return write(_listed(self.model_dump()))

    @property
    def identity(self) -> str:
        """Hash of the fields that can change results; what may grow or move is left out.

        The window is left out because a stored sweep keeps the one it began with.
        """
        content = self.model_dump(
            exclude={
                "name": True,
                "question": True,
                "store": True,
                "search": {"trials", "parallel", "window", "stop_when"},
                "resources": True,
                "retry": True,
                "limits": True,
                "verdict": True,
            }
        )
        content["data"] = {name: source.identity for name, source in self.data.items()}
        text = json.dumps(_canonical(content), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def _listed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, list | tuple) else value


def _canonical(value: Any) -> Any:
    """Makes equal numbers equal text, so that 0.50 and 0.5 are one sweep."""
    if isinstance(value, dict):
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    if isinstance(value, float):
        return scalar_text(exact_decimal(value))
    return scalar_text(value) if isinstance(value, int | Decimal) else value


def sweepable_fields() -> dict[str, Any]:
    """Maps the dotted names of all single-valued fields of prune and repair to their types."""
    found: dict[str, Any] = {}

    def collect(model: type[SpecModel], prefix: str) -> None:
        for name, field in model.by_key().items():
            kind = field.annotation
            if isinstance(kind, type) and issubclass(kind, SpecModel):
                collect(kind, f"{prefix}.{name}")
            elif name not in ("targets", "deepspeed"):  # not values that an axis can hold
                found[f"{prefix}.{name}"] = kind

    collect(Prune, "prune")
    collect(Repair, "repair")
    return found


def is_integer(name: str) -> bool:
    """Whether a dimension's field holds integers."""
    return sweepable_fields().get(name) in (int, int | None, Samples)
