"""What `ressa plan` and `ressa models` show: worked out without Ray, and without torch where the
model is in the catalog.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import pandas

from ressa.catalog import MODELS, TASKS
from ressa.errors import InfeasibleAllocation, MissingExtraError, SpecError
from ressa.search.fixed import chance
from ressa.sparsity import TOWERS, Inventory
from ressa.spec import ModelRef, SweepSpec, grid_points
from ressa.spec.space import SPARSITIES, SPARSITY
from ressa.sweep.plan import SweepPlan, inventory_of, make_plan

_MOST_POINTS = 200  # more rows are not read by anyone
_DRAWN = 500  # points of a continuous space: their feasible share is good to a few per cent
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}  # of a weight


@dataclass(frozen=True)
class Preview:
    """The points a sweep may try, and what is worth saying about it in words."""

    points: pandas.DataFrame
    words: list[str]


def preview(spec: SweepSpec) -> Preview:
    """Works out what a sweep would run."""
    plan = make_plan(spec)
    words: list[str] = []
    if spec.data:
        plan, words = _with_data(plan)
    rows: list[dict[str, Any]] = []
    distinct = 0
    if all(dimension.size is not None for dimension in spec.dimensions):
        feasible, skipped = grid_points(spec, plan.inventory)
        rows = [_row(plan, point) for point in feasible[:_MOST_POINTS]]
        distinct = len({plan.key_of(point) for point in feasible})
        words.append(f"{len(feasible)} points, {distinct} distinct trials in the space")
        if len(feasible) > len(rows):
            words.append(f"the first {len(rows)} are shown")
        words += [f"skipped {_fields(point)}: {reason}" for point, reason in skipped]
    else:
        words += _continuous(plan)
    search = spec.search
    count = min(search.trials, distinct or search.trials)
    sees = "whatever has finished" if search.asynchronous else f"results up to n − {search.window}"
    words += [
        f"{count} trials by {search.sampler}, {search.parallel} at once, proposal n sees {sees}; "
        f"baselines: {', '.join(plan.baselines) or 'none'}",
        *_shared(plan, count),
        *_data_words(plan),
    ]
    return Preview(pandas.DataFrame(rows), words)


def _with_data(plan: SweepPlan) -> tuple[SweepPlan, list[str]]:
    """Returns a plan that needs no data if they cannot be read here, and says why not."""
    try:
        _ = plan.data
    except (SpecError, MissingExtraError) as error:
        return replace(plan, reads_data=False), [f"data were not read: {error}"]
    return plan, []


def _continuous(plan: SweepPlan) -> list[str]:
    """How much of a space that cannot be listed is excluded, by points drawn from it evenly."""
    words = ["the space is continuous: the sampler draws from it"]
    reasons = []
    for point in islice(chance(plan.spec.dimensions, 0), _DRAWN):
        try:
            plan.trial(point)
        except InfeasibleAllocation as error:
            reasons.append((point, str(error)))
    if reasons:
        words.append(f"of {_DRAWN} points drawn from it {len(reasons)} are excluded, such as:")
        words += [f"skipped {_fields(point)}: {reason}" for point, reason in reasons[:3]]
    return words


def _row(plan: SweepPlan, point: dict[str, str]) -> dict[str, Any]:
    trial = plan.trial(point)
    lost = plan.all_zeros(trial)
    asked = {tower: trial.tower(tower) for tower in TOWERS}
    return {
        **{field: value for field, value in point.items() if field not in (*SPARSITIES, SPARSITY)},
        **{tower: None if one.is_shared else str(one.target) for tower, one in asked.items()},
        **{f"{tower}_zeros": plan.zeros(trial, tower) for tower in TOWERS},
        "sparsity": lost / plan.inventory.prunable(),
        "whole_sparsity": lost / plan.inventory.whole,
    }


def _fields(point: Mapping[str, str]) -> str:
    return " ".join(f"{field}={value}" for field, value in point.items())


def _shared(plan: SweepPlan, count: int) -> list[str]:
    """What trials will share: done once per store, not once per trial."""
    spec = plan.spec
    methods = {spec.prune.of(tower, "method") for tower in TOWERS}
    layers = [spec.prune.of(tower, "layers") for tower in TOWERS]
    shared = ["the dense model's scores"]
    if methods & {"wanda", "sparsegpt", "dsnot"} or "owl" in layers:
        shared.append(f"calibration on {spec.prune.calibration.samples} questions")
    if "ecoflap" in layers:
        samples = min(spec.prune.ecoflap.samples, spec.prune.calibration.samples)
        shared.append(f"the importance of each layer on {samples} of them")
    words = []
    if spec.repair.method != "none" and spec.repair.objective == "features":
        gib = plan.inventory.parameters["vision"] * _BYTES[spec.model.dtype] / 2**30
        words.append(f"each worker holds the dense vision tower too: {_size(gib)}")
    elif spec.repair.method != "none" and spec.repair.distillation.weight:
        if spec.repair.distillation.reduction == "reference":
            gib = plan.inventory.whole * _BYTES[spec.model.dtype] / 2**30
            words.append(f"each worker holds the dense model too, as the teacher: {_size(gib)}")
        else:
            questions, size = spec.repair.data.samples or "all", _teacher_size(plan)
            shared.append(f"the teacher's answers to {questions} repair questions{size}")
    shared_words = f"shared by all {count} trials: {', '.join(shared)}; equal masks of a tower too"
    return [shared_words, *words]


def _teacher_size(plan: SweepPlan) -> str:
    """How much the cached logits take: answer tokens × vocabulary × 4 bytes, where it is known.

    The pocket models' vocabulary has a token for each word; an answer ends with one more.
    """
    model, data = plan.spec.model.catalog, plan.spec.repair.data
    if model is None or data.task in plan.spec.data:
        return ""
    try:
        examples = TASKS[data.task]().examples(data.split, data.samples, data.seed)
    except ModuleNotFoundError:  # said where the data are
        return ""
    config = json.loads((model.folder / "config.json").read_text(encoding="utf-8"))
    tokens = sum(len(example.answer.split()) + 1 for example in examples)
    return f" (about {_size(tokens * config['text_config']['vocab_size'] * 4 / 2**30)})"


def _size(gib: float) -> str:
    return f"{gib:.1f} GiB" if gib >= 1 else f"{gib * 1024:.1f} MiB"


def _data_words(plan: SweepPlan) -> list[str]:
    if not plan.reads_data:
        return []
    try:
        data = plan.data
    except ModuleNotFoundError as missing:
        return [f"data were not read: they need {missing.name}, of the packages that run trials"]
    return [
        f"{row['purpose']}: {row['samples']} questions on {len(row['image_ids'])} images of "
        f"{row['task']}/{row['split']}, disjoint from the other purposes"
        for row in data
    ]


def catalog_rows() -> list[dict[str, Any]]:
    """One row for each model that comes with ressa."""
    return [
        {"model": name, **_sizes(MODELS[name].inventory()), "summary": MODELS[name].summary}
        for name in MODELS
    ]


def _sizes(inventory: Inventory) -> dict[str, int]:
    prunable = {f"prunable_{tower}": inventory.prunable(tower) for tower in TOWERS}
    return {"parameters": inventory.whole, **prunable}


def model_rows(model: str) -> list[dict[str, Any]]:
    """One row for each part of a model: parameters, what can be pruned, share of the whole."""
    inventory = inventory_of(ModelRef(id=model))
    rows = []
    for part, parameters in inventory.parameters.items():
        layers = inventory.tower(part)
        rows.append(
            {
                "part": part,
                "parameters": parameters,
                "blocks": len({layer.block for layer in layers}),
                "layers": len(layers),
                "prunable": inventory.prunable(part) if layers else 0,
                "share_of_whole": parameters / inventory.whole,
            }
        )
    return rows
