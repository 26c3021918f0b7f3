"""Faults that need more than one field to see: names, splits, budgets, fields of a space.

Each check yields what it finds; `resolve.py` says where it stands in the file.
"""

import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError

from ressa.catalog import METHODS, MODELS, TASKS, task_facts
from ressa.errors import SpecError, UnknownNameError, did_you_mean
from ressa.registry import Registry
from ressa.sparsity import TOWERS, Target, exact_fraction, out_of_range
from ressa.spec.constraints import parse_constraint
from ressa.spec.data import HUB, SPLITS
from ressa.spec.deepspeed import deepspeed_faults
from ressa.spec.exclusive import (
    precision_conflicts,
    repair_conflicts,
    stopping_conflicts,
    training_conflicts,
)
from ressa.spec.faults import explain
from ressa.spec.points import (
    CALIBRATION,
    REPAIR_DATA,
    conflicts,
    count_points,
    no_pattern_for_all,
    override,
)
from ressa.spec.schema import (
    AGGREGATES,
    ALL_TASKS,
    Calibration,
    DataRef,
    SweepSpec,
    is_integer,
    sweepable_fields,
)
from ressa.spec.space import BUDGET, SPARSITIES, SPARSITY, Choices, Range, Scalar
from ressa.spec.yaml import MAX_VALUES, Path, Problem, count_values

COUNTED = ("sparsity", "vision_sparsity", "language_sparsity", "whole_sparsity")
"""Objectives that are counted, not measured."""
_MOST_VALUES = 10_000  # of one axis, and points of a grid
_MOST_DRAWS = 256  # of calibration examples, and of repair's
_DATA_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def check_spec(spec: SweepSpec, incomplete: Iterable[str] = ()) -> Iterator[Problem]:
    """Yields every fault that shows without the model's layers.

    Args:
        spec: a spec whose single fields are valid.
        incomplete: sections from which invalid values were taken out: what spans them is not
            judged.
    """
    out = set(incomplete)
    for check, sections in _CHECKS:
        if not out.intersection(sections):
            yield from check(spec)


def _check_count(spec: SweepSpec) -> Iterator[Problem]:
    """Refuses a spec that would be stored, or sent to a cluster, and not be read there."""
    values = count_values(spec.model_dump())
    if values > MAX_VALUES:
        listed = f" {len(spec.points):,} points are listed." if spec.points else ""
        message = (
            f"at most {MAX_VALUES:,} values with all that is filled in, got {values:,}.{listed} "
            "Split the sweep."
        )
        yield Problem(("points",) if spec.points else (), message)


def _check_model(spec: SweepSpec) -> Iterator[Problem]:
    ref = spec.model
    folder = FilePath(os.path.expanduser(ref.id))  # Path's own raises for a user it does not know
    is_hub = _HUB_ID.fullmatch(ref.id) is not None
    if ref.revision is not None and (not is_hub or folder.exists()):
        yield Problem(("model", "revision"), "only hub models have revisions. Leave it out.")
    if ref.catalog is not None:
        return
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            message = (
                f"the folder {ref.id!r} holds no config.json. Name what save_pretrained wrote."
            )
            yield Problem(("model", "id"), message)
        return
    if ref.id.startswith((".", "/", "~")) or folder.exists():
        yield Problem(("model", "id"), f"no folder {ref.id!r}.")
    elif not is_hub:
        unknown = UnknownNameError("model", ref.id, MODELS)
        message = f"{unknown} A folder or a hub id such as org/name will do too."
        yield Problem(("model", "id"), message)


def _check_prune(spec: SweepSpec) -> Iterator[Problem]:
    for path, section in spec.prune.sections.items():
        for key, method in (("method", section.method), ("from", section.initial)):
            if method is not None:
                yield from _check_name(METHODS, method, (*path, key))
        if section.initial == "dsnot":
            message = "dsnot refines the mask of another method. Name that one, such as wanda."
            yield Problem((*path, "from"), message)
    yield from _check_examples(spec, spec.prune.calibration, ("prune", "calibration"))
    yield from conflicts(spec)


