"""Whether a difference of scores is one: two tests, for two questions.

*Same checkpoints*: are these two models different on other pictures of the same kind? The models
stand still; pictures are drawn anew, whole, with all their questions: `same_checkpoints`.

*Allocations*: is one way to split the sparsity better than another, whichever seeds of calibration
and repair one happens to have? Seeds are drawn anew too, so that several runs of each are needed:
`allocations`. Its figures are in docs/verdicts.md.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ressa.landscape.items import Floats, Items, Run

LEAST_SEEDS = 3
"""Fewer runs say nothing of how far runs lie from each other."""
_RESAMPLES = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Of two models' scores, the first minus the second, in fractions."""

    value: float
    standard_error: float
    low: float
    high: float
    """Ends of the two-sided interval."""
    p_value: float
    """Two-sided, of no difference."""
    test: str
    pictures: int
    items: int
    better: int
    """Items on which the first scored more."""
    worse: int


def same_checkpoints(
    items: Items, one: Run, other: Run, *, confidence: float = 0.95, seed: int = 0
) -> Difference:
    """Compares two models by paired bootstrap over whole pictures.

    The interval is the percentile one of 10,000 resamples, and p the least 1 − confidence at which
    it leaves 0 out. Where each picture has one question that is right or wrong, and the score is
    their share, p is McNemar's exact one.

    Args:
        items: of both.
        one: the first model.
        other: the second.
        confidence: of the interval, in (0, 1).
        seed: of the resamples.
    """
    pair = items.of([one, other])
    better = int((pair.values[0] > pair.values[1]).sum())
    worse = int((pair.values[0] < pair.values[1]).sum())
    drawn = pair.resampled(_RESAMPLES, seed)
    differences = drawn[:, 0] - drawn[:, 1]
    low, high = np.quantile(differences, [(1 - confidence) / 2, (1 + confidence) / 2])
    tail = min((differences <= 0).sum(), (differences >= 0).sum())
    p_value, test = min(1.0, 2 * (tail + 1) / (_RESAMPLES + 1)), "paired bootstrap over pictures"
    if _is_binary(pair):
        p_value, test = mcnemar(better, worse), "McNemar, exact"
    first, second = pair.scores
    return Difference(
        value=float(first - second),
        standard_error=float(differences.std(ddof=1)),
        low=float(low),
        high=float(high),
        p_value=float(p_value),
        test=test,
        pictures=pair.pictures,
        items=pair.values.shape[1],
        better=better,
        worse=worse,
    )


def _is_binary(items: Items) -> bool:
    """Whether McNemar's test applies: right or wrong, one question a picture, a plain share."""
    one_each = items.pictures == items.values.shape[1]
    return one_each and not items.stratum.any() and bool(np.isin(items.values, (0, 1)).all())


def mcnemar(better: int, worse: int) -> float:
    """Returns the exact two-sided p of McNemar's test: of those that differ, half go each way."""
    count, least = better + worse, min(better, worse)
    tail = sum(math.comb(count, k) for k in range(least + 1))
    return min(1.0, float(2 * tail / 2**count))


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A mean difference of two allocations, with what it varies by.

    Of R seeds crossed with G pictures, d_rg = δ + u_r + v_g + w_rg. The mean squares give unbiased
    estimates of the variance that each part adds to the mean.
    """

    value: float
    """Mean difference over seeds and pictures, in fractions."""
    seeds: int
    pictures: int
    of_seeds: float
    """Variance of the mean by seeds: σ²_u / R + σ²_w / (RG)."""
    of_pictures: float
    """What pictures add: σ²_v / G, not below 0."""
    of_both: float
    """The part of `of_seeds` that more pictures would lessen too: σ²_w / (RG)."""

    @property
    def standard_error(self) -> float:
        """Of the mean difference."""
        return math.sqrt(self.of_seeds + self.of_pictures)

    def half_width(self, level: float) -> float:
        """Returns how far a one-sided bound of a level, such as 0.95, lies from the mean.

        By Cochran and Cox: the quantiles of Student's t with R − 1 and G − 1 degrees of freedom,
        weighted by their variances.
        """
        from scipy.special import stdtrit

        if not self.standard_error:
            return 0.0
        seeds = self.of_seeds * float(stdtrit(self.seeds - 1, level))
        pictures = self.of_pictures * float(stdtrit(self.pictures - 1, level))
        return (seeds + pictures) / self.standard_error

    def p_above(self, value: float) -> float:
        """Returns the one-sided p of "the difference is at most `value`": small if it is above.

        The level at which the lower bound comes to `value`.
        """
        distance = self.value - value
        if not self.standard_error:
            return float(distance <= 0)
        return self._tail(distance) if distance > 0 else 1 - self._tail(-distance)

    def p_below(self, value: float) -> float:
        """Returns the one-sided p of "the difference is at least `value`": small if it is below."""
        if not self.standard_error:
            return float(self.value >= value)
        return 1 - self.p_above(value)

    def _tail(self, distance: float) -> float:
        """The p at which a bound lies so far from the mean, in [0, 1/2]."""
        from scipy.optimize import brentq

        least = 1e-9
        if self.half_width(1 - least) <= distance:
            return least
        return float(brentq(lambda p: self.half_width(1 - p) - distance, least, 0.5, xtol=1e-9))

    def with_seeds(self, seeds: int) -> "Spread":
        """Returns what it would be with another number of seeds, all else equal."""
        share = self.seeds / seeds
        return Spread(
            value=self.value,
            seeds=seeds,
            pictures=self.pictures,
            of_seeds=self.of_seeds * share,
            of_pictures=self.of_pictures,
            of_both=self.of_both * share,
        )


def allocations(one: Floats, other: Floats) -> Spread:
    """Compares two allocations, the first minus the second.

    Args:
        one: [seed picture], what each picture says of each run's score: `Items.said`.
        other: the same of the other allocation, with the same seeds and pictures, in order.

    Raises:
        ValueError: fewer than two seeds or pictures.
    """
    differences = one - other
    seeds, pictures = differences.shape
    if min(seeds, pictures) < 2:
        raise ValueError("a spread needs two seeds and two pictures")
    by_seed, by_picture = differences.mean(axis=1), differences.mean(axis=0)
    mean = float(differences.mean())
    rest = differences - by_seed[:, None] - by_picture + mean
    both = float((rest**2).sum()) / ((seeds - 1) * (pictures - 1)) / (seeds * pictures)
    return Spread(
        value=mean,
        seeds=seeds,
        pictures=pictures,
        of_seeds=float(by_seed.var(ddof=1)) / seeds,
        of_pictures=max(0.0, float(by_picture.var(ddof=1)) / pictures - both),
        of_both=both,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p adjusted by Holm's step-down: at most α leaves the family's error at most α."""
    adjusted = [1.0] * len(p_values)
    order = sorted(range(len(p_values)), key=lambda at: p_values[at])
    highest = 0.0
    for place, at in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - place) * p_values[at]))
        adjusted[at] = highest
    return adjusted
