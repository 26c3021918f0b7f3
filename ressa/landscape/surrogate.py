r"""The map as a Gaussian process: what any allocation would score, and how sure that is.

A run of an allocation x = (vision sparsity, language sparsity) scores s with

.. math:: \operatorname{logit} s/c = g(x) + r, \qquad r \sim N(0, \tau^2(x)).

The ceiling c is 1 for shares. Where scores lie above 1 (CIDEr, shares of the dense model's), or all
of them below a tenth (likelihoods), it is the least power of two above them, so that the map is
nearly linear in them at the top.

g is what the sweep's questions say of the allocation whichever its seeds: a constant plus a process
with a Matérn 5/2 kernel, a length for each tower (scikit-learn's kernels). Its axes are warped
(`_warped`): a score hardly changes up to 40 % and falls off a cliff at 80 %.

r is what a run's seeds of calibration and repair add. Its variance τ²(x) = σ² + ϱ / 10 p(1 − p)
grows as scores p come near 0 and 1, as that of counts does. σ² and ϱ are estimated by likelihood
together with the kernel: by how far runs of one allocation lie apart where it has several, and by
how far scores lie from a smooth surface.

Other pictures would have drawn another map. The map is linear in the scores' logits, so that a
picture's influence on it follows from its influence on each score (`items.Items.said`); places near
each other share it, as in the paired bootstrap over pictures.

Dimensions: trial; cell = an allocation that was run, once or often; place = where the map is asked;
draw; picture. Sparsities are fractions, and so are scores where they are shares.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ressa.errors import SpecError
from ressa.landscape.items import Floats
from ressa.threads import one_thread

LEAST_CELLS = 4
"""Of fewer allocations no map is drawn."""
CONFIDENCE = 0.9
"""Of the intervals of what a map predicts, and of where the best of a line lies."""
_LOWEST, _HIGHEST = 0.02, 0.998  # of scores: what lies beyond is taken as if it lay here
_JITTER = 1e-9
_BEFORE = (4.0, 1.2, 1.2, 0.015, 0.06)
"""Variance of g, its length for each tower, ϱ and σ²: their medians before any trial is seen."""
_WIDTH = (1.0, 0.5, 0.5, 0.7, 0.5)
"""Standard deviations of their logarithms. Few trials then make no map too sure of itself, nor do
trials that all have one seed make its noise look small. Both are what maps of the pocket models
came to, less sharply: docs/map.md."""
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(9)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What trials scored."""

    vision: Floats
    """[trial]: share of the vision tower's prunable weights that is zero."""
    language: Floats
    """[trial]: the same of the language tower."""
    score: Floats
    """[trial]: ≥ 0."""
    influence: Floats | None = None
    """[trial picture]: how far each picture moves the score; None if the score is no mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """What one more run of each allocation would score on the same questions."""

    mean: Floats
    """[place]: over seeds."""
    deviation: Floats
    """[place]: standard deviation, by the run's seeds and by what is not known of the map."""
    low: Floats
    high: Floats
    """[place]: ends of the two-sided interval, of confidence `CONFIDENCE`."""


