"""What `ressa plan` and `ressa models` show: worked out without Ray, and without torch where the
model is in the catalog.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import pandas

from ressa.catalog import MODELS, TASKS
from ressa.data import open_data
from ressa.errors import (
    InfeasibleAllocation,
    MissingExtraError,
    NotFoundError,
    SpecError,
    StoreError,
)
from ressa.records import TrialSpec
from ressa.search.fixed import chance
from ressa.sparsity import TOWERS, Inventory
from ressa.spec import ModelRef, SweepSpec, count_points, grid_points
from ressa.spec.space import SPARSITIES, SPARSITY
from ressa.store import open_store
from ressa.sweep.cost import BYTES, Fact, cost_words
from ressa.sweep.plan import SweepPlan, inventory_of, make_plan
from ressa.sweep.shared import already_made, how_often

_MOST_POINTS = 200  # more rows are not read by anyone
_DRAWN = 500  # points of a continuous space: their feasible share is good to a few per cent
_MOST_LISTED = 10_000  # points of a space
_NUMBER = re.compile(r"\d[\d.,]*")


@dataclass(frozen=True)
class Preview:
    """The points a sweep may try, and what is worth saying about it in words."""

    points: pandas.DataFrame
    facts: list[Fact]
    is_refused: bool
    """Whether `ressa run` would refuse it here, for the model or the data."""


def preview(spec: SweepSpec) -> Preview:
    """Works out what a sweep would run."""
    plan = make_plan(spec)
    facts = _of_model(plan)
    if spec.data:
        plan, said_of_data = _with_data(plan)
        facts += said_of_data
    is_refused = bool(facts)
    rows: list[dict[str, Any]] = []
    distinct = 0
    trials: dict[str, TrialSpec] = {}
    drawn: list[TrialSpec] = []
    if count_points(spec) <= _MOST_LISTED:
        feasible, skipped = grid_points(spec, plan.inventory)
        rows = [_row(plan, point) for point in feasible[:_MOST_POINTS]]
        trials = {trial.key: trial for trial in map(plan.trial, feasible)}
        distinct = len(trials)
        first = f"; the first {len(rows)} are shown" if len(feasible) > len(rows) else ""
        facts.append(("space", f"{len(feasible)} points, {distinct} distinct trials{first}"))
        facts += _skipped(skipped)
    else:
        drawn, said = _continuous(plan)
        facts += said
    count = min(spec.search.trials, distinct or spec.search.trials)
    facts += [
        ("search", f"{spec.search.sampler}, {count} trials, {spec.search.parallel} at once"),
        *_sees(spec),
        ("baselines", ", ".join(plan.baselines) or "none"),
        *_shared(plan, count, trials),
        *_data_words(plan),
        *_unconfirmed(spec),
        *cost_words(plan, count, list(trials.values()) or drawn),
    ]
    return Preview(pandas.DataFrame(rows), facts, is_refused)


def _sees(spec: SweepSpec) -> list[Fact]:
    """What a proposal looks at, where it looks at anything, and what may end the sweep sooner."""
    search, stop = spec.search, spec.search.stop_when
    seen = "whatever has finished" if search.asynchronous else f"results up to n − {search.window}"
    facts = [("search", f"proposal n sees {seen}")]
    if search.is_fixed and spec.early_stopping is None:
        facts = []
    if stop is not None:
        points = "1 point" if stop.regret_points == 1 else f"{stop.regret_points:g} points"
        said = (
            f"it ends sooner, when on each line the best that ran is {stop.confidence:.0%} sure to "
            f"lie less than {points} below the line's best"
        )
        facts.append(("search", said))
    return facts


def _skipped(points: Iterable[tuple[dict[str, str], str]]) -> list[Fact]:
    """Why points cannot be run: a fact for each reason, with an example."""
    found: dict[str, list[str]] = {}
    for point, reason in points:
        # Reasons that differ in their numbers are one, and a constraint's is its text.
        alike = (
            reason.split(": ")[0] if reason.startswith("constraint ") else _NUMBER.sub("", reason)
        )
        found.setdefault(alike, []).append(f"{_fields(point)}: {reason}")
    return [
        (
            "skipped",
            examples[0] if len(examples) == 1 else f"{len(examples)}, such as {examples[0]}",
        )
        for examples in found.values()
    ]


def _of_model(plan: SweepPlan) -> list[Fact]:
    """Why no trial could load the model, as far as can be told from here."""
    try:
        plan.check_model()
    except SpecError as error:
        return [("model", f"cannot be run here: {error}")]
    return []


def _with_data(plan: SweepPlan) -> tuple[SweepPlan, list[Fact]]:
    """Returns a plan that needs no data if they cannot be used here, and says why not."""
    try:
        _ = plan.data
    except (SpecError, MissingExtraError) as error:
        return replace(plan, reads_data=False), [("data", f"cannot be used here: {error}")]
    return plan, []


def _continuous(plan: SweepPlan) -> tuple[list[TrialSpec], list[Fact]]:
    """Draws points evenly from a space that cannot be listed, and says how much is excluded."""
    size = count_points(plan.spec)
    what = "continuous" if size == math.inf else f"{size:,.0f} points, too many to list"
    facts = [("space", f"{what}: the sampler draws from it")]
    reasons, drawn = [], []
    for point in islice(chance(plan.spec.dimensions, 0), _DRAWN):
        try:
            drawn.append(plan.trial(point))
        except InfeasibleAllocation as error:
            reasons.append((point, str(error)))
    if reasons:
        share = f"of {_DRAWN} points drawn from it {len(reasons)} are excluded"
        facts += [("space", share), *_skipped(reasons)]
    return drawn, facts


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


def _shared(plan: SweepPlan, count: int, trials: Mapping[str, TrialSpec]) -> list[Fact]:
    """What trials will share, how often each is made, and what is there already."""
    spec = plan.spec
    baselines = {trial.key: trial for trial in map(plan.baseline, plan.baselines)}
    known = list({**baselines, **trials}.values())
    asked = how_often(known or [plan.baseline("dense_repaired")], plan.inventory)
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
    if trials:
        most = "" if spec.search.sampler == "grid" and count >= len(trials) else "at most "
        shared = [
            f"{names[kind]}: made {most}{_times(made)}, used {_times(used)}"
            for kind, (made, used) in asked.items()
        ]
    else:
        shared = [names[kind] for kind in asked if not kind.endswith(("-mask", "threshold"))]
        shared.append("equal masks of a tower")
    facts = [("shared work", one) for one in shared]
    try:
        made = _made(plan, known)
    except StoreError as error:  # trials need it, and a plan does not
        made = {}
        facts.append(("shared work", f"what the store holds of it is not known: {error}"))
    if made:
        found = ", ".join(f"{number} {kind}" for kind, number in made.items())
        facts.append(("shared work", f"of it the store {spec.store} holds: {found}"))
    return facts + _live_teacher(plan)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _made(plan: SweepPlan, trials: list[TrialSpec]) -> dict[str, int]:
    """What is in the store already; nothing where there is no store or no way to ask."""
    try:
        return already_made(trials, plan.inventory, open_store(plan.spec.store))
    except (NotFoundError, ModuleNotFoundError):  # a base install lacks what prunes
        return {}


def _live_teacher(plan: SweepPlan) -> list[Fact]:
    """What a teacher takes that is not a stage."""
    spec = plan.spec
    weight = BYTES[spec.model.dtype] / 2**30
    if spec.repair.method == "none":
        return []
    if spec.repair.objective == "features":
        size = _size(plan.inventory.parameters["vision"] * weight)
        return [("each worker", f"holds the dense vision tower too: {size}")]
    if spec.repair.distillation.weight and spec.repair.distillation.reduction == "reference":
        size = _size(plan.inventory.whole * weight)
        return [("each worker", f"holds the dense model too, as the teacher: {size}")]
    return []


def _teacher_size(plan: SweepPlan) -> str:
    """How much the cached logits take: answer tokens × vocabulary × bytes, where it is known.

    The pocket models' vocabulary has a token for each word; an answer ends with one more.
    """
    model, data = plan.spec.model.catalog, plan.spec.repair.data
    token = plan.inventory.vocabulary * BYTES[plan.spec.model.dtype]
    if model is None or model.is_on_hub or data.task in plan.spec.data:
        return f" ({token / 1000:.0f} kB a token of an answer)"
    try:
        examples = TASKS[data.task]().examples(data.split, data.samples, data.seed)
    except ModuleNotFoundError:  # said where the data are
        return ""
    tokens = sum(len(example.answer.split()) + 1 for example in examples)
    return f" (about {_size(tokens * token / 2**30)})"


def _size(gib: float) -> str:
    return f"{gib:.1f} GiB" if gib >= 1 else f"{gib * 1024:.1f} MiB"


def _data_words(plan: SweepPlan) -> list[Fact]:
    if not plan.reads_data:
        return []
    try:
        data = plan.data
    except ModuleNotFoundError as missing:
        needed = f"were not read: they need {missing.name}, of the packages that run trials"
        return [("data", needed)]
    alike: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in data:
        alike.setdefault((row["purpose"], row["task"], row["split"]), []).append(row)
    words = [
        (
            purpose,
            f"{f'{len(rows)} draws of ' if len(rows) > 1 else ''}"
            f"{_span([row['samples'] for row in rows])} questions on "
            f"{_span([len(row['image_ids']) for row in rows])} images of {task}/{split}, disjoint "
            "from the other purposes",
        )
        for (purpose, task, split), rows in alike.items()
    ]
    drawn = {row["task"] for row in data}
    for name, source in plan.spec.data.items():
        repeats = open_data(name, source).repeats() if name in drawn else None
        if repeats is not None:
            words.append(("pictures", f"{name}: {repeats}"))
    return words


def _span(counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _unconfirmed(spec: SweepSpec) -> list[Fact]:
    """Says, before trials are run, that none of them could be confirmed later."""
    if spec.confirm or spec.confirms is not None:
        return []
    names = ", ".join(dict.fromkeys(one.task for one in spec.evaluate))
    said = f"no examples: `ressa confirm` needs a test split of {names}, in data.NAME.splits"
    return [("confirm", said)]


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