def _check_repair_data(spec: SweepSpec) -> Iterator[Problem]:
    data = spec.repair.data
    yield from _check_examples(spec, data, ("repair", "data"))
    if data.split != "train":
        message = f"repair learns from split 'train' alone, got {data.split!r}."
        yield Problem(("repair", "data", "split"), f"{message}{_reserved(data)}")


def _check_resources(spec: SweepSpec) -> Iterator[Problem]:
    resources, path = spec.resources, ("resources", "gpus_per_worker")
    gpus = resources.gpus_per_worker
    if gpus > 1 and gpus != int(gpus):
        yield Problem(path, f"above 1 a whole number of GPUs, got {gpus:g}.")
    elif 0 < gpus < 1 and resources.workers > 1:
        message = (
            f"workers that exchange over NCCL need a GPU each, got {gpus:g} for each of "
            f"{resources.workers}. Set workers to 1, or a whole number here."
        )
        yield Problem(path, message)
    if resources.accelerator is not None and not gpus:
        message = (
            f"{resources.accelerator} is a kind of GPU, and gpus_per_worker is 0. Leave it out."
        )
        yield Problem(("resources", "accelerator"), message)


def _check_deepspeed(spec: SweepSpec) -> Iterator[Problem]:
    for problem in deepspeed_faults(spec.repair.deepspeed):
        yield Problem(("repair", "deepspeed", *problem.path), problem.message)


def _reserved(data: DataRef) -> str:
    if data.split not in SPLITS:
        return did_you_mean(data.split, SPLITS)
    return " Splits share no image, so that what is trained on is never scored."


def _check_evaluate(spec: SweepSpec) -> Iterator[Problem]:
    for index, data in enumerate(spec.evaluate):
        yield from _check_examples(spec, data, ("evaluate", index))
        if spec.confirms is None and data.split != "validation":
            message = f"a sweep is scored on split 'validation' alone, got {data.split!r}."
            hint = _reserved(data)
            if data.split == "test":
                hint = " The test split is kept for what the search never sees."
            yield Problem(("evaluate", index, "split"), f"{message}{hint}")
        if data.task in [other.task for other in spec.evaluate[:index]]:
            yield Problem(
                ("evaluate", index, "task"), f"{data.task!r} is scored already. Once each."
            )


def _check_confirm(spec: SweepSpec) -> Iterator[Problem]:
    for index, data in enumerate(spec.confirm):
        yield from _check_examples(spec, data, ("confirm", index))
        if data.split != "test":
            message = f"what was searched is confirmed on split 'test' alone, got {data.split!r}."
            yield Problem(("confirm", index, "split"), message)
        if data.task in [other.task for other in spec.confirm[:index]]:
            message = f"{data.task!r} is scored already. Once each."
            yield Problem(("confirm", index, "task"), message)
        if spec.confirms is None and data.task not in [ref.task for ref in spec.evaluate]:
            message = f"{data.task!r} is not evaluated: nothing was searched by it."
            yield Problem(("confirm", index, "task"), message)
    if spec.confirms is None:
        return
    if spec.points is None:
        message = "a sweep that confirms another lists its points: `ressa confirm` writes it."
        yield Problem(("confirms",), message)
    for index, data in enumerate(spec.evaluate):
        if data.split != "test":
            message = f"a sweep that confirms another is scored on 'test', got {data.split!r}."
            yield Problem(("evaluate", index, "split"), message)


def _check_points_listed(spec: SweepSpec) -> Iterator[Problem]:
    if spec.points is None:
        return
    if spec.budget is not None:
        message = "listed points say what each tower loses. Leave the budget out."
        yield Problem((BUDGET,), message)
    if spec.search.sampler != "grid":
        message = f"listed points are visited in order, by grid, got {spec.search.sampler}."
        yield Problem(("search", "sampler"), message)
    axes = {axis.name: axis.values or () for axis in spec.dimensions}
    for index, point in enumerate(spec.points):
        path: Path = ("points", index)
        if set(point) != set(spec.space):
            missing, unknown = set(spec.space) - set(point), set(point) - set(spec.space)
            message = "each point has a value for every field"
            message += f"; this one lacks {', '.join(sorted(missing))}" if missing else ""
            message += f"; the space lacks {', '.join(sorted(unknown))}" if unknown else ""
            yield Problem(path, f"{message}.")
            continue
        if point in spec.points[:index]:
            yield Problem(path, "this point is listed already. Once each.")
        for name, value in point.items():
            if value not in axes[name]:
                yield Problem((*path, name), f"the space has no such value, got {value}.")


