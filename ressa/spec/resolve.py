"""From a sweep file to a resolved spec: read, `--set`, defaults, checks; every fault at once."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path as FilePath
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from ressa.catalog import FORMATS, MODELS, task_facts
from ressa.errors import SpecError, did_you_mean
from ressa.sparsity import Inventory
from ressa.spec.check import check_spec, unmapped
from ressa.spec.faults import explain, path_of, slugify
from ressa.spec.inventory import check_inventory, unreachable_budgets
from ressa.spec.points import count_points, grid_points
from ressa.spec.schema import QUESTION_LENGTH, SweepSpec, is_integer
from ressa.spec.space import SPARSITIES, SPARSITY, scalar_text
from ressa.spec.yaml import MAX_BYTES, Fault, Node, Path, Problem, parse

_Place = TypeVar("_Place", str, str | None)

_ENTRY_KEYS = ("low", "high", "step", "log", "choices")
_SHAPES = "easy-vqa"  # the task whose data come with ressa
_PLACEHOLDERS: Mapping[str, Any] = {
    "ressa": 1,
    "name": "sweep",
    "model": "pocket-blip2",
    "space": {"vision_sparsity": 0, "language_sparsity": 0},
}


@dataclass(frozen=True, kw_only=True)
class LoadedSpec:
    """A resolved sweep and what its reader should know about it."""

    spec: SweepSpec
    warnings: tuple[str, ...]
    inventory: Inventory | None
    """The model's layers, if the catalog knows them."""
    tree: Node = field(repr=False)

    def refuse(self, problems: Iterable[Problem]) -> None:
        """Raises a SpecError that says where in the file each problem stands, if there is one."""
        raise_faults([located(self.tree, problem) for problem in problems])


def load_spec(path: str | FilePath, sets: Sequence[str] = ()) -> LoadedSpec:
    """Reads, completes and checks a sweep file.

    Args:
        path: the YAML file.
        sets: changes such as "prune.method=magnitude", each value read as YAML.

    Raises:
        SpecError: with every fault of the file, each with its line; `faults` lists them.
    """
    source = str(path)
    content = _read(FilePath(path))
    tree, faults = parse(content, source)
    if tree is None and not faults:
        faults.append(Fault(source, "", f"the file is empty. {_LEAST}"))
    if tree is not None and not isinstance(tree.value, dict):
        faults.append(Fault(source, "", f"not a mapping of keys to values. {_LEAST}"))
        tree = None
    if tree is None:
        raise_faults(faults)
        raise AssertionError("a file without a tree has a fault")
    for text in sets:
        faults += _set(tree, text)
    return _resolve(tree, faults, stem=FilePath(path).stem, question=_question(content))


def spec_from_mapping(content: Mapping[str, Any], name: str = "sweep") -> LoadedSpec:
    """Completes and checks a sweep given as nested Python values, as `load_spec` does a file."""
    tree = _tree(dict(content), "spec")
    return _resolve(tree, [], stem=name)


def spec_from_yaml(text: str) -> SweepSpec:
    """Reads a resolved spec that `SweepSpec.to_yaml` wrote; fills in nothing."""
    tree, faults = parse(text, "spec.yaml")
    raise_faults(faults)
    content = tree.plain() if tree is not None else None
    try:
        return SweepSpec.model_validate(content)
    except ValidationError as error:
        details = error.errors()
        messages = [f"spec.yaml: {'.'.join(map(str, d['loc']))}: {explain(d)}" for d in details]
        raise SpecError("\n".join(messages), messages) from error


_LEAST = "A sweep has at least the keys ressa: 1, model and space."


def raise_faults(faults: Iterable[Fault]) -> None:
    """Raises one SpecError with all faults, if there are any."""
    lines = list(dict.fromkeys(map(str, sorted(faults, key=lambda fault: fault.line))))
    if lines:
        raise SpecError("\n".join(lines), lines)


def located(tree: Node, problem: Problem) -> Fault:
    """Turns a problem into a fault: says where in the file its field stands."""
    where, path = tree.locate(problem.path)
    return Fault(where, path, problem.message)


def _read(path: FilePath) -> str:
    if not path.is_file():
        near = did_you_mean(path.name, _siblings(path))
        reason = "is a folder; name a sweep file" if path.is_dir() else f"no such file.{near}"
        raise SpecError(f"{path}: {reason}", [f"{path}: {reason}"])
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) <= MAX_BYTES:
            return content.decode("utf-8-sig")
        reason = f"larger than {MAX_BYTES >> 20} MiB: no sweep file."
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        reason = f"line {line} is not UTF-8 text. Save the file as UTF-8."
    except OSError as error:
        reason = f"cannot be read: {error.strerror}."
    raise SpecError(f"{path}: {reason}", [f"{path}: {reason}"])


