"""What a point of the space comes to: the effective values of one trial."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from pydantic import ValidationError

from ressa.errors import InfeasibleAllocation, SpecError, did_you_mean
from ressa.sparsity import (
    TOWERS,
    Allocation,
    Group,
    Inventory,
    Target,
    Tower,
    exact_fraction,
    solve_language,
    solve_vision,
    tower_zeros,
)
from ressa.spec.schema import Calibration, Prune, Rank, Repair, SweepSpec
from ressa.spec.space import BUDGET, SPARSITIES, parse_scalar

Point = Mapping[str, Any]
"""A value for every dimension, by name: text, or what the text stands for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerTarget:
    """How one tower is pruned, and how much of it."""

    method: str
    group: Group
    target: Target
    initial: str | None = None
    """The method that dsnot refines; None for every other method."""
    cycles: int | None = None
    """Swaps that dsnot makes in a row at most; None leaves it to the method."""
    dampening: float | None = None
    """What sparsegpt adds to its Hessian; None where it does not prune."""


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
        InfeasibleAllocation: the point cannot meet its budget.
        SpecError: the point is not one of this space.
    """
    _check_names(spec, point)
    fields = {name: value for name, value in point.items() if name in spec.space}
    try:
        prune, repair = override(spec, fields)
    except ValidationError as error:
        raise SpecError(f"a value does not suit its field: {error}") from error
    return _effective(prune, repair, spec, allocate(spec, inventory, point))


def baseline(spec: SweepSpec, name: str) -> Effective:
    """Returns the values of a baseline: an unpruned model, "dense" or "dense_repaired"."""
    nothing = Target(Fraction(0))
    effective = _effective(
        spec.prune, spec.repair, spec, Allocation(vision=nothing, language=nothing)
    )
    if name == "dense_repaired":
        return effective
    return Effective(
        vision=effective.vision,
        language=effective.language,
        calibration=effective.calibration,
        repair=None,
    )


def _effective(prune: Prune, repair: Repair, spec: SweepSpec, allocation: Allocation) -> Effective:
    def tower(tower: Tower) -> TowerTarget:
        method = prune.of(tower, "method")
        initial = prune.of(tower, "initial") if method == "dsnot" else None
        return TowerTarget(
            method=method,
            group=prune.of(tower, "group"),
            target=getattr(allocation, tower),
            # What a method does not read stays out, so that it makes no other trial of it.
            initial=initial,
            cycles=prune.cycles if method == "dsnot" else None,
            dampening=prune.dampening if "sparsegpt" in (method, initial) else None,
        )

    if repair.micro_batch is None:
        share = max(1, repair.batch_size // spec.resources.workers)
        repair = repair.model_copy(update={"micro_batch": share})
    if repair.method == "masked_finetune":  # it has neither: no other trial of other values
        repair = repair.model_copy(update={"rank": Rank(), "alpha": 16.0})
    return Effective(
        vision=tower("vision"),
        language=tower("language"),
        calibration=prune.calibration,
        repair=repair if repair.method != "none" else None,
    )


def allocate(spec: SweepSpec, inventory: Inventory, point: Point) -> Allocation:
    """Returns what each tower loses at a point, with the budget met to the weight.

    Raises:
        InfeasibleAllocation: the budget cannot be met, or a pattern does not divide a layer.
    """
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
    if all(name in SPARSITIES for name in fields):
        return spec.prune, spec.repair
    content: dict[str, Any] = {
        "prune": spec.prune.model_dump(),
        "repair": spec.repair.model_dump(),
    }
    for name, value in fields.items():
        if name in SPARSITIES:
            continue
        *parents, last = name.split(".")
        section = content
        for parent in parents:
            section = section[parent]
        section[last] = parse_scalar(value) if isinstance(value, str) else value
    return Prune.model_validate(content["prune"]), Repair.model_validate(content["repair"])


def grid_points(
    spec: SweepSpec, inventory: Inventory
) -> tuple[list[dict[str, str]], list[tuple[dict[str, str], str]]]:
    """Lists the points of a discrete space in fixed order, the last dimension running fastest.

    Returns:
        The feasible points; and the points that cannot meet their budget, each with the reason.

    Raises:
        SpecError: a dimension is continuous.
    """
    axes = []
    for dimension in spec.dimensions:
        if dimension.values is None:
            raise SpecError(f"{dimension.name} is continuous: a grid needs a step or choices.")
        axes.append(dimension.values)
    names = [dimension.name for dimension in spec.dimensions]
    reasons: dict[tuple[str, ...], str | None] = {}  # by the coordinates that decide
    deciding = [index for index, name in enumerate(names) if name in (BUDGET, *SPARSITIES)]
    feasible, skipped = [], []
    for values in itertools.product(*axes):
        point = dict(zip(names, values, strict=True))
        key = tuple(values[index] for index in deciding)
        if key not in reasons:
            reasons[key] = _reason(spec, inventory, point)
        reason = reasons[key]
        if reason is None:
            feasible.append(point)
        else:
            skipped.append((point, reason))
    return feasible, skipped


def _reason(spec: SweepSpec, inventory: Inventory, point: Point) -> str | None:
    try:
        allocate(spec, inventory, point)
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
