"""Whether a difference of scores is one: two tests, for two questions.

*Same checkpoints*: are these two models different on other pictures of the same kind? The models
stand still; pictures are drawn anew, whole, with all their questions: `same_checkpoints`.

*Allocations*: is one way to split the sparsity better than another, whichever seeds of calibration
and repair one happens to have? Seeds are drawn anew too, so that several runs of each are needed:
`allocations`. Its figures are in docs/verdicts.md.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np

from ressa.landscape.items import Floats, Items, Run

LEAST_SEEDS = 3
"""Fewer runs say nothing of how far runs lie from each other."""
_RESAMPLES = 10_000
_NODES = 15
_LOGITS = 0.35 * np.arange(-60, 61)
"""Log-odds of the levels at which distributions are held: from 1 in 10⁹ to 1 − that."""
_TINY = 1e-12  # what rounding makes of a score


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


def same_checkpoints(items: Items, one: Run, other: Run, *, confidence: float = 0.95) -> Difference:
    """Compares two models by paired bootstrap over whole pictures.

    The interval is the percentile one of 10,000 resamples, and p the least 1 − confidence at which
    it leaves 0 out. Where each picture has one question that is right or wrong, and the score is
    their share, p is McNemar's exact one.

    Args:
        items: of both.
        one: the first model.
        other: the second.
        confidence: of the interval, in (0, 1).
    """
    pair = items.of([one, other])
    better = int((pair.values[0] > pair.values[1]).sum())
    worse = int((pair.values[0] < pair.values[1]).sum())
    drawn = pair.resampled(_RESAMPLES, seed=0)
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
class Runs:
    """What the scores of an allocation's runs say of its mean score over all seeds.

    Their log-odds are taken as normal over seeds: scores crowd at the ends of their range and have
    a long tail to the other side, which an interval of scores themselves would not know of. Scores
    that are no shares (CIDEr) are taken as they are.
    """

    mean: float
    """Of the scores."""
    centre: float
    """Mean of the log-odds."""
    deviation: float
    """Their standard deviation, by n − 1, and more than 0 where anything varies at all."""
    is_share: bool
    """Whether scores lie in [0, 1]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A mean difference of two allocations, with what it varies by.

    Of R seeds crossed with G pictures, d_rg = δ + u_r + v_g + w_rg. The mean squares give unbiased
    estimates of the variance that each part adds to the mean. Bounds and p are those of a
    generalised confidence interval (Weerahandi 1993; of means of skewed quantities, Krishnamoorthy
    and Mathew 2003): quantiles of all differences of means that the runs may come from. For one
    allocation, its deviation over the observed one is √((R − 1) / χ²), its centre off by a normal
    one; what pictures add is by Student's t with G − 1 degrees of freedom. They are integrated, not
    drawn: p has no least value that Holm over many pairs could not get past.
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
    one: Runs
    other: Runs

    @property
    def standard_error(self) -> float:
        """Of the mean difference."""
        return math.sqrt(self.of_seeds + self.of_pictures)

    @property
    def is_certain(self) -> bool:
        """Whether nothing varies, over seeds or pictures."""
        return not (self.one.deviation or self.other.deviation or self.of_pictures)

    def low(self, level: float) -> float:
        """Returns the lower one-sided bound of a level, such as 0.95."""
        return self.high(1 - level)

    def high(self, level: float) -> float:
        """Returns the upper one-sided bound of a level.

        What was seen lies on its own side of it: where all runs lie at an end of their range, most
        of what may be behind them lies farther in.
        """
        from scipy.special import logit

        found = float(np.interp(logit(level), _LOGITS, _likely(self)))
        return max(found, self.value) if level >= 0.5 else min(found, self.value)

    def p_above(self, value: float) -> float:
        """Returns the one-sided p of "the difference is at most `value`": small if it is above.

        The level at which the lower bound comes to `value`, from 10⁻⁹ on.
        """
        if self.is_certain:
            return float(self.value <= value)
        return _level(self, value, 1)

    def p_below(self, value: float) -> float:
        """Returns the one-sided p of "the difference is at least `value`": small if it is below."""
        if self.is_certain:
            return float(self.value >= value)
        return _level(self, value, -1)

    def with_seeds(self, seeds: int) -> "Spread":
        """Returns what it would be with another number of seeds, all else equal."""
        share = self.seeds / seeds
        return replace(
            self, seeds=seeds, of_seeds=self.of_seeds * share, of_both=self.of_both * share
        )