def _siblings(path: FilePath) -> list[str]:
    try:
        return [other.name for other in path.parent.iterdir() if other.suffix in (".yaml", ".yml")]
    except OSError:
        return []


def _set(tree: Node, text: str) -> list[Fault]:
    """Applies one `--set key=value` to the tree; returns what is wrong with it."""
    place = f"--set {text}" if len(text) <= 60 else f"--set {text[:60]}…"
    key, equals, value_text = text.partition("=")
    if not equals or not all(key.split(".")):
        return [Fault(place, "", "write it as key=value, such as prune.method=magnitude.")]
    value, faults = parse(value_text, place, by_line=False)
    if faults:
        return faults
    *parents, last = _split(key)
    node = tree
    for parent in parents:
        inner = node.child(_as_index(node, parent))
        if inner is None and isinstance(node.value, dict):
            inner = node.value[parent] = Node(place, {})
        if inner is None or not isinstance(inner.value, dict | list):
            return [Fault(place, key, f"{parent} is not a mapping in the file; set it as a whole.")]
        node = inner
    value = value or Node(place, None)
    if isinstance(node.value, dict):
        node.value[last] = value
    elif node.child(_as_index(node, last)) is not None:
        node.value[int(last)] = value
    else:
        return [Fault(place, key, f"the list has {len(node.value)} entries, counted from 0.")]
    return []


def _split(key: str) -> list[str]:
    """Splits a dotted key; the names in a space have dots themselves."""
    parts = key.split(".")
    if parts[0] != "space" or len(parts) < 3:
        return parts
    if parts[1] in (*SPARSITIES, SPARSITY):
        return parts
    end = -1 if len(parts) > 3 and parts[-1] in _ENTRY_KEYS else len(parts)
    return ["space", ".".join(parts[1:end]), *parts[end:]]


def _as_index(node: Node, key: str) -> str | int:
    return int(key) if isinstance(node.value, list) and key.isdecimal() else key


def _tree(value: Any, where: str) -> Node:
    if isinstance(value, Mapping):
        return Node(where, {str(key): _tree(item, where) for key, item in value.items()})
    if isinstance(value, list | tuple):
        return Node(where, [_tree(item, where) for item in value])
    return Node(where, value)


def _question(text: str) -> str:
    """Returns the first paragraph of the comment at a file's top, without commands in it."""
    lines: list[str] = []
    for line in text.splitlines():
        words = line.removeprefix("#")
        if words == line or (lines and not words.strip()):
            break
        if not words.startswith(("  ", " yaml-language-server")):
            lines.append(words.strip())
    return " ".join(filter(None, lines))[:QUESTION_LENGTH]


def _resolve(tree: Node, faults: list[Fault], stem: str, question: str = "") -> LoadedSpec:
    content = tree.plain()
    asked_trials = "trials" in _mapping(content.get("search"))
    complete(content, stem)
    content.setdefault("question", question)
    spec, problems, dropped = _validate(content)
    problems += check_spec(spec, dropped)
    inventory = None
    if spec.model.catalog is not None and not problems:
        inventory = spec.model.catalog.inventory()
        problems += check_inventory(spec, inventory)
    raise_faults([*faults, *(located(tree, problem) for problem in problems)])
    if spec.search.sampler == "grid" and not asked_trials:
        spec = _with_grid_trials(spec, inventory)
    spec = _anchored(spec)
    warnings = (*_warnings(spec), *(unreachable_budgets(spec, inventory) if inventory else ()))
    return LoadedSpec(spec=spec, warnings=warnings, inventory=inventory, tree=tree)


def _anchored(spec: SweepSpec) -> SweepSpec:
    """Makes folders absolute: workers run elsewhere, and whoever goes on with the sweep may too."""
    model = spec.model
    if model.id not in MODELS:
        model = model.model_copy(update={"id": _absolute(model.id)})
    data = {
        name: source.model_copy(
            update={
                "path": _absolute(source.path),
                "images": _absolute(source.images),
                "model": _absolute(source.model),
            }
        )
        for name, source in spec.data.items()
    }
    return spec.model_copy(update={"model": model, "data": data})


def _absolute(place: _Place) -> _Place:
    """Makes a folder's path absolute; what is none, such as a name on the hub, stays."""
    folder = place and os.path.expanduser(place)  # Path's raises for a user who does not exist
    return os.path.abspath(folder) if folder and os.path.isdir(folder) else place


def _with_grid_trials(spec: SweepSpec, inventory: Inventory | None) -> SweepSpec:
    if inventory is not None:
        trials = len(grid_points(spec, inventory)[0])
    else:  # an upper bound; the layers of the model are not known yet
        trials = int(count_points(spec))
    return spec.model_copy(update={"search": spec.search.model_copy(update={"trials": trials})})