@one_thread()
def fit(observed: Observed) -> "Surrogate":
    """Fits the map to what trials scored; the same trials in any order give the same map.

    Raises:
        SpecError: there are fewer than `LEAST_CELLS` allocations, or a score is below 0.
    """
    if len(observed.score) and not observed.score.min() >= 0:
        raise SpecError(f"the map is of scores of at least 0, got {observed.score.min():g}.")
    cells = _Cells.of(observed)
    if len(cells.runs) < LEAST_CELLS:
        raise SpecError(
            f"a map needs {LEAST_CELLS} allocations with a score, there are {len(cells.runs)}."
        )
    plain = _fitted(cells, shape=None, start=None)
    return _fitted(cells, shape=_shape(plain.logits(cells.places)[0]), start=plain.parameters)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cells:
    """Trials by allocation; logits are clipped."""

    ceiling: float
    """What scores are shares of."""
    places: Floats
    """[cell tower]: sparsities."""
    runs: Floats
    """[cell]: how many trials."""
    logit: Floats
    """[cell]: their mean."""
    squares: Floats
    """[cell]: sum of their squared distances from it."""
    influence: Floats | None
    """[cell picture]: on the logit."""

    @classmethod
    def of(cls, observed: Observed) -> "_Cells":
        ceiling = _ceiling(float(observed.score.max(initial=0.0)))
        score = np.clip(observed.score / ceiling, _LOWEST, _HIGHEST)
        order = np.lexsort((score, observed.language, observed.vision))
        score, logit = score[order], np.log(score / (1 - score))[order]
        where = np.column_stack([observed.vision, observed.language])[order].round(6)
        places, at = np.unique(where, axis=0, return_inverse=True)
        at = at.ravel()
        runs = np.bincount(at).astype(float)
        mean = np.bincount(at, logit) / runs
        influence = None
        if observed.influence is not None:
            moved = observed.influence[order] / (ceiling * score * (1 - score))[:, None]
            influence = np.zeros((len(runs), moved.shape[1]))
            np.add.at(influence, at, moved / runs[at][:, None])
        return cls(
            ceiling=ceiling,
            places=places,
            runs=runs,
            logit=mean,
            squares=np.bincount(at, (logit - mean[at]) ** 2).astype(float),
            influence=influence,
        )


@dataclass(frozen=True)
class Surrogate:
    """A fitted map; ask it by `predict` and `draws`."""

    cells: _Cells
    parameters: Floats
    """Logarithms of what was estimated: the kernel's, then ϱ and σ²."""
    level: float
    """Mean logit over the cells."""
    _kernel: Any
    _shape: Floats | None
    """[cell]: 1 / 10 p(1 − p) at each; None where the noise is the same everywhere."""

    @one_thread()
    def predict(self, vision: Floats, language: Floats) -> Predicted:
        """Returns what one more run of each allocation would score on the same questions.

        Args:
            vision: [place], sparsities.
            language: [place].
        """
        from scipy.special import ndtri

        mean, variance = self.logits(np.column_stack([vision, language]))
        spread = np.sqrt(variance + self.noise(mean))
        ceiling = self.cells.ceiling
        scores = ceiling * _share(mean[:, None] + spread[:, None] * _NODES)
        expected = scores @ _WEIGHTS
        reach = spread * float(ndtri((1 + CONFIDENCE) / 2))
        return Predicted(
            mean=expected,
            deviation=np.sqrt(np.maximum(((scores - expected[:, None]) ** 2) @ _WEIGHTS, 0)),
            low=ceiling * _share(mean - reach),
            high=ceiling * _share(mean + reach),
        )

    @one_thread()
    def draws(
        self, vision: Floats, language: Floats, count: int, *, seed: int = 0, pictures: bool = True
    ) -> Floats:
        """Draws maps that agree with the trials: scores over all seeds, [draw place].

        Args:
            vision: [place], sparsities.
            language: [place].
            count: how many.
            seed: of the draws.
            pictures: whether as on other pictures of the same kind, where that is known; else on
                those that the trials were scored on.
        """
        places = np.column_stack([vision, language])
        mean, covariance, weights = self._posterior(places)
        draw = np.random.default_rng(seed)
        found = mean + draw.standard_normal((count, len(places))) @ _root(covariance).T
        if pictures and self.cells.influence is not None:
            moved = weights @ self.cells.influence  # [place picture]
            found += draw.standard_normal((count, moved.shape[1])) @ moved.T
        spread = np.sqrt(self.noise(mean))[:, None] * _NODES
        return np.asarray(self.cells.ceiling * _share(found[:, :, None] + spread) @ _WEIGHTS)

    def logits(self, places: Floats) -> tuple[Floats, Floats]:
        """Returns mean and variance of g, [place] each; `places` is [place tower]."""
        mean, covariance, _ = self._posterior(places)
        return mean, np.maximum(np.diag(covariance), 0)

    def noise(self, logit: Floats) -> Floats:
        """Returns the variance of a run's logit by its seeds, at mean logits."""
        excess, plain = np.exp(self.parameters[-2:])
        return np.asarray(plain + (excess * _shape(logit) if self._shape is not None else 0))

    def _posterior(self, places: Floats) -> tuple[Floats, Floats, Floats]:
        """Mean and covariance of g at places, and the cells' weights in it, [place cell]."""
        from scipy.linalg import cho_solve

        at = _warped(places)
        shared = self._kernel(at, _warped(self.cells.places))
        weights = cho_solve(self._factor, shared.T).T
        mean = self.level + weights @ (self.cells.logit - self.level)
        return mean, self._kernel(at) - weights @ shared.T, weights

    @cached_property
    def _factor(self) -> Any:
        from scipy.linalg import cho_factor

        return cho_factor(self._covariance(), lower=True)

    def _covariance(self) -> Floats:
        noise = self._cell_noise() / self.cells.runs + _JITTER
        return np.asarray(self._kernel(_warped(self.cells.places)) + np.diag(noise))

    def _cell_noise(self) -> Floats:
        excess, plain = np.exp(self.parameters[-2:])
        shape = 0.0 if self._shape is None else self._shape
        return np.asarray(np.broadcast_to(plain + excess * shape, self.cells.runs.shape))


