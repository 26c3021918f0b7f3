"""What a point of the space comes to: the effective values of one trial."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from pydantic import ValidationError

from ressa.errors import InfeasibleAllocation, SpecError, did_you_mean
from ressa.sparsity import (
    TOWERS,
    Allocation,
    Counting,
    Group,
    Inventory,
    LayerShape,
    Target,
    Tower,
    check_table,
    exact_fraction,
    listed_layers,
    solve_language,
    solve_vision,
    tower_zeros,
)
from ressa.spec.constraints import parse_constraint, quantities
from ressa.spec.exclusive import repair_conflicts
from ressa.spec.schema import (
    Calibration,
    DataRef,
    Distillation,
    Ecoflap,
    Owl,
    Prune,
    Rank,
    Repair,
    SweepSpec,
)
from ressa.spec.space import BUDGET, REPLICATE, SPARSITIES, SPARSITY, grid, parse_scalar
from ressa.spec.yaml import Path, Problem

Point = Mapping[str, Any]
"""A value for every dimension, by name: text, or what the text stands for."""

CALIBRATION, REPAIR_DATA = "prune.calibration.", "repair.data."
"""How the names of fields begin that say which examples are drawn."""

_FEW = 1_000  # points, which take a second to look at

LayerTable = tuple[tuple[str, Fraction], ...]
"""Sparsities of some layers, by name, in the order of the layers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerTarget:
    """How one tower is pruned, and how much of it."""

    method: str
    group: Group
    target: Target
    """With `group: all`, what both towers lose together."""
    counting: Counting = "exact"
    layers: Owl | Ecoflap | LayerTable | None = None
    """How the target is split over the layers, with its options; None splits it uniformly."""
    initial: str | None = None
    """The method that dsnot refines; None for every other method."""
    cycles: int | None = None
    """Swaps that dsnot makes in a row at most; None leaves it to the method."""
    dampening: float | None = None
    """What sparsegpt adds to its Hessian; None where it does not prune."""

    @property
    def is_shared(self) -> bool:
        """Whether the towers lose the target together, so that nobody knows each one's before."""
        return self.group == "all" and 0 < self.target.sparsity < 1

    @property
    def layerwise(self) -> str:
        """How the target is split over the layers: uniform, owl, ecoflap or table."""
        if self.layers is None:
            return "uniform"
        if isinstance(self.layers, tuple):
            return "table"
        return "owl" if isinstance(self.layers, Owl) else "ecoflap"


@dataclass(frozen=True, slots=True, kw_only=True)
class Effective:
    """The values that one trial runs with."""

    vision: TowerTarget
    language: TowerTarget
    calibration: Calibration
    repair: Repair | None
    """None leaves the model as pruned."""

    @property
    def allocation(self) -> Allocation:
        """What each tower loses."""
        return Allocation(vision=self.vision.target, language=self.language.target)


def apply_point(spec: SweepSpec, inventory: Inventory, point: Point) -> Effective:
    """Applies a point to the spec: sets its fields, and solves the tower that the budget decides.

    Raises:
        InfeasibleAllocation: the point cannot meet its budget or a constraint, or its values
            exclude each other.
        SpecError: the point is not one of this space.
    """
    _check_names(spec, point)
    if spec.points is not None and {n: str(v) for n, v in point.items() if n != REPLICATE} not in (
        spec.points
    ):
        raise InfeasibleAllocation("it is none of the points that are listed")
    fields = {name: value for name, value in point.items() if name in spec.space}
    try:
        prune, repair = override(spec, fields)
    except ValidationError as error:
        raise SpecError(f"a value does not suit its field: {error}") from error
    for problem in conflicts(spec.model_copy(update={"prune": prune})):
        raise InfeasibleAllocation(str(problem))
    reason = _repair_reason(spec, fields)
    if reason is not None:
        raise InfeasibleAllocation(reason)
    prune, repair = _replicate(prune, repair, int(point.get(REPLICATE, 0)))
    allocation = allocate(spec, inventory, point)
    if "all" in _groups(prune) and allocation.vision.pattern is not None:
        raise InfeasibleAllocation(no_pattern_for_all(allocation.vision))
    effective = _effective(prune, repair, spec, allocation, inventory)
    if spec.constraints:
        counted = quantities(inventory, allocation, is_shared=effective.vision.is_shared)
        for text in spec.constraints:
            reason = parse_constraint(text).unmet(counted)
            if reason is not None:
                raise InfeasibleAllocation(f"constraint {reason}")
    return effective