def _validate(content: dict[str, Any]) -> tuple[SweepSpec, list[Problem], set[str]]:
    """Validates field by field; what is wrong is taken out, so that the rest can be judged too.

    Returns:
        A valid spec, the problems of single fields, and the sections that lost something.
    """
    problems: list[Problem] = []
    dropped: set[str] = set()
    while True:
        try:
            return SweepSpec.model_validate(content), problems, dropped
        except ValidationError as error:
            details = [detail for detail in error.errors() if not _is_echo(detail)]
        for detail in details:
            if not dropped.intersection(map(str, detail["loc"][:1])) or detail["type"] != "missing":
                problems.append(Problem(path_of(detail), explain(detail)))
        for detail in details:
            dropped.add(_take_out(content, path_of(detail)))


def _is_echo(detail: ErrorDetails) -> bool:
    """Whether pydantic calls a list too short because its entries are invalid, as it says too."""
    return detail["type"] == "too_short" and len(detail["input"]) > 0


def _take_out(content: dict[str, Any], path: Path) -> str:
    """Removes an invalid value, or the innermost mapping that lacks one; returns its section."""
    section = str(path[0])
    chain: list[tuple[dict[str, Any], str]] = []
    value: Any = content
    for key in path:
        if not isinstance(value, dict) or key not in value:
            break
        chain.append((value, str(key)))
        value = value[key]
    if chain:
        parent, key = chain[-1]
        parent.pop(key)
    if section in _PLACEHOLDERS and section not in content:
        content[section] = _PLACEHOLDERS[section]
    return section


def complete(content: dict[str, Any], stem: str) -> None:
    """Fills in, in place, the defaults that follow from other fields; minds no wrong types."""
    content.setdefault("name", slugify(stem) or "sweep")
    repair = _section(content, "repair")
    model = content.get("model")
    name = model.get("id") if isinstance(model, dict) else model
    if isinstance(name, str) and name in MODELS:
        defaults = dict(MODELS[name].repair_defaults)
        steps = repair.get("steps")
        if type(steps) is int and steps > 0 and defaults:
            # A shorter repair warms up for as large a share of its steps.
            defaults["warmup_steps"] = defaults["warmup_steps"] * steps // defaults["steps"]
        _merge(repair, defaults)
    _merge(repair, {"data": {"split": "train", "samples": 6000}})
    _merge(repair, {"train": _trained(content)})
    if "points" in content:
        content.setdefault("space", _space_of(content["points"]))
    for data in content["evaluate"] if isinstance(content.get("evaluate"), list) else ():
        _merge(_mapping(data), {"split": "validation", "samples": 2000})
    for data in content["confirm"] if isinstance(content.get("confirm"), list) else ():
        _merge(_mapping(data), {"split": "test"})
    _complete_data(content)
    if repair.get("method") == "none":
        content.setdefault("baselines", ["dense"])
    search = _section(content, "search")
    search.setdefault("sampler", "grid" if _is_discrete(_mapping(content.get("space"))) else "tpe")
    parallel = search.get("parallel", 1)
    search.setdefault("window", 2 * parallel if type(parallel) is int and parallel > 0 else 2)


def _space_of(points: Any) -> dict[str, Any]:
    """Returns the space that listed points lie in: each field's values, in order, each once."""
    listed = [_mapping(point) for point in points] if isinstance(points, list) else []
    names = dict.fromkeys(name for point in listed for name in point)
    values = {name: [point[name] for point in listed if name in point] for name in names}
    return {
        name: {"choices": list({_spelled(value): value for value in found}.values())}
        for name, found in values.items()
    }


def _spelled(value: Any) -> str:
    """A value as points compare it: 0.50 is 0.5."""
    is_scalar = isinstance(value, str | bool | int | Decimal)
    return scalar_text(value) if is_scalar else str(value)


def _complete_data(content: dict[str, Any]) -> None:
    """Fills in what follows from a data set's task and format, and from what is evaluated."""
    tasks: dict[str, Any] = {}
    for name, entry in _mapping(content.get("data")).items():
        task, layout = _mapping(entry).get("task"), _mapping(entry).get("format")
        if isinstance(task, str):
            tasks[name] = task
            _merge(_mapping(entry), task_facts(task).defaults)
        if isinstance(layout, str) and not _mapping(entry).get("splits"):
            _mapping(entry)["splits"] = dict(FORMATS.get(layout, {}))
    evaluated = content.get("evaluate")
    names = (
        [_mapping(data).get("task") for data in evaluated] if isinstance(evaluated, list) else []
    )
    if names and "confirm" not in content:
        content["confirm"] = [
            {"task": name, "split": "test"} for name in names if _has_test(content, name)
        ]
    first = names[0] if names else None
    if isinstance(first, str) and _SHAPES not in names:
        one = f"{first}.{task_facts(tasks.get(first, first)).main[0]}"
        _merge(_section(content, "objective"), {"maximize": "macro" if names[1:] else one})


