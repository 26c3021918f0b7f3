"""The map of stored sweeps: fitted once to what they hold, whoever asks for it."""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from ressa.landscape.observed import observed
from ressa.landscape.surrogate import Surrogate, fit
from ressa.store import SweepStore

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """A map, and the trials that it is made from."""

    surrogate: Surrogate
    trials: "pandas.DataFrame"
    """Rows as `observed.mapped_trials` gives them."""


@dataclass(frozen=True, slots=True)
class _Trials:
    """What a map is fitted to; two are equal if the same map comes of them."""

    scored: tuple[tuple[object, ...], ...]
    """Sweep, state, trial, attempt and score of each: by these a map that was fitted is found."""
    rows: "dict[SweepStore, pandas.DataFrame]" = field(compare=False, repr=False)


def fitted_to(rows: "dict[SweepStore, pandas.DataFrame]") -> Fitted:
    """Fits the map of some trials; one of the last few is not fitted again.

    Args:
        rows: as `mapped_trials` gives them.

    Raises:
        SpecError: there are too few allocations, or they cannot be on one map.
        NotFoundError: there are several sweeps, and no answers of a trial.
    """
    scored = tuple(
        (sweep, *row)
        for sweep, own in rows.items()
        for row in own[["wanted", "trial", "attempt", "score"]].itertuples(index=False, name=None)
    )
    return _fitted(_Trials(scored, rows))


@lru_cache(maxsize=4)
def _fitted(trials: _Trials) -> Fitted:
    import pandas as pd

    return Fitted(fit(observed(trials.rows)), pd.concat(trials.rows.values()))
