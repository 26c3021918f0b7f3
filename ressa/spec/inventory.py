"""Faults of a sweep file that show in its model's layers alone.

Like `check.py`, each check yields what it finds; `resolve.py` says where it stands in the file.
"""

from collections.abc import Iterator
from decimal import Decimal
from fnmatch import fnmatchcase
from fractions import Fraction

from ressa.errors import InfeasibleAllocation, SpecError, did_you_mean
from ressa.sparsity import (
    TOWERS,
    Inventory,
    Target,
    Tower,
    check_pattern,
    exact_fraction,
    listed_layers,
)
from ressa.spec.points import allocate, count_points, no_point
from ressa.spec.schema import SweepSpec, endings, matches
from ressa.spec.space import BUDGET, SPARSITIES, SPARSITY, Choices, scalar_text
from ressa.spec.yaml import Path, Problem

_MOST_POINTS = 10_000  # of a space that are looked through for one that can be


def check_inventory(spec: SweepSpec, inventory: Inventory) -> Iterator[Problem]:
    """Yields every fault that shows in the model's layers.

    Ragged patterns, budgets out of reach, targets and tables of layers that name none or cannot
    be met.

    Args:
        spec: a spec that `check_spec` finds nothing in.
        inventory: the layers of its model.
    """
    yield from _check_targets(spec, inventory)
    problems = [*_check_patterns(spec, inventory), *_check_tables(spec, inventory)]
    if not problems and spec.budget is not None:
        reasons = [_out_of_reach(spec, inventory, scalar_text(share)) for share in spec.budget]
        if all(reasons):
            problems.append(Problem((BUDGET,), f"no point of the space meets it: {reasons[0]}"))
    yield from problems or _check_points(spec, inventory)


def _check_targets(spec: SweepSpec, inventory: Inventory) -> Iterator[Problem]:
    repair = spec.repair
    trained = [layer for layer in inventory.layers if layer.tower in repair.train]
    names = [layer.name for layer in trained]
    towers = [tower for tower in TOWERS if tower in repair.train]
    for index, target in enumerate(repair.targets):
        if not any(matches(target, name) for name in names):
            message = (
                f"no layer of {' or '.join(towers)} is called so, got {target!r}."
                f"{did_you_mean(target, endings(names))} Their names end in "
                f"{', '.join(endings(names))}."
            )
            yield Problem(("repair", "targets", index), message)
            return
    for tower in towers:
        own = [layer.name for layer in trained if layer.tower == tower]
        if own and not any(map(repair.reaches, own)):
            message = (
                f"{tower} is trained but has none of these layers. Its names end in "
                f"{', '.join(endings(own))}; or leave {tower} out of repair.train."
            )
            yield Problem(("repair", "targets"), message)


def _check_patterns(spec: SweepSpec, inventory: Inventory) -> Iterator[Problem]:
    for name in (*SPARSITIES, SPARSITY):
        layers = [x for x in inventory.layers if name in (SPARSITY, f"{x.tower}_sparsity")]
        entry = spec.space.get(name)
        for index, value in enumerate(entry.choices) if isinstance(entry, Choices) else ():
            pattern = Target.parse(value).pattern
            if pattern is None:
                continue
            try:
                check_pattern(layers, pattern)
            except InfeasibleAllocation as error:
                yield Problem(("space", name, "choices", index), str(error))


def _check_tables(spec: SweepSpec, inventory: Inventory) -> Iterator[Problem]:
    for path, section in spec.prune.sections.items():
        table = section.layers
        if not isinstance(table, dict):
            continue
        layers = inventory.tower(str(path[1])) if path[1:] else inventory.layers
        for entry in table:
            if not any(fnmatchcase(layer.name, entry) for layer in layers):
                names = [layer.name for layer in layers]
                hint = did_you_mean(entry, names) or f" Such as {names[0]!r}."
                message = f"names no layer of {path[-1] if path[1:] else 'the model'}.{hint}"
                yield Problem((*path, "layers", entry), message)
        try:
            listed_layers(layers, table)
        except SpecError as error:
            yield Problem((*path, "layers"), str(error))


def _check_points(spec: SweepSpec, inventory: Inventory) -> Iterator[Problem]:
    """Looks for one point that can be, where the space can be listed."""
    if count_points(spec) > _MOST_POINTS:
        return
    reason = no_point(spec, inventory)
    if reason is not None:
        sections = spec.prune.sections.items()
        tables = [path for path, section in sections if isinstance(section.layers, dict)]
        path: Path = (*tables[0], "layers") if tables else ("space",)
        free = spec.model_copy(update={"constraints": ()})
        if spec.constraints and no_point(free, inventory) is None:
            path = ("constraints",)
        yield Problem(path, f"no point of the space can be: {reason}")


def unreachable_budgets(spec: SweepSpec, inventory: Inventory) -> list[str]:
    """Returns a warning for each budget that no point of the space meets."""
    found = []
    for share in spec.budget or ():
        reason = _out_of_reach(spec, inventory, scalar_text(share))
        if reason:
            found.append(f"budget {scalar_text(share)}: no point of the space meets it: {reason}")
    return found


def _out_of_reach(spec: SweepSpec, inventory: Inventory, budget: str) -> str | None:
    """Says why no point of the space meets a budget; None if one does."""
    name = next(name for name in SPARSITIES if name in spec.space)
    axis = next(axis for axis in spec.dimensions if axis.name == name)
    reason = ""
    for value in axis.values or (scalar_text(axis.low), scalar_text(axis.high)):
        try:
            allocate(spec, inventory, {name: value, BUDGET: budget})
        except InfeasibleAllocation as error:
            reason = str(error)
        else:
            return None
    if axis.size is None and _is_between(spec, inventory, budget, (axis.low, axis.high)):
        return None
    return reason


def _is_between(
    spec: SweepSpec, inventory: Inventory, budget: str, ends: tuple[Decimal, Decimal]
) -> bool:
    """Whether values between two ends, both infeasible, meet a budget."""
    solved: Tower = spec.solved_tower or "language"
    given: Tower = "vision" if solved == "language" else "language"
    zeros = exact_fraction(budget) * inventory.prunable()
    left = [zeros - Fraction(end) * inventory.prunable(given) for end in ends]
    return left[0] > inventory.prunable(solved) and left[1] < 0