def _has_test(content: dict[str, Any], name: Any) -> bool:
    """Whether a task has test examples: easy-VQA has, a data set if its splits say so."""
    if not isinstance(name, str):
        return False
    source = _mapping(content.get("data")).get(name)
    return source is None or "test" in _mapping(_mapping(source).get("splits"))


def _trained(content: dict[str, Any]) -> list[str]:
    """The connector and the towers that lose weights in some trial."""
    space = _mapping(content.get("space"))
    towers = [
        part for part in ("vision", "language") if not _is_zero(space.get(f"{part}_sparsity"))
    ]
    return [part for part in ("vision", "connector", "language") if part in (*towers, "connector")]


def _is_zero(entry: Any) -> bool:
    """Whether a field of the space is 0 in every trial, however that is written."""
    of = _mapping(entry)
    values = of.get("choices") or [of.get("low"), of.get("high")] if of else [entry]
    return isinstance(values, list) and all(value == 0 for value in values)


def _is_discrete(space: dict[str, Any]) -> bool:
    return all(
        not isinstance(entry, dict) or "choices" in entry or "step" in entry or is_integer(name)
        for name, entry in space.items()
    )


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _section(content: dict[str, Any], name: str) -> dict[str, Any]:
    """Returns a section to fill in: made if it is missing, a stand-in if it is no mapping."""
    return _mapping(content.setdefault(name, {}))


def _merge(target: dict[str, Any], defaults: Mapping[str, Any]) -> None:
    for key, value in defaults.items():
        if isinstance(value, Mapping):
            _merge(_section(target, key), value)
        else:
            target.setdefault(key, value)


def _uses(spec: SweepSpec) -> dict[str, list[str]]:
    """The tasks of each section that takes data, if the sweep has use for it."""
    uses = {"prune.calibration": [spec.prune.calibration.task]}
    if spec.repair.method != "none":
        uses["repair.data"] = [spec.repair.data.task]
    return uses | {"evaluate": [one.task for one in spec.evaluate]}


def _warnings(spec: SweepSpec) -> list[str]:
    found = []
    sparsities = (*SPARSITIES, SPARSITY)
    free = [axis for axis in spec.dimensions if axis.name in sparsities and axis.size != 1]
    if spec.budget is None and free and not spec.constraints and len(spec.objectives) == 1:
        found.append(
            f"objective: {spec.objectives[0].maximize} alone over free sparsities has a trivial "
            "answer: the least sparse point, (0, 0) if the space holds it. "
            "Give a budget to compare splits of equal size, a constraint such as sparsity >= 0.5, "
            "or a second objective such as {maximize: sparsity}."
        )
    if spec.repair.zero_stage == 0 and spec.repair.dtype != "float32":
        found.append(
            f"repair.zero_stage: 0 is run as 1: {spec.repair.dtype} needs the fp32 masters that "
            "DeepSpeed keeps from stage 1 on."
        )
    if any(objective.metric == "malformed" for objective in spec.objectives):
        found.append("objective: malformed is a share of broken answers; it is maximized here.")
    if spec.prune.counting == "reference" and spec.budget is not None:
        found.append(
            "prune.counting: reference takes the floor in each row, so a trial misses its budget "
            "by up to a weight a row. exact meets it."
        )
    is_ours = spec.model.catalog is not None and not spec.model.catalog.is_on_hub
    shapes = [use for use, tasks in _uses(spec).items() if _SHAPES in tasks]
    if shapes and not is_ours:
        found.append(
            f"{', '.join(shapes)}: {_SHAPES}, coloured shapes of 64 pixels, which a section takes "
            f"that names no task. For {spec.model.id} name your own: docs/tasks.md."
        )
    points = count_points(spec)
    lines, sampler = len(spec.budget or ()), spec.search.sampler
    looks = sampler in ("tpe", "gp", "nsga2") and len(spec.objectives) == 1
    if lines > 1 and looks and spec.search.trials < points:
        by_line = "map looks for the best of each line; " if unmapped(spec) is None else ""
        found.append(
            f"search.sampler: {sampler} looks for the best score of all, which lies on the line of "
            f"the smallest budget, and leaves the other {lines - 1} few trials. {by_line}grid and "
            "qmc treat lines alike."
        )
    if spec.search.trials > points:
        found.append(
            f"search: {spec.search.trials} trials asked for, the space has {points} points; "
            "the sweep ends when each has run."
        )
    return found