def _check_objective(spec: SweepSpec) -> Iterator[Problem]:
    tasks = [data.task for data in spec.evaluate]
    scores = [
        f"{task}.{metric}" for task in tasks for metric in task_facts(_kind(spec, task)).metrics
    ]
    if len(tasks) > 1:
        scores += AGGREGATES
    for index, objective in enumerate(spec.objectives):
        path: Path = ("objective", index) if isinstance(spec.objective, tuple) else ("objective",)
        names = [*scores, *COUNTED] if index else scores
        if objective in spec.objectives[:index]:
            message = f"{objective.maximize!r} is maximized already. Once each."
            yield Problem((*path, "maximize"), message)
        if objective.maximize in names:
            continue
        hint = did_you_mean(objective.maximize, names)
        if objective.task in {*_task_names(spec)} - {*tasks}:
            hint = f" Task {objective.task!r} is not evaluated: add it to evaluate."
        if objective.maximize in AGGREGATES:
            hint = f" {objective.maximize} is over several tasks: evaluate more than one."
        if objective.maximize in COUNTED:
            hint = " The first objective is a score: tables go by it. List it after one."
        message = f"task.metric, one of {', '.join(names)}, got {objective.maximize!r}.{hint}"
        yield Problem((*path, "maximize"), message)


def _kind(spec: SweepSpec, name: str) -> str:
    """The task of the catalog that a section's task name comes to."""
    return spec.data[name].task if name in spec.data else name


def _task_names(spec: SweepSpec) -> list[str]:
    """What a section may name as its task: entries of `data`, and tasks that bring their own."""
    return sorted([*spec.data, *(name for name in TASKS if not task_facts(name).formats)])


def _check_examples(spec: SweepSpec, ref: DataRef | Calibration, path: Path) -> Iterator[Problem]:
    known = _task_names(spec)
    if ref.task not in known:
        message = str(UnknownNameError("task", ref.task, known))
        if ref.task in TASKS:
            message = (
                f"{ref.task} reads files. Say which in the data section, such as data: "
                f"{{mine: {{task: {ref.task}, format: {task_facts(ref.task).formats[0]}, "
                "path: folder}}, and name that entry here."
            )
        yield Problem((*path, "task"), message)
        return
    source = spec.data.get(ref.task)
    if source is not None and source.splits and ref.split in SPLITS:
        if ref.split not in source.splits:
            message = f"it has no {ref.split} split: data.{ref.task}.splits names none."
            yield Problem((*path, "task"), message)
        elif source.task == "retrieval" and ref.split not in ("validation", "test"):
            yield Problem((*path, "task"), "retrieval is for evaluate alone.")


def _check_data(spec: SweepSpec) -> Iterator[Problem]:
    for name, source in spec.data.items():
        path: Path = ("data", name)
        if not _DATA_NAME.fullmatch(name) or name == ALL_TASKS:
            yield Problem(path, f"a name of a-z, 0-9, - and _, not {ALL_TASKS!r}, got {name!r}.")
        formats = task_facts(source.task).formats
        with_files = [task for task in TASKS if task_facts(task).formats]
        if not formats:
            message = str(UnknownNameError("task that reads files", source.task, with_files))
            yield Problem((*path, "task"), message)
        elif name in TASKS and not task_facts(name).formats:
            yield Problem(path, f"{name!r} is a task that brings its own data. Another name.")
        elif source.format not in formats:
            message = (
                f"{source.task} reads {', '.join(formats)}, got {source.format!r}."
                f"{did_you_mean(source.format, formats)}"
            )
            yield Problem((*path, "format"), message)
        if source.path.startswith(HUB):
            if source.format != "datasets":
                yield Problem((*path, "path"), "only format datasets is read from the hub.")
            if source.revision is None:
                message = "a data set on the hub needs the commit that is meant, such as 1a2b3c4."
                yield Problem((*path, "revision"), message)
        if source.task == "retrieval" and source.model is None:
            message = "retrieval needs a BLIP-2 image-text matching model: a folder or a hub id."
            yield Problem((*path, "model"), message)
        if source.model is not None:
            yield from _check_matching(source.model, source.model_revision, path)


