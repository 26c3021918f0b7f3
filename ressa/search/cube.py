"""Points of a space as places in the unit cube: one coordinate in [0, 1] for each dimension."""

import math
from collections.abc import Sequence
from fractions import Fraction

from ressa.errors import SpecError
from ressa.sparsity import exact_fraction
from ressa.spec import Dimension, Point


def point_at(dimensions: Sequence[Dimension], place: Sequence[float]) -> dict[str, str]:
    """Returns the point at a place: choices and steps take equal parts of their side.

    Args:
        dimensions: the axes of the space.
        place: one coordinate in [0, 1) for each.
    """
    return {d.name: _value_at(d, u) for d, u in zip(dimensions, place, strict=True)}


def _value_at(dimension: Dimension, place: float) -> str:
    if dimension.size is not None:
        return dimension.value(min(int(place * dimension.size), dimension.size - 1))
    low, high = float(dimension.low), float(dimension.high)
    if dimension.log:
        return dimension.snap(math.exp(_between(math.log(low), math.log(high), place)))
    return dimension.snap(_between(low, high, place))


def _between(low: float, high: float, share: float) -> float:
    return low + share * (high - low)


def order(dimension: Dimension) -> tuple[str, ...] | None:
    """Returns a dimension's choices from the smallest to the largest; None if some are no numbers.

    Numbers have neighbours, which a sampler can learn from; names have none.
    """
    try:
        return tuple(sorted(dimension.choices or (), key=exact_fraction)) or None
    except SpecError:
        return None


def distance(dimensions: Sequence[Dimension], one: Point, other: Point) -> float:
    """Returns how far apart two points are: the root of the mean square over the dimensions.

    A dimension adds the distance of its numbers as a share of its range (of its decades, with
    `log`), or 1 for two names that differ.
    """
    parts = [_gap(d, str(one[d.name]), str(other[d.name])) for d in dimensions]
    return math.sqrt(sum(part * part for part in parts) / max(len(parts), 1))


def _gap(dimension: Dimension, one: str, other: str) -> float:
    if one == other:
        return 0.0
    if dimension.choices is not None:
        ordered = order(dimension)
        if ordered is None:
            return 1.0
        low, high = Fraction(ordered[0]), Fraction(ordered[-1])
    else:
        low, high = Fraction(dimension.low), Fraction(dimension.high)
        if dimension.log:
            decades = math.log(high / low)
            return abs(math.log(Fraction(one) / Fraction(other))) / decades
    return float(abs(Fraction(one) - Fraction(other)) / (high - low))
