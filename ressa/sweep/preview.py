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
from ressa.errors import InfeasibleAllocation, MissingExtraError, NotFoundError, SpecError
from ressa.records import TrialSpec
from ressa.sparsity import TOWERS, Inventory
from ressa.spec import ModelRef, Search, SweepSpec, grid_points
from ressa.spec.space import SPARSITIES, SPARSITY
from ressa.store import open_store
from ressa.sweep.cost import cost_words
from ressa.sweep.plan import SweepPlan, inventory_of, make_plan
from ressa.sweep.shared import already_made, how_often, trials_of

_MOST_POINTS = 200  # more rows are not read by anyone
_DRAWN = 500  # points of a continuous space: their feasible share is good to a few per cent
_MOST_KEYS = 10_000  # points whose stages are counted
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
    feasible: list[dict[str, str]] = []
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
        *_ends_early(search),
        *_shared(plan, count, feasible),
        *_data_words(plan),
        *cost_words(plan, count),
    ]
    return Preview(pandas.DataFrame(rows), words)


def _ends_early(search: Search) -> list[str]:
    stop = search.stop_when
    if stop is None:
        return []
    points = "1 point" if stop.regret_points == 1 else f"{stop.regret_points:g} points"
    return [
        f"it ends sooner, when on each line the best that ran is {stop.confidence:.0%} sure to lie "
        f"less than {points} below the line's best"
    ]


def _with_data(plan: SweepPlan) -> tuple[SweepPlan, list[str]]:
    """Returns a plan that needs no data if they cannot be read here, and says why not."""
    try:
        _ = plan.data
    except (SpecError, MissingExtraError) as error:
        return replace(plan, reads_data=False), [f"data were not read: {error}"]
    return plan, []


def _continuous(plan: SweepPlan) -> list[str]:
    """How much of a space that cannot be listed is excluded, by points drawn from it evenly."""
    from ressa.search.fixed import chance  # with optuna, which a base install lacks

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


def _shared(plan: SweepPlan, count: int, points: list[dict[str, str]]) -> list[str]:
    """What trials will share, how often each is made, and what is there already."""
    spec = plan.spec
    known = list(trials_of(plan, points[:_MOST_KEYS]).values())
    asked = how_often(known or [plan.baseline("dense_repaired")])
    samples, repaired = spec.prune.calibration.samples, spec.repair.data
    questions = repaired.samples or "all"
    names = {
        "dense": "the dense model's scores",
        "calibration": f"calibration on {samples} questions",
        "teacher": f"the teacher's answers to {questions} repair questions{_teacher_size(plan)}",
        "outliers": "the outliers of each block",
        "importance": "the importance of each layer on "
        f"{min(spec.prune.ecoflap.samples, samples)} of them",
        "threshold": "thresholds",
        "vision-mask": "vision masks",
        "language-mask": "language masks",
    }
    whole = [names[kind] for kind in asked if not kind.endswith(("-mask", "threshold"))]
    words = [f"shared by all {count} trials: {', '.join(whole)}; equal masks of a tower too"]
    if points:
        most = "" if spec.search.sampler == "grid" and count >= len(points) else "at most "
        counts = [f"{names[kind].split(' (')[0]} {n}× for {m}" for kind, (n, m) in asked.items()]
        words.append(f"made once for every trial that asks, {most}{'; '.join(counts)}")
    made = _made(plan, known)
    if made:
        found = ", ".join(f"{number} {kind}" for kind, number in made.items())
        words.append(f"of these stages the store {spec.store} holds: {found}")
    return words + _live_teacher(plan)


def _made(plan: SweepPlan, trials: list[TrialSpec]) -> dict[str, int]:
    """What is in the store already; nothing where there is no store or no way to ask."""
    try:
        return already_made(trials, open_store(plan.spec.store))
    except NotFoundError:
        return {}
    except ModuleNotFoundError:  # a base install, without what prunes
        return {}


def _live_teacher(plan: SweepPlan) -> list[str]:
    """What a teacher takes that is not a stage."""
    spec = plan.spec
    weight = _BYTES[spec.model.dtype] / 2**30
    if spec.repair.method == "none":
        return []
    if spec.repair.objective == "features":
        size = _size(plan.inventory.parameters["vision"] * weight)
        return [f"each worker holds the dense vision tower too: {size}"]
    if spec.repair.distillation.weight and spec.repair.distillation.reduction == "reference":
        size = _size(plan.inventory.whole * weight)
        return [f"each worker holds the dense model too, as the teacher: {size}"]
    return []


def _teacher_size(plan: SweepPlan) -> str:
    """How much the cached logits take: answer tokens × vocabulary × 4 bytes, where it is known.

    The pocket models' vocabulary has a token for each word; an answer ends with one more.
    """
    model, data = plan.spec.model.catalog, plan.spec.repair.data
    if model is None or model.is_on_hub or data.task in plan.spec.data:
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
        prunable = sum(layer.weights for layer in layers)
        rows.append(
            {
                "part": part,
                "parameters": parameters,
                "share_of_whole": parameters / inventory.whole,
                "blocks": len({layer.block for layer in layers}),
                "layers": len(layers),
                "prunable": prunable,
                "share_of_prunable": prunable / inventory.prunable(),
                "modules": " ".join(inventory.modules.get(part, ())),
            }
        )
    return rows