def _check_matching(name: str, revision: str | None, path: Path) -> Iterator[Problem]:
    is_folder = FilePath(os.path.expanduser(name)).is_dir()
    if not is_folder and _HUB_ID.fullmatch(name) is None:
        message = f"no folder {name!r}, and no hub id such as org/name."
        yield Problem((*path, "model"), message)
    elif is_folder and revision is not None:
        message = "only hub models have revisions. Leave it out."
        yield Problem((*path, "model_revision"), message)


def _check_name(registry: Registry[Any], name: str, path: Path) -> Iterator[Problem]:
    if name not in registry:
        yield Problem(path, str(UnknownNameError(registry.kind, name, registry)))


def _check_towers(spec: SweepSpec) -> Iterator[Problem]:
    given = [name for name in SPARSITIES if name in spec.space]
    if SPARSITY in spec.space:
        if given:
            message = (
                "one sparsity for both towers, or one for each. Leave out sparsity or "
                f"{' and '.join(given)}."
            )
            yield Problem(("space", SPARSITY), message)
        if spec.budget is not None:
            message = (
                "both towers lose sparsity already, which leaves nothing to solve. One of two."
            )
            yield Problem((BUDGET,), message)
    elif spec.budget is None:
        for name in SPARSITIES:
            if name not in given:
                message = (
                    "missing. Give it (0 keeps the tower dense), or a budget to solve it from."
                )
                yield Problem(("space", name), message)
    elif len(given) == 2:
        message = (
            "a budget and both sparsities are one too many. Leave out vision_sparsity or "
            "language_sparsity, which is then solved, or the budget."
        )
        yield Problem((BUDGET,), message)
    elif not given:
        message = "a budget needs vision_sparsity or language_sparsity in the space."
        yield Problem((BUDGET,), message)


def _check_space(spec: SweepSpec) -> Iterator[Problem]:
    base = set(_check_fields(spec))
    fields = sweepable_fields()
    for name, entry in spec.space.items():
        path = ("space", name)
        is_sparsity = name in (*SPARSITIES, SPARSITY)
        if name not in fields and not is_sparsity:
            yield Problem(path, _unknown_field(name, [*SPARSITIES, SPARSITY, *fields]))
            continue
        if isinstance(entry, Range) and not is_sparsity:
            if fields[name] is not float and not is_integer(name):
                yield Problem(path, "its values are no numbers. List them: {choices: […]}.")
                continue
            if is_integer(name) and entry.log:
                yield Problem(path, "log: true is for fields that are no integers.")
        for inner, value in _values(entry):
            if is_sparsity:
                yield from _check_sparsity(spec, name, (*path, *inner), value, entry)
            elif inner != ("step",):
                yield from _check_field(spec, name, (*path, *inner), value, base)
            elif is_integer(name) and value != int(value):
                yield Problem((*path, "step"), f"an integer, as the field is, got {value}.")
        yield from _check_size(spec, name, entry)


def _values(entry: Choices | Range) -> Iterator[tuple[Path, Scalar]]:
    if isinstance(entry, Choices):
        for index, choice in enumerate(entry.choices):
            yield ("choices", index), choice
        return
    yield ("low",), entry.low
    yield ("high",), entry.high
    if entry.step is not None:
        yield ("step",), entry.step


def _unknown_field(name: str, known: list[str]) -> str:
    hint = did_you_mean(name, known)
    ends = [other for other in known if other.endswith((f".{name}", f"_{name}"))]
    if not hint and ends:
        hint = f" Did you mean {ends[0]!r}?"
    return (
        f"no field that can be swept.{hint} Known: {', '.join((*SPARSITIES, SPARSITY))}, and any "
        "single value of prune or repair, such as prune.method or repair.steps."
    )


