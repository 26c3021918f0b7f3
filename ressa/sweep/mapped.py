"""The map at work in a sweep: it proposes trials (`sampler: map`) and ends it (`stop_when`).

Both are functions of the results that a proposal may see, as every sampler is, and of nothing else:
maps are fitted anew each time, and their draws have seeds of their own.
"""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ressa.landscape.items import Floats
from ressa.landscape.lines import settled
from ressa.landscape.surrogate import LEAST_CELLS, Observed, Surrogate, fit
from ressa.search import Proposer, Seen
from ressa.spec import Point, grid_points
from ressa.spec.space import BUDGET, REPLICATE
from ressa.sweep.plan import SweepPlan

_DRAWS = 500
_GOLDEN = (5**0.5 - 1) / 2
_EVERY, _SELDOM = 100, 10  # trials after each of which lines are looked at; later every tenth


@dataclass(frozen=True, slots=True, kw_only=True)
class _Splits:
    """The allocations of one line that can be, by vision sparsity."""

    budget: str
    points: tuple[Point, ...]
    places: tuple[tuple[float, float], ...]
    """Sparsities of vision and language."""

    @property
    def towers(self) -> tuple[Floats, Floats]:
        """Vision sparsities, and language sparsities."""
        vision, language = np.array(self.places).T
        return vision, language

    def among(self, places: Collection[tuple[float, float]]) -> NDArray[np.bool_]:
        """Says which of the splits are among some places."""
        return np.array([place in places for place in self.places])


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """That every line is decided."""

    results: int
    """Trials that it rests on: the first so many."""
    sure: dict[str, float]
    """Budget → probability that the best that ran is near enough to the best of the line."""

    def to_row(self) -> dict[str, Any]:
        """Returns it as an event has it."""
        return {"decided": asdict(self)}


class Lines:
    """The lines of a sweep's space: a learner for `Proposer`, and the rule that ends the sweep.

    Args:
        plan: of a sweep that has lines on a map: see `spec.check.unmapped`.
    """

    def __init__(self, plan: SweepPlan) -> None:
        self._plan = plan
        self._fitted: tuple[tuple[Seen, ...], Surrogate | None] = ((), None)
        self._places: dict[tuple[tuple[str, Any], ...], tuple[float, float]] = {}

    def ask(self, number: int, trials: Sequence[Seen]) -> tuple[Point, str]:
        """Returns the split that is expected to better the best of its line by most.

        Of maps drawn at random, by how much it lies above the best that ran or is in flight, at
        least 0, on average. The first ones take the lines in turn, at places spread over their
        middle halves.

        Args:
            number: of the proposal.
            trials: all earlier ones in order, those in flight without values.
        """
        surrogate = self._map(trials)
        places = [(self._place(trial.point), trial) for trial in trials]
        known = {place for place, _ in places}
        if surrogate is None:
            return self._spread(len(known), known), "{}"
        ran = {place for place, trial in places if trial.values is not None}
        in_flight = {place for place, trial in places if trial.values is None and not trial.failed}
        best: tuple[float, Point] = (-1.0, self._lines[0].points[0])
        for line in self._lines:
            drawn = surrogate.draws(*line.towers, _DRAWS, seed=number, pictures=False)
            gain = drawn - _reached(drawn, line.among(ran), line.among(in_flight))[:, None]
            hope = np.where(line.among(known), -1.0, np.maximum(gain, 0).mean(axis=0))
            best = max(best, (float(hope.max()), line.points[int(hope.argmax())]), key=_first)
        return best[1], "{}"

    def decide(self, trials: Sequence[Seen]) -> Decision | None:
        """Says whether every line is decided, by trials that have all ended; None if not."""
        wanted = self._plan.spec.search.stop_when
        count = len(trials)
        if wanted is None or (count > _EVERY and count % _SELDOM):
            return None
        surrogate = self._map(trials)
        if surrogate is None:
            return None
        ran = {self._place(trial.point) for trial in trials if trial.values is not None}
        sure = {}
        for line in self._lines:
            share = settled(surrogate, *line.towers, line.among(ran), wanted.regret_points)
            if share < wanted.confidence:
                return None
            sure[line.budget] = share
        return Decision(results=count, sure=sure)

    @cached_property
    def _lines(self) -> list[_Splits]:
        found: dict[str, dict[tuple[float, float], Point]] = {}
        for point in grid_points(self._plan.spec, self._plan.inventory)[0]:
            split = {name: value for name, value in point.items() if name != REPLICATE}
            found.setdefault(split[BUDGET], {})[self._place(point)] = split
        return [
            _Splits(
                budget=budget,
                points=tuple(points[place] for place in sorted(points)),
                places=tuple(sorted(points)),
            )
            for budget, points in found.items()
        ]

    def _place(self, point: Point) -> tuple[float, float]:
        """The sparsities of a point's towers."""
        values = tuple(point.items())
        if values not in self._places:
            trial = self._plan.trial(point)
            targets = trial.vision.target, trial.language.target
            self._places[values] = float(targets[0].sparsity), float(targets[1].sparsity)
        return self._places[values]

    def _map(self, trials: Sequence[Seen]) -> Surrogate | None:
        """The map of what trials scored; None as long as there are too few."""
        scored = tuple(trial for trial in trials if trial.values is not None)
        if self._fitted[0] != scored:
            places = [self._place(trial.point) for trial in scored]
            enough = len(set(places)) >= LEAST_CELLS
            self._fitted = scored, _fit(places, scored) if enough else None
        return self._fitted[1]

    def _spread(self, count: int, known: set[tuple[float, float]]) -> Point:
        """A split of the next line, somewhere in its middle half, that is not known."""
        line = self._lines[count % len(self._lines)]
        share = (count * _GOLDEN + self._plan.spec.search.seed * _GOLDEN**2) % 1
        wanted = (0.25 + share / 2) * (len(line.points) - 1)
        new = [at for at, place in enumerate(line.places) if place not in known]
        at = min(new or [0], key=lambda at: abs(at - wanted))
        return line.points[at]


def proposer(plan: SweepPlan) -> Proposer:
    """Returns what proposes a sweep's trials."""
    learner = Lines(plan) if plan.spec.search.sampler == "map" else None
    return Proposer(plan.spec, plan.key_of, learner=learner)


def _fit(places: Sequence[tuple[float, float]], trials: Sequence[Seen]) -> Surrogate:
    vision, language = np.array(places).T
    scores = [trial.values[0] for trial in trials if trial.values is not None]
    return fit(Observed(vision=vision, language=language, score=np.array(scores)))


def _reached(drawn: Floats, ran: NDArray[np.bool_], in_flight: NDArray[np.bool_]) -> Floats:
    """What a line has already in each draw: its best that ran, or more by what is in flight."""
    found = np.zeros(len(drawn))
    if ran.any():
        found = drawn[:, np.where(ran, drawn.mean(axis=0), -np.inf).argmax()]
    if in_flight.any():
        found = np.maximum(found, drawn[:, in_flight].max(axis=1))
    return np.asarray(found)


def _first(pair: tuple[float, Point]) -> float:
    return pair[0]