def _repair_reason(spec: SweepSpec, fields: Mapping[str, Any]) -> str | None:
    """Why a point's fields of repair cannot be together; None if they can."""
    own = {name: value for name, value in fields.items() if name.startswith("repair.")}
    if len(own) < 2:  # each by itself was judged with the file, on as many workers as it says
        return None
    _, repair = override(spec, own)
    for one in repair_conflicts(spec.model_copy(update={"repair": repair})):
        if len(one.fields & own.keys()) > 1:
            return str(one)
    return None


def _replicate(prune: Prune, repair: Repair, run: int) -> tuple[Prune, Repair]:
    """Gives a point's run seeds of its own; run 0 has those of the spec."""
    if run == 0:
        return prune, repair
    calibration = prune.calibration
    calibration = calibration.model_copy(update={"seed": calibration.seed + run})
    seeds = {"seed": repair.seed + run, "order_seed": repair.order_seed + run}
    return prune.model_copy(update={"calibration": calibration}), repair.model_copy(update=seeds)


def _groups(prune: Prune) -> set[Group]:
    return {prune.of(tower, "group") for tower in TOWERS}


def no_pattern_for_all(target: Target) -> str:
    """Says that a pattern leaves no room for `group: all`."""
    return (
        f"with group: all weights of both towers compete, pattern {target} fixes where each goes. "
        "Give a fraction, or another group."
    )


def conflicts(spec: SweepSpec) -> Iterator[Problem]:
    """Yields which fields of `prune` exclude each other, or do not suit the space, and why."""
    prune = spec.prune
    for tower in TOWERS:
        group, layers = prune.of(tower, "group"), prune.of(tower, "layers")
        if group not in ("tower", "all"):
            continue
        if layers != "uniform":
            is_own = getattr(prune, tower).layers is not None
            path: Path = ("prune", tower) if is_own else ("prune",)
            what = layers if isinstance(layers, str) else "a table"
            yield Problem(
                (*path, "layers"),
                f"with group: {group} one threshold decides what each layer loses: uniform, got "
                f"{what}. Take group row or matrix for {what}.",
            )
        if prune.calibration.activations != "dense":
            yield Problem(
                ("prune", "calibration", "activations"),
                f"with group: {group} all layers are compared before one is pruned: dense, got "
                f"{prune.calibration.activations!r}. Take group row or matrix for the others.",
            )
    if "all" not in _groups(prune):
        return
    towers = [tower for tower in TOWERS if getattr(prune, tower).group is not None]
    own: Path = ("prune", towers[0], "group") if towers else ("prune", "group")
    if len(_groups(prune)) == 2:
        yield Problem(own, "group: all is for both towers together. Give it under prune alone.")
    elif SPARSITY not in spec.space:
        yield Problem(
            own,
            "with group: all both towers lose one share together: the space has one sparsity "
            "instead of vision_sparsity, language_sparsity or a budget.",
        )
    for field in ("method", "initial"):
        values = {prune.of(tower, field) for tower in TOWERS}
        if len(values) > 1 and (field == "method" or prune.of("vision", "method") == "dsnot"):
            yield Problem(
                own,
                "with group: all saliencies of both towers are compared: one method for both, got "
                f"{' and '.join(sorted(values))}.",
            )


def baseline(spec: SweepSpec, name: str) -> Effective:
    """Returns the values of a baseline: an unpruned model, "dense" or "dense_repaired"."""
    nothing = Target(Fraction(0))
    effective = _effective(
        spec.prune, spec.repair, spec, Allocation(vision=nothing, language=nothing)
    )
    return effective if name == "dense_repaired" else replace(effective, repair=None)