def _level(spread: Spread, value: float, sign: Literal[1, -1]) -> float:
    """How likely it is that the difference is at most a value; with sign −1, at least."""
    from scipy.special import expit

    return float(expit(sign * np.interp(value, _likely(spread), _LOGITS)))


@lru_cache(maxsize=1024)
def _likely(spread: Spread) -> Floats:
    """The differences that may be behind what was seen: their quantiles, [level]."""
    from scipy.special import expit, stdtrit

    one, other = (_mean(runs, spread.seeds) for runs in (spread.one, spread.other))
    errors = stdtrit(spread.pictures - 1, expit(_LOGITS))
    difference = _quantiles(one[:, None] - other)
    return _quantiles(difference[:, None] + math.sqrt(spread.of_pictures) * errors)


@lru_cache(maxsize=4096)
def _mean(runs: Runs, seeds: int) -> Floats:
    """The mean scores over all seeds that runs may come from: their quantiles, [level]."""
    from scipy.special import expit, gammaincinv, ndtri

    if not runs.deviation:
        return np.full_like(_LOGITS, runs.mean)
    levels = expit(_LOGITS)
    chi_squared = 2 * gammaincinv((seeds - 1) / 2, levels)
    deviation = runs.deviation * np.sqrt((seeds - 1) / chi_squared)[:, None]  # [level 1]
    centre = runs.centre + deviation * ndtri(levels) / math.sqrt(seeds)  # [level level]
    if not runs.is_share:
        return _quantiles(centre)
    # The mean score over all seeds, by Gauss and Hermite.
    places, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    scores = expit(centre[..., None] + deviation[..., None] * places)  # [level level node]
    return _quantiles(scores @ (weights / weights.sum()))


def _quantiles(values: Floats) -> Floats:
    """Quantiles, [level], of a function of two independent quantities.

    Args:
        values: [level level], of the two at each of their levels. The levels' log-odds are evenly
            spaced, so that the trapezoidal rule over them resolves both tails.
    """
    from scipy.special import expit

    weights = expit(_LOGITS) * expit(-_LOGITS)
    order = np.argsort(values, axis=None)
    each = np.outer(weights, weights).ravel()[order]
    below, above = np.cumsum(each), np.cumsum(each[::-1])[::-1]
    log_odds = np.log(below - each / 2) - np.log(above - each / 2)
    return np.asarray(np.interp(_LOGITS, log_odds, values.ravel()[order]))


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
    scores = np.stack([one.mean(axis=1), other.mean(axis=1)])
    is_share = bool((scores > -_TINY).all() and (scores < 1 + _TINY).all())
    varies = bool(max(np.ptp(one), np.ptp(other)) > _TINY)
    return Spread(
        value=mean,
        seeds=seeds,
        pictures=pictures,
        of_seeds=float(by_seed.var(ddof=1)) / seeds,
        of_pictures=max(0.0, float(by_picture.var(ddof=1)) / pictures - both),
        of_both=both,
        one=_runs(scores[0], pictures, is_share=is_share, varies=varies),
        other=_runs(scores[1], pictures, is_share=is_share, varies=varies),
    )


def _runs(scores: Floats, pictures: int, *, is_share: bool, varies: bool) -> Runs:
    from scipy.special import logit

    places, least = scores, 0.0
    if is_share:
        # No score is certain to be 0 or 1: half a picture from it.
        half = 0.5 / pictures
        clipped = np.clip(scores, half, 1 - half)
        places, middle = logit(clipped), float(clipped.mean())
        # Nor do runs that all scored alike, or lie at that end, say that every run would: as if
        # one of them lay half a picture off the others.
        least = half / (middle * (1 - middle)) / math.sqrt(len(scores))
    is_constant = float(np.ptp(places)) < _TINY
    return Runs(
        mean=float(scores.mean()),
        centre=float(places.mean()),
        deviation=(least if varies else 0.0) if is_constant else float(places.std(ddof=1)),
        is_share=is_share,
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
