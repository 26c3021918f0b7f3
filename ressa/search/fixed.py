"""Samplers that look at no result: point n of the grid, of Sobol's sequence, or of chance."""

import random
from collections.abc import Callable, Iterator, Sequence

from ressa.search.cube import point_at
from ressa.spec import Dimension, Point
from ressa.spec.space import grid

_BLOCK = 64  # points of Sobol's sequence that are made at once; a power of two, as it asks for
PATIENCE = 10_000  # draws in a row without a new feasible point before a space counts as spent


def sobol(dimensions: Sequence[Dimension], seed: int) -> Iterator[dict[str, str]]:
    """Yields the points of a scrambled Sobol sequence, without end."""
    from scipy.stats.qmc import Sobol

    places = Sobol(len(dimensions), scramble=True, rng=seed)
    while True:
        for place in places.random(_BLOCK):
            yield point_at(dimensions, place)


def chance(dimensions: Sequence[Dimension], seed: object) -> Iterator[dict[str, str]]:
    """Yields points drawn evenly and independently, without end."""
    draw = random.Random(f"points {seed}")
    while True:
        yield point_at(dimensions, [draw.random() for _ in dimensions])


def shuffled(dimensions: Sequence[Dimension], seed: int) -> Iterator[dict[str, str]]:
    """Yields every point of a discrete space in an order of chance."""
    points = list(grid(dimensions))
    random.Random(f"points {seed}").shuffle(points)
    return iter(points)


class Fixed:
    """The points of a stream that can be, each once; the same at every start.

    Args:
        stream: points in order; the same one may come again.
        can_be: whether a point is feasible.
        endless: whether to give up after `PATIENCE` points without a new one.
    """

    def __init__(
        self,
        stream: Iterator[dict[str, str]],
        can_be: Callable[[Point], bool],
        *,
        endless: bool,
    ) -> None:
        self._stream, self._can_be, self._endless = stream, can_be, endless
        self._taken: set[tuple[str, ...]] = set()
        self._points: list[dict[str, str]] = []

    def get(self, number: int) -> dict[str, str] | None:
        """Returns point `number`, or None when there are not that many."""
        patience = PATIENCE
        while len(self._points) <= number and patience:
            point = next(self._stream, None)
            if point is None:
                break
            values = tuple(point.values())
            if values not in self._taken and self._can_be(point):
                self._taken.add(values)
                self._points.append(point)
                patience = PATIENCE
            elif self._endless:
                patience -= 1
        return self._points[number] if number < len(self._points) else None