def _fitted(cells: _Cells, shape: Floats | None, start: Floats | None) -> Surrogate:
    """Finds the most probable kernel and noise, from `start` on."""
    from scipy.optimize import minimize
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern

    surface = ConstantKernel(_BEFORE[0], (1e-3, 1e3)) * Matern(_BEFORE[1:3], (0.05, 20.0), nu=2.5)
    kernel = surface + ConstantKernel(9.0, "fixed")
    at, level = _warped(cells.places), float(cells.logit.mean())
    logit, runs, squares = cells.logit - level, cells.runs, cells.squares
    before, width = np.log(_BEFORE), np.array(_WIDTH)
    growth = np.zeros_like(runs) if shape is None else shape

    def lack(parameters: Floats) -> tuple[float, Floats]:
        """Minus the log of likelihood times prior, and its gradient."""
        from scipy.linalg import cho_factor, cho_solve

        kernel.theta = parameters[:-2]
        excess, plain = np.exp(parameters[-2:])
        noise = plain + excess * growth
        covariance, slopes = kernel(at, eval_gradient=True)
        factor = cho_factor(covariance + np.diag(noise / runs + _JITTER), lower=True)
        pull = cho_solve(factor, logit)
        rest = cho_solve(factor, np.eye(len(logit))) - np.outer(pull, pull)
        by_noise = np.diag(rest) / runs + (runs - 1) / noise - squares / noise**2
        off = (parameters - before) / width
        value = logit @ pull + 2 * np.log(np.diag(factor[0])).sum() + off @ off
        value += ((runs - 1) * np.log(noise) + squares / noise).sum()
        gradient = [*np.einsum("ij,ijk->k", rest, slopes)]
        gradient += [(by_noise * excess * growth).sum(), (by_noise * plain).sum()]
        return value / 2, np.array(gradient) / 2 + off / width

    bounds = [*map(tuple, kernel.bounds), *[(np.log(1e-6), np.log(10.0))] * 2]
    found = minimize(
        lack, before if start is None else start, jac=True, method="L-BFGS-B", bounds=bounds
    )
    kernel.theta = found.x[:-2]
    return Surrogate(cells=cells, parameters=found.x, level=level, _kernel=kernel, _shape=shape)


def _ceiling(highest: float) -> float:
    """What scores are shares of, by the highest of them."""
    if highest <= 0 or 0.1 <= highest <= 1:
        return 1.0
    return 2.0 ** (math.floor(math.log2(highest)) + 1)


def _warped(places: Floats) -> Floats:
    """Stretches sparsities where scores fall: from 60 to 80 % is farther than from 0 to 50 %."""
    return np.asarray(2.5 * places**2)


def _shape(logit: Floats) -> Floats:
    """How the variance of a logit grows towards the ends of the scores; 0.4 at one half."""
    share = _share(logit)
    return np.asarray(0.1 / np.maximum(share * (1 - share), 0.002))


def _share(logit: Floats) -> Floats:
    from scipy.special import expit

    return np.asarray(expit(logit))


def _root(covariance: Floats) -> Floats:
    """A matrix whose product with its transpose is the covariance, however singular it is."""
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0)))