def _check_sparsity(
    spec: SweepSpec, name: str, path: Path, value: Scalar, entry: Choices | Range
) -> Iterator[Problem]:
    is_all = name == SPARSITY and spec.prune.group == "all" and "prune.group" not in spec.space
    try:
        if isinstance(entry, Choices):
            target = Target.parse(value)
            if is_all and target.pattern is not None:
                yield Problem(path, no_pattern_for_all(target))
        elif not 0 <= exact_fraction(str(value)) <= 1:
            yield Problem(path, out_of_range(Fraction(Decimal(value))))
    except SpecError as error:
        yield Problem(path, str(error))


def _check_field(
    spec: SweepSpec, name: str, path: Path, value: Scalar, base: set[Problem]
) -> Iterator[Problem]:
    """Judges one value of a dotted field as if the section itself had it."""
    if is_integer(name) and isinstance(value, Decimal) and value == int(value):
        value = int(value)  # ends of a range are decimals throughout
    try:
        prune, repair = override(spec, {name: value})
    except ValidationError as error:
        for detail in error.errors():
            yield Problem(path, explain(detail))
        return
    variant = spec.model_copy(update={"prune": prune, "repair": repair})
    for problem in _check_fields(variant):
        if problem not in base:
            is_own = ".".join(map(str, problem.path)) == name
            yield Problem(path, problem.message if is_own else str(problem))


def _check_fields(spec: SweepSpec) -> Iterator[Problem]:
    yield from _check_prune(spec)
    yield from _check_repair_data(spec)
    for problem in repair_conflicts(spec):
        if len(problem.fields.intersection(spec.space)) < 2:  # of several, each point is judged
            yield problem


def _check_size(spec: SweepSpec, name: str, entry: Choices | Range) -> Iterator[Problem]:
    axis = next(axis for axis in spec.dimensions if axis.name == name)
    if axis.size is not None and axis.size > _MOST_VALUES:
        message = f"{axis.size} values; at most {_MOST_VALUES}. Take a larger step."
        yield Problem(("space", name), message)


def _check_draws(spec: SweepSpec) -> Iterator[Problem]:
    if spec.points is not None:
        return
    for section, times in ((CALIBRATION, spec.replicates), (REPAIR_DATA, 1)):
        own = [
            axis
            for axis in spec.dimensions
            if axis.name.startswith(section) and axis.name != f"{CALIBRATION}activations"
        ]
        count = times * math.prod(axis.size or 1 for axis in own)
        if own and count > _MOST_DRAWS:
            widest = max(own, key=lambda axis: axis.size or 1)
            message = (
                f"{count} draws of examples; at most {_MOST_DRAWS}: all are made beforehand, so "
                "that no picture serves two purposes. Take fewer values."
            )
            yield Problem(("space", widest.name), message)


def _check_search(spec: SweepSpec) -> Iterator[Problem]:
    search = spec.search
    if search.parallel > search.window and not search.asynchronous:
        message = (
            f"at most search.window ({search.window}) trials run at once, got {search.parallel}."
        )
        yield Problem(("search", "parallel"), message)
    if search.sampler != "grid":
        return
    endless = [axis.name for axis in spec.dimensions if axis.size is None]
    if endless:
        message = f"grid needs a step or choices for {', '.join(endless)}. Or take sampler tpe."
        yield Problem(("search", "sampler"), message)
        return
    sizes = [axis.size or 1 for axis in spec.dimensions]
    if spec.points is not None:
        sizes = [len(spec.points), spec.replicates]
    if max(sizes) <= _MOST_VALUES < count_points(spec):
        message = (
            f"a grid of {count_points(spec)} points; at most {_MOST_VALUES}. Take larger steps, or "
            "search.sampler: tpe."
        )
        yield Problem(("space",), message)


def _check_map(spec: SweepSpec) -> Iterator[Problem]:
    """What the map needs where it proposes trials or ends the sweep."""
    search = spec.search
    uses = {"sampler": search.sampler == "map", "stop_when": search.stop_when is not None}
    for key in (key for key, is_used in uses.items() if is_used):
        message = unmapped(spec)
        if message is not None:
            yield Problem(("search", key), message)


