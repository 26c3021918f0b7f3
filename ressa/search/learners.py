"""Samplers that learn from results: Optuna's, asked anew for every proposal.

The study is an in-memory cache, built from the trials that a proposal may see. Its sampler's seed
follows from the number of the proposal, so nothing carries over from one to the next.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from ressa.records import content_key
from ressa.search.cube import order
from ressa.search.seen import Seen
from ressa.spec import Dimension
from ressa.threads import one_thread

# A study is made for every proposal; its birth is no news.
optuna.logging.set_verbosity(optuna.logging.WARNING)

_STARTUP = 6  # trials with a result before a model is fitted
_POPULATION = 12  # of a generation of nsga2: sweeps have tens of trials, not thousands


class Learner:
    """One of Optuna's samplers over a space.

    Args:
        sampler: tpe, gp or nsga2.
        dimensions: the axes of the space.
        objectives: how many.
        seed: of all proposals.
    """

    def __init__(
        self, sampler: str, dimensions: Sequence[Dimension], objectives: int, seed: int
    ) -> None:
        self._sampler, self._seed, self._objectives = sampler, seed, objectives
        self._axes = [_Axis(dimension) for dimension in dimensions]
        self._distributions = {axis.name: axis.distribution for axis in self._axes}
        self._records: dict[int, tuple[Seen, FrozenTrial]] = {}

    @one_thread()
    def ask(self, number: int, trials: Sequence[Seen]) -> tuple[dict[str, str], str]:
        """Returns the sampler's next word, and what it notes about it as JSON.

        Args:
            number: of the proposal.
            trials: all earlier ones in order, those in flight without values.
        """
        study = optuna.create_study(
            directions=["maximize"] * self._objectives, sampler=self._made_for(number)
        )
        study.add_trials([self._record(place, trial) for place, trial in enumerate(trials)])
        trial = study.ask(self._distributions)
        point = {axis.name: axis.value(trial.params[axis.name]) for axis in self._axes}
        newest = study.get_trials(deepcopy=False)[-1]
        return point, json.dumps(newest.system_attrs, sort_keys=True)

    def _made_for(self, number: int) -> BaseSampler:
        seed = int(content_key(self._seed, number)[:8], 16)
        match self._sampler:
            case "gp":
                return GPSampler(
                    seed=seed, n_startup_trials=_STARTUP, warn_independent_sampling=False
                )
            case "nsga2":
                return NSGAIISampler(seed=seed, population_size=_POPULATION)
        return TPESampler(
            seed=seed, n_startup_trials=_STARTUP, multivariate=True, constant_liar=True
        )

    def _record(self, place: int, trial: Seen) -> FrozenTrial:
        known = self._records.get(place)
        if known is None or known[0] != trial:
            self._records[place] = known = (trial, self._as_optuna(trial))
        return known[1]

    def _as_optuna(self, trial: Seen) -> FrozenTrial:
        state = TrialState.COMPLETE if trial.values is not None else TrialState.RUNNING
        return create_trial(
            state=TrialState.FAIL if trial.failed else state,
            values=trial.values,
            params={axis.name: axis.sampled(trial.point[axis.name]) for axis in self._axes},
            distributions=self._distributions,
            system_attrs=_lasting(json.loads(trial.system_attrs)),
        )


def _lasting(notes: Mapping[str, Any]) -> dict[str, Any]:
    """What counts of a sampler's notes: not the word itself, which another point may have taken."""
    return {name: note for name, note in notes.items() if "relative_params" not in name}


class _Axis:
    """A dimension as Optuna has it; choices that are numbers are ranks, which have neighbours."""

    def __init__(self, dimension: Dimension) -> None:
        self._dimension, self._order = dimension, order(dimension)
        self.name = dimension.name
        self.distribution: BaseDistribution
        if self._order is not None:
            self.distribution = IntDistribution(0, len(self._order) - 1)
        elif dimension.choices is not None:
            self.distribution = CategoricalDistribution(dimension.choices)
        else:
            step = None if dimension.step is None else float(dimension.step)
            low, high = float(dimension.low), float(dimension.high)
            self.distribution = FloatDistribution(low, high, step=step, log=dimension.log)

    def value(self, sampled: Any) -> str:
        """Returns the value that Optuna means."""
        if self._order is not None:
            return self._order[int(sampled)]
        return str(sampled) if self._dimension.choices else self._dimension.snap(sampled)

    def sampled(self, value: str) -> Any:
        """Returns what stands for a value in Optuna."""
        if self._order is not None:
            return self._order.index(value)
        return value if self._dimension.choices else float(value)
