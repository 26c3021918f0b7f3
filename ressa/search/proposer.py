"""Proposal n as a pure function of the spec and of the results of trials 0 … n−W.

Which trial finished first, and how often the driver was killed in between, cannot change it.
"""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from typing import Any, Protocol

from ressa.errors import InfeasibleAllocation
from ressa.search import fixed
from ressa.search.cube import distance
from ressa.search.seen import Seen
from ressa.spec import Point, SweepSpec
from ressa.spec.space import REPLICATE, grid

_LARGEST_GRID = 100_000  # points; a larger space is never exhausted anyway
_NEIGHBOURS = 256  # points among which the nearest is looked for where there is no list
_REPEATS_IN_A_ROW = 2  # by a learner: they are free and teach it, but a sweep is to get on


class Learns(Protocol):
    """What learns from results which point is worth a trial."""

    def ask(self, number: int, trials: Sequence[Seen]) -> tuple[Point, str]:
        """Returns a point and what to note about it, as JSON: see `learners.Learner.ask`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A point of the space, and what the sampler noted about it."""

    point: Point
    system_attrs: str = "{}"


class Proposer:
    """Proposes points of a sweep's space, one number at a time; never the same point twice.

    Two points may come to the same trial, such as two values of an option that a method does not
    read. grid, qmc and random visit both. Where each point has several runs, they come one after
    the other. A learner's word is taken if it is such a repeat, but not
    more than twice in a row; where it cannot be, or was said before, the nearest point with a trial
    of its own is taken instead.

    Args:
        spec: the resolved sweep.
        identify: maps a point to the key of the trial it comes to; raises `InfeasibleAllocation`
            for a point that cannot be.
        learner: asked in place of Optuna's samplers.
    """

    def __init__(
        self,
        spec: SweepSpec,
        identify: Callable[[Point], str],
        *,
        learner: Learns | None = None,
    ) -> None:
        self._search = spec.search
        self._dimensions = tuple(d for d in spec.dimensions if d.name != REPLICATE)
        self._replicates = spec.replicates
        self._identify = identify
        self._keys: dict[tuple[str, ...], str | None] = {}
        self._listed = spec.points
        sizes = [dimension.size for dimension in self._dimensions]
        size = 0 if None in sizes else math.prod(filter(None, sizes))
        size = size if self._listed is None else len(self._listed)
        self._size = size if size <= _LARGEST_GRID else 0
        """Points of a space that can be listed; 0 of one that cannot."""
        self._points = fixed.Fixed(self._stream(), self._can_be, endless=not self._size)
        self._learner: Learns | None = learner
        if learner is None and not self._search.is_fixed:
            from ressa.search.learners import Learner  # with optuna, which a base install lacks

            self._learner = Learner(
                self._search.sampler, self._dimensions, len(spec.objectives), self._search.seed
            )

    @cached_property
    def trials(self) -> frozenset[str] | None:
        """The keys of all distinct trials of the space; None if it cannot be listed."""
        if not self._size:
            return None
        return frozenset(filter(None, map(self._key, self._runs())))

    def _runs(self) -> Iterator[dict[str, Any]]:
        """Every run of every point of a space that can be listed."""
        return (self._run(point, run) for point in self._all() for run in range(self._replicates))

    def distinct(self, most: int, without: Collection[str]) -> int:
        """Counts the distinct trials of the space beside some, no further than `most`.

        A space that cannot be listed has as many as are asked for. The key of a point takes a
        millisecond to work out, so that a large space is not listed for a few trials.
        """
        if not self._size:
            return most
        found = set[str]()
        for key in map(self._key, self._runs()):
            if len(found) == most:
                break
            if key is not None and key not in without:
                found.add(key)
        return len(found)

    def propose(self, number: int, trials: Sequence[Seen]) -> Proposal | None:
        """Proposes trial `number`, or None when there is nothing new to propose.

        Args:
            number: how many trials were proposed before.
            trials: those trials in the order of their numbers; the ones outside the window stand
                there without values, as in flight.
        """
        place, run = divmod(number, self._replicates)
        if self._learner is None:
            found = self._points.get(place)
            return None if found is None else Proposal(point=self._run(found, run))
        if run:
            first = trials[number - run]
            return Proposal(point=self._run(first.point, run), system_attrs=first.system_attrs)
        before = [trial.point for trial in trials[:: self._replicates]]
        keys = [self._key(point) for point in before]
        taken = frozenset(filter(None, keys))
        if self._size and not self._has_more(taken):
            return None
        word, notes = self._learner.ask(number, trials)
        point = self._run(word, 0)
        key = self._key(point)
        is_repeat = key in taken and (point in before or _repeats(keys) >= _REPEATS_IN_A_ROW)
        if key is None or is_repeat:
            near = self._nearest(point, taken, number)
            return None if near is None else Proposal(point=near, system_attrs=notes)
        return Proposal(point=point, system_attrs=notes)

    def _has_more(self, taken: frozenset[str]) -> bool:
        keys = (self._key(self._run(point, 0)) for point in self._all())
        return any(key is not None and key not in taken for key in keys)

    def _all(self) -> Iterator[dict[str, str]]:
        """Every point of a space that can be listed, without its runs."""
        if self._listed is None:
            return grid(self._dimensions)
        names = [dimension.name for dimension in self._dimensions]
        return ({name: point[name] for name in names} for point in self._listed)

    def _run(self, point: Point, run: int) -> dict[str, Any]:
        """One of the runs of a point."""
        return {**point, REPLICATE: str(run)} if self._replicates > 1 else dict(point)

    def _stream(self) -> Iterator[dict[str, str]]:
        axes, seed = self._dimensions, self._search.seed
        if self._search.sampler == "grid":
            return self._all()
        if self._search.sampler == "qmc":
            drawn = fixed.sobol(axes, seed)
            # Sobol's points come to a point of a discrete space by chance: the list has the rest.
            return chain(islice(drawn, 16 * self._size), self._all()) if self._size else drawn
        return fixed.shuffled(axes, seed) if self._size else fixed.chance(axes, seed)

    def _key(self, point: Point) -> str | None:
        """The key of a point's trial; None if it cannot be."""
        names = [dimension.name for dimension in self._dimensions]
        values = tuple(str(point.get(name)) for name in (*names, REPLICATE))
        if values not in self._keys:
            try:
                self._keys[values] = self._identify(point)
            except InfeasibleAllocation:
                self._keys[values] = None
        return self._keys[values]

    def _can_be(self, point: Point) -> bool:
        return self._key(self._run(point, 0)) is not None

    def _nearest(self, point: Point, taken: frozenset[str], number: int) -> dict[str, str] | None:
        """The point nearest to a word whose trial is new; None if there is none."""
        others = (
            self._all()
            if self._size
            else islice(fixed.chance(self._dimensions, (self._search.seed, number)), fixed.PATIENCE)
        )
        unwanted = taken | {None}
        runs = (self._run(other, 0) for other in others)
        new = (other for other in runs if self._key(other) not in unwanted)
        return min(
            islice(new, None if self._size else _NEIGHBOURS),
            key=lambda other: distance(self._dimensions, point, other),
            default=None,
        )


def _repeats(keys: Sequence[str | None]) -> int:
    """How many of the last trials are repeats of earlier ones."""
    count = 0
    while count < len(keys) and keys[-1 - count] in keys[: len(keys) - 1 - count]:
        count += 1
    return count