def unmapped(spec: SweepSpec) -> str | None:
    """Says why a sweep has no lines on a map; None if it has."""
    others = [name for name in spec.space if name not in SPARSITIES]
    values = [value for name in SPARSITIES if name in spec.space for value in _texts(spec, name)]
    pattern = next((value for value in values if ":" in value), None)
    endless = [axis.name for axis in spec.dimensions if axis.size is None]
    if spec.budget is None:
        return "decides lines of equal size, and there is no budget. Give one, or several."
    if len(spec.objectives) > 1:
        return "a line's best is of one objective, there are several. One of the two."
    if spec.objectives[0].metric == "likelihood":
        return "its points are of a score, and of a likelihood they say nothing. Another objective."
    if others:
        return f"one map is of one recipe, and the space has {others[0]} too. Leave it out."
    if pattern is not None:
        return f"patterns are not on the map, got {pattern} in the space. Give fractions alone."
    if endless:
        return f"lines are listed place by place. Give a step or choices for {endless[0]}."
    if spec.early_stopping is not None:
        return "the map needs whole trials, and early_stopping ends some early. One of the two."
    return None


def _texts(spec: SweepSpec, name: str) -> Iterator[str]:
    return (str(value) for _, value in _values(spec.space[name]))


def _check_constraints(spec: SweepSpec) -> Iterator[Problem]:
    if spec.prune.group != "all" or "prune.group" in spec.space:
        return
    for index, text in enumerate(spec.constraints):
        named = sorted(q for q in parse_constraint(text).quantities if q.startswith(TOWERS))
        if named:
            message = (
                f"with group: all {named[0]} is not known before a trial ran. Constrain sparsity, "
                "density, kept or whole_sparsity."
            )
            yield Problem(("constraints", index), message)


def _check_early_stopping(spec: SweepSpec) -> Iterator[Problem]:
    yield from stopping_conflicts(spec)
    if spec.early_stopping is None or spec.repair.method == "none":
        return
    rungs, steps = spec.early_stopping.rungs, spec.repair.steps
    path: Path = ("early_stopping",)
    if len(spec.objectives) > 1:
        message = "a rung compares one score, the sweep has several objectives. One of the two."
        yield Problem(path, message)
    if list(rungs) != sorted(set(rungs)):
        message = f"rising steps, each once, got {', '.join(map(str, rungs))}."
        yield Problem((*path, "rungs"), message)
    elif rungs[-1] >= steps and "repair.steps" not in spec.space:
        message = f"steps before the last of repair ({steps}), got {rungs[-1]}."
        yield Problem((*path, "rungs"), message)


def _check_baselines(spec: SweepSpec) -> Iterator[Problem]:
    if len(set(spec.baselines)) != len(spec.baselines):
        yield Problem(("baselines",), f"each baseline once, got {', '.join(spec.baselines)}.")
    if spec.repair.method == "none" and "dense_repaired" in spec.baselines:
        message = "dense_repaired needs a repair, and repair.method is none. Leave it out."
        yield Problem(("baselines",), message)


_Check = Callable[[SweepSpec], Iterator[Problem]]
_CHECKS: tuple[tuple[_Check, tuple[str, ...]], ...] = (
    (_check_count, ()),
    (_check_model, ("model",)),
    (_check_data, ("data",)),
    (_check_prune, ("data",)),
    (_check_repair_data, ("data",)),
    (training_conflicts, ("repair", "resources")),
    (precision_conflicts, ("repair", "resources", "model")),
    (_check_resources, ("resources",)),
    (_check_deepspeed, ("repair",)),
    (_check_evaluate, ("evaluate", "data")),
    (_check_confirm, ("evaluate", "confirm", "points", "data")),
    (_check_points_listed, ("points", "space", "search", BUDGET)),
    (_check_objective, ("evaluate", "objective", "data")),
    (_check_towers, ("space", BUDGET)),
    (_check_space, ()),
    (_check_draws, ("space", "points")),
    (_check_constraints, ("constraints", "prune")),
    (_check_search, ("space", "search", BUDGET)),
    (_check_map, ("space", "search", "objective", BUDGET, "early_stopping")),
    (_check_early_stopping, ("early_stopping", "repair", "objective")),
    (_check_baselines, ("baselines", "repair")),
)