def _effective(
    prune: Prune,
    repair: Repair,
    spec: SweepSpec,
    allocation: Allocation,
    inventory: Inventory | None = None,
) -> Effective:
    def tower(tower: Tower) -> TowerTarget:
        method, target = prune.of(tower, "method"), getattr(allocation, tower)
        # A pattern fixes every count, and there is but one way to lose nothing or everything.
        is_free = target.pattern is None and 0 < target.sparsity < 1
        layers = () if inventory is None else inventory.tower(tower)
        initial = prune.of(tower, "initial") if method == "dsnot" else None
        return TowerTarget(
            method=method,
            group=prune.of(tower, "group"),
            target=target,
            # What is not read stays out, so that it makes no other trial of it.
            counting=prune.counting if is_free else "exact",
            layers=_layerwise(prune, tower, target, layers) if target.pattern is None else None,
            initial=initial,
            cycles=prune.cycles if method == "dsnot" else None,
            dampening=prune.dampening if "sparsegpt" in (method, initial) else None,
        )

    if repair.micro_batch is None and not spec.resources.gpus_per_worker:
        share = max(1, repair.batch_size // spec.resources.workers)
        repair = repair.model_copy(update={"micro_batch": share})
    if repair.method == "masked_finetune":  # it has neither: no other trial of other values
        repair = repair.model_copy(update={"rank": Rank(), "alpha": 16.0})
    if repair.objective == "features":  # nor does it distil answers
        repair = repair.model_copy(update={"distillation": Distillation(weight=0.0)})
    return Effective(
        vision=tower("vision"),
        language=tower("language"),
        calibration=prune.calibration,
        repair=repair if repair.method != "none" else None,
    )


def _layerwise(
    prune: Prune, tower: Tower, target: Target, layers: Sequence[LayerShape]
) -> Owl | Ecoflap | LayerTable | None:
    """Returns how a tower's fraction is split over its layers.

    Raises:
        InfeasibleAllocation: a table cannot be met.
    """
    wanted = prune.of(tower, "layers")
    if isinstance(wanted, dict):
        table = listed_layers(layers, wanted)
        if table:
            check_table(layers, target, table)
        return tuple(table.items()) or None
    if not 0 < target.sparsity < 1:
        return None
    return {"uniform": None, "owl": prune.owl, "ecoflap": prune.ecoflap}[wanted]


def allocate(spec: SweepSpec, inventory: Inventory, point: Point) -> Allocation:
    """Returns what each tower loses at a point, with the budget met to the weight.

    Where the space has one `sparsity`, it is the target of both.

    Raises:
        InfeasibleAllocation: the budget cannot be met, or a pattern does not divide a layer.
    """
    if SPARSITY in spec.space:
        both = Target.parse(str(point[SPARSITY]))
        for tower in TOWERS:
            tower_zeros(inventory.tower(tower), both)  # refuses ragged patterns
        return Allocation(vision=both, language=both)
    given = {name: Target.parse(str(point[name])) for name in SPARSITIES if name in spec.space}
    if spec.budget is not None:
        budget = exact_fraction(str(point[BUDGET]))
        if spec.solved_tower == "language":
            vision = given["vision_sparsity"]
            given["language_sparsity"] = solve_language(inventory, budget, vision)
        else:
            language = given["language_sparsity"]
            given["vision_sparsity"] = solve_vision(inventory, budget, language)
    for tower in TOWERS:
        tower_zeros(inventory.tower(tower), given[f"{tower}_sparsity"])  # refuses ragged patterns
    return Allocation(vision=given["vision_sparsity"], language=given["language_sparsity"])


def override(spec: SweepSpec, fields: Point) -> tuple[Prune, Repair]:
    """Returns prune and repair with some fields, given by dotted name, set to other values.

    Raises:
        pydantic.ValidationError: a value does not suit its field.
    """
    if all(name in (*SPARSITIES, SPARSITY) for name in fields):
        return spec.prune, spec.repair
    content: dict[str, Any] = {
        "prune": spec.prune.model_dump(),
        "repair": spec.repair.model_dump(),
    }
    for name, value in fields.items():
        if name in (*SPARSITIES, SPARSITY):
            continue
        *parents, last = name.split(".")
        section = content
        for parent in parents:
            section = section[parent]
        section[last] = parse_scalar(value) if isinstance(value, str) else value
    return Prune.model_validate(content["prune"]), Repair.model_validate(content["repair"])


def draws(spec: SweepSpec) -> list[tuple[str, Calibration | DataRef]]:
    """Lists each draw of examples that a trial may make, baselines included, with its purpose."""
    uses: list[tuple[str, Calibration | DataRef]] = []
    for prune, _ in _over(spec, CALIBRATION):
        for run in range(spec.replicates):
            uses.append(("calibration", _replicate(prune, spec.repair, run)[0].calibration))
    if any(repair.method != "none" for _, repair in _over(spec, "repair.method")):
        uses += [("repair", repair.data) for _, repair in _over(spec, REPAIR_DATA)]
    for name in spec.baselines:
        alone = baseline(spec, name)
        uses.append(("calibration", alone.calibration))
        if alone.repair is not None:
            uses.append(("repair", alone.repair.data))
    uses += [("evaluate", ref) for ref in spec.evaluate]
    once = {(purpose, use.task, use.split, use.samples, use.seed): use for purpose, use in uses}
    return [(purpose, use) for (purpose, *_), use in once.items()]


def _over(spec: SweepSpec, section: str) -> Iterator[tuple[Prune, Repair]]:
    """Yields prune and repair with every value that the space has for the fields of a section."""
    names = [name for name in spec.space if name.startswith(section)]
    if spec.points is not None:
        values = dict.fromkeys(tuple(point[name] for name in names) for point in spec.points)
    else:
        axes = [axis.values or () for axis in spec.dimensions if axis.name in names]
        values = dict.fromkeys(itertools.product(*axes))
    for one in values:
        yield override(spec, dict(zip(names, one, strict=True)))


def count_points(spec: SweepSpec) -> float:
    """Counts the points of a space, feasible or not; infinity of a continuous one."""
    if spec.points is not None:
        return len(spec.points) * spec.replicates
    return math.prod(math.inf if axis.size is None else axis.size for axis in spec.dimensions)


def left_out(spec: SweepSpec) -> tuple[int, int]:
    """Returns how many points of a space cannot be, and how many there are.

    None are counted where the space is too large to list at once, or the model is not in the
    catalog.
    """
    if spec.model.catalog is None or count_points(spec) > _FEW:
        return 0, 0
    feasible, skipped = grid_points(spec, spec.model.catalog.inventory())
    return len(skipped), len(feasible) + len(skipped)


def grid_points(
    spec: SweepSpec, inventory: Inventory
) -> tuple[list[dict[str, str]], list[tuple[dict[str, str], str]]]:
    """Lists the points of a discrete space in fixed order, the last dimension running fastest.

    Returns:
        The feasible points; and those that cannot be, such as one that misses its budget, each
        with the reason.

    Raises:
        SpecError: a dimension is continuous.
    """
    names = [dimension.name for dimension in spec.dimensions]
    reasons: dict[tuple[str, ...], str | None] = {}  # by the coordinates that decide
    joint: dict[tuple[str, ...], str | None] = {}  # likewise, of repair alone
    of_repair = [name.startswith("repair.") for name in names]
    feasible, skipped = [], []
    for point in _grid(spec):
        values = tuple(point.values())
        own = tuple(value for value, is_own in zip(values, of_repair, strict=True) if is_own)
        key = tuple(value for value, is_own in zip(values, of_repair, strict=True) if not is_own)
        if own not in joint:
            joint[own] = _repair_reason(spec, point)
        reason = joint[own]
        if reason is None and key not in reasons:
            reasons[key] = _reason(spec, inventory, point)
        reason = reason or reasons[key]
        if reason is None:
            feasible.append(point)
        else:
            skipped.append((point, reason))
    return feasible, skipped


def no_point(spec: SweepSpec, inventory: Inventory) -> str | None:
    """Says why no point of a discrete space can be, by its first point; None if one can."""
    first = None
    for point in _grid(spec):
        reason = _reason(spec, inventory, point)
        if reason is None:
            return None
        first = first or reason
    return first


def _grid(spec: SweepSpec) -> Iterator[dict[str, str]]:
    if spec.points is not None:
        for point, run in itertools.product(spec.points, range(spec.replicates)):
            runs = {REPLICATE: str(run)} if spec.replicates > 1 else {}
            yield {**{name: point[name] for name in spec.space}, **runs}
        return
    for dimension in spec.dimensions:
        if dimension.size is None:
            raise SpecError(f"{dimension.name} is continuous: a grid needs a step or choices.")
    yield from grid(spec.dimensions)


def _reason(spec: SweepSpec, inventory: Inventory, point: Point) -> str | None:
    try:
        apply_point(spec, inventory, point)
    except InfeasibleAllocation as error:
        return str(error)
    return None


def _check_names(spec: SweepSpec, point: Point) -> None:
    names = {dimension.name for dimension in spec.dimensions}
    for name in point:
        if name not in names:
            raise SpecError(f"{name} is no dimension of this space.{did_you_mean(name, names)}")
    missing = sorted(names - set(point))
    if missing:
        raise SpecError(f"the point gives no value for {', '.join(missing)}.")
