"""Proposal n as a pure function of the spec and of the results of trials 0 … n−W.

The study is an in-memory cache, rebuilt for every proposal from the results it may see: which
trial finished first, and how often the driver was killed in between, cannot change it.
"""

import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from ressa.errors import InfeasibleAllocation
from ressa.records import content_key
from ressa.spec import Dimension, Point, SweepSpec

# A study is made for every proposal; its birth is no news.
optuna.logging.set_verbosity(optuna.logging.WARNING)

_TRIES = 200  # draws before a space is taken to be exhausted
_LARGEST_GRID = 100_000  # points; a larger space is never exhausted anyway


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A trial that a proposal is conditioned on: its point, and its objective if it has one."""

    point: Point
    value: float | None
    """None while the trial is in flight or when it failed; `failed` tells which."""
    failed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A point of the space, and what the sampler noted about it."""

    point: Point
    system_attrs: str


class Proposer:
    """Proposes points of a sweep's space, one number at a time.

    Args:
        spec: the resolved sweep.
        identify: maps a point to the key of the trial it comes to; raises `InfeasibleAllocation`
            for a point that cannot meet its budget.
    """

    def __init__(self, spec: SweepSpec, identify: Callable[[Point], str]) -> None:
        self._search = spec.search
        self._dimensions = tuple(spec.dimensions)
        self._identify = identify
        self._distributions = {d.name: _distribution(d) for d in self._dimensions}
        self._grid = list(self._distinct_grid()) if self._is_finite else None

    @property
    def _is_finite(self) -> bool:
        sizes = [dimension.size for dimension in self._dimensions]
        return None not in sizes and math.prod(filter(None, sizes)) <= _LARGEST_GRID

    @property
    def size(self) -> int | None:
        """How many distinct feasible trials the space holds; None if it is continuous."""
        return None if self._grid is None else len(self._grid)

    def propose(self, number: int, trials: Sequence[Seen]) -> Proposal | None:
        """Proposes trial `number`, or None when every distinct trial has been proposed.

        Args:
            number: how many trials were proposed before.
            trials: those trials in the order of their numbers; the ones outside the window stand
                there without a value, as in flight.
        """
        if self._search.sampler == "grid":
            assert self._grid is not None, "the spec admits a grid over discrete spaces alone"
            return _plain(self._grid[number]) if number < len(self._grid) else None
        taken = {self._identify(trial.point) for trial in trials}
        if self._grid is not None and len(taken) >= len(self._grid):
            return None
        for attempt in range(_TRIES):
            proposal = self._ask(number, attempt, trials)
            try:
                if self._identify(proposal.point) not in taken:
                    return proposal
            except InfeasibleAllocation:
                continue
        # The sampler keeps to points it knows: take the first one that nobody tried.
        left = (point for point in self._grid or () if self._identify(point) not in taken)
        return next(map(_plain, left), None)

    def _ask(self, number: int, attempt: int, trials: Sequence[Seen]) -> Proposal:
        study = optuna.create_study(direction="maximize", sampler=self._sampler(number, attempt))
        study.add_trials([self._record(trial) for trial in trials])
        trial = study.ask(self._distributions)
        point = {d.name: _chosen(d, trial.params[d.name]) for d in self._dimensions}
        return Proposal(point=point, system_attrs=_notes(study))

    def _sampler(self, number: int, attempt: int) -> BaseSampler:
        seed = int(content_key(self._search.seed, number, attempt)[:8], 16)
        if self._search.sampler == "random" or attempt > _TRIES // 2:
            return RandomSampler(seed=seed)
        return TPESampler(seed=seed, n_startup_trials=6, multivariate=True, constant_liar=True)

    def _record(self, trial: Seen) -> FrozenTrial:
        state = TrialState.COMPLETE if trial.value is not None else TrialState.RUNNING
        return create_trial(
            state=TrialState.FAIL if trial.failed else state,
            value=trial.value,
            params={d.name: _sampled(d, trial.point[d.name]) for d in self._dimensions},
            distributions=self._distributions,
        )

    def _distinct_grid(self) -> Iterator[Point]:
        """Yields the feasible points in the order of the product, each distinct trial once."""
        taken: set[str] = set()
        names = [dimension.name for dimension in self._dimensions]
        for values in itertools.product(
            *(dimension.values or () for dimension in self._dimensions)
        ):
            point = dict(zip(names, values, strict=True))
            try:
                key = self._identify(point)
            except InfeasibleAllocation:
                continue
            if key not in taken:
                taken.add(key)
                yield point


def _notes(study: optuna.Study) -> str:
    """What the sampler noted of its newest trial, as JSON."""
    return json.dumps(study.get_trials(deepcopy=False)[-1].system_attrs, sort_keys=True)


def _plain(point: Point) -> Proposal:
    return Proposal(point=point, system_attrs="{}")


def _distribution(dimension: Dimension) -> BaseDistribution:
    if dimension.choices is not None:
        return CategoricalDistribution(dimension.choices)
    step = None if dimension.step is None else float(dimension.step)
    return FloatDistribution(
        float(dimension.low), float(dimension.high), step=step, log=dimension.log
    )


def _chosen(dimension: Dimension, value: Any) -> str:
    return value if dimension.choices is not None else dimension.snap(value)


def _sampled(dimension: Dimension, value: Any) -> Any:
    return value if dimension.choices is not None else float(value)
