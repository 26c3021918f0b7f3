"""The items behind scores: what several models scored on the same questions, laid side by side.

A score is a sum over strata s of share_s · (mean of an item's own score in s). An average has one
stratum; balanced accuracy has one for each true answer, all of equal share; a mean over tasks has
those of each task, whose shares add up to the task's: of retrieval one whose items are captions,
and one whose items are pictures. A likelihood is e to a mean, that of a token's log-probability:
Σ x_i / Σ w_i over texts of w_i tokens. The influence of a picture g on a score,
ψ_g = Σ_{i in g} share_s f'_s (x_i − w_i mean_s) / Σ_s w_i, where f' is 1 or the likelihood, is what
its standard error is made of: see `evaluate.metrics`. G·ψ_g + score is here called what the picture
says: its mean over all G pictures is the score.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ressa.catalog import task_facts
from ressa.errors import NotFoundError, SpecError
from ressa.spec import ALL_TASKS
from ressa.store import SweepStore

if TYPE_CHECKING:
    import pandas

Floats = NDArray[np.float64]
Places = NDArray[np.int64]

BALANCED = "balanced_accuracy"
LIKELIHOOD = "likelihood"
PAIRED = ("exact_match", "accuracy", "cider", "ir1", "tr1", BALANCED, LIKELIHOOD)
"""Scores that are made of those of items."""
_IMPOSSIBLE = -1e6  # log-probability of a text that has none: e to it is 0, as e to −∞
_OVER_PICTURES = "tr1"  # the items are pictures: each stands once, whatever is asked about it
_FEW = 8  # trials whose answers are read one by one; of more, the whole table is

Run = tuple[str, str]
"""A sweep's name and a trial's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Items:
    """What models scored on the same questions about the same pictures; scores in fractions."""

    runs: tuple[Run, ...]
    """Which model each row of `values` is."""
    values: Floats
    """[run item]: an item's own score, 1 or 0 where it is right or wrong."""
    weight: Floats | None = None
    """[run item]: how much each counts in a mean; None: alike."""
    picture: Places
    """[item]: number of its picture, from 0."""
    stratum: Places
    """[item]: number of its stratum, from 0."""
    share: Floats | None = None
    """[stratum]: how much each counts; None: alike, and all together 1."""
    is_log: NDArray[np.bool_] | None = None
    """[stratum]: whether e to its mean is meant; None: of none."""

    @property
    def pictures(self) -> int:
        """How many pictures there are."""
        return int(self.picture.max()) + 1

    @property
    def strata(self) -> int:
        """How many strata there are."""
        return int(self.stratum.max()) + 1

    @property
    def scores(self) -> Floats:
        """[run]: the scores."""
        return np.asarray(self._levels(self._means()) @ self._shares())

    @property
    def said(self) -> Floats:
        """[run picture]: what each picture says of each score; its mean is the score."""
        means, weights = self._means(), self._weights()
        slope = self._shares() * self._slopes(means) / self._totals(weights)  # [run stratum]
        off = (self.values - means[:, self.stratum] * weights) * slope[:, self.stratum]
        influence = np.stack([np.bincount(self.picture, row, self.pictures) for row in off])
        return np.asarray(self.pictures * influence + self.scores[:, None])

    def resampled(self, resamples: int, seed: int) -> Floats:
        """Scores on pictures drawn anew with replacement, [resample run]; the same for each run.

        A true answer that no drawn picture has is left out of the mean over answers.
        """
        share, pictures = self._shares(), self.pictures
        sums, weights = self._by_picture(self.values), self._by_picture(self._weights())
        draw = np.random.default_rng(seed)
        found = []
        for start in range(0, resamples, _BLOCK):
            size = min(_BLOCK, resamples - start)
            times = draw.multinomial(pictures, np.full(pictures, 1 / pictures), size=size)
            drawn = np.einsum("bp,rsp->brs", times, weights, optimize=True)
            totals = np.einsum("bp,rsp->brs", times, sums, optimize=True)
            means = totals / np.where(drawn > 0, drawn, 1)
            levels = np.where(drawn > 0, self._levels(means), 0)
            found.append(levels @ share / ((drawn > 0) @ share / share.sum()))
        return np.concatenate(found)

    def of(self, runs: Sequence[Run]) -> "Items":
        """Returns the items of some of the runs, in their order."""
        rows = [self.runs.index(run) for run in runs]
        weight = None if self.weight is None else self.weight[rows]
        return replace(self, runs=tuple(runs), values=self.values[rows], weight=weight)

    def _shares(self) -> Floats:
        """[stratum]: how much each counts."""
        return np.full(self.strata, 1 / self.strata) if self.share is None else self.share

    def _means(self) -> Floats:
        """[run stratum]: mean of each stratum."""
        return self._totals(self.values) / self._totals(self._weights())

    def _weights(self) -> Floats:
        """[run item], or [1 item] where all runs' are alike."""
        return np.ones((1, self.values.shape[1])) if self.weight is None else self.weight

    def _totals(self, values: Floats) -> Floats:
        """[run stratum]: sums over each stratum of values, [run item]."""
        return np.stack([np.bincount(self.stratum, row, self.strata) for row in values])

    def _by_picture(self, values: Floats) -> Floats:
        """[run stratum picture]: sums over each picture's items in each stratum."""
        shape = (self.strata, self.pictures)
        cell = self.stratum * self.pictures + self.picture
        return np.stack([np.bincount(cell, row, math.prod(shape)).reshape(shape) for row in values])

    def _levels(self, means: Floats) -> Floats:
        """[… stratum]: what means stand for."""
        return means if self.is_log is None else np.where(self.is_log, np.exp(means), means)

    def _slopes(self, means: Floats) -> Floats:
        """[run stratum]: how fast what a mean stands for rises with it."""
        rises = np.ones_like(means)
        return rises if self.is_log is None else np.where(self.is_log, np.exp(means), rises)


_BLOCK = 500  # resamples that are held at once


def read_items(
    trials: Mapping[SweepStore, "pandas.DataFrame"], *, state: str | None = None
) -> Items:
    """Reads what trials answered, on the questions that all of them were asked.

    Args:
        trials: of each sweep, rows of its table `trials` with trial, state, reused_trial, metric
            and score_repaired.
        state: pruned or repaired; None takes each trial's last.

    Raises:
        SpecError: the trials have other objectives, one that is no mean over items, or no question
            in common; or sweeps asked different questions under the same ids.
        NotFoundError: there are no answers of a trial.
    """
    parts = _parts(trials)
    pieces = []
    for task, own in groupby(parts, key=lambda part: part.task):
        answers = _of_task(task, trials, state)
        pieces += [_of_part(part, answers) for part in own]
    is_log = [part.metric == LIKELIHOOD for part in parts]
    strata = [int(piece.stratum.max()) + 1 for piece in pieces]
    shares = [np.full(n, part.share / n) for n, part in zip(strata, parts, strict=True)]
    before = np.cumsum([0, *strata[:-1]])
    return Items(
        runs=tuple(
            (sweep.name, trial) for sweep, rows in trials.items() for trial in rows["trial"]
        ),
        values=np.concatenate([piece.values for piece in pieces], axis=1),
        picture=_numbered(parts, pieces),
        stratum=np.concatenate([one.stratum + at for one, at in zip(pieces, before, strict=True)]),
        weight=np.concatenate([one.weight for one in pieces], axis=1) if any(is_log) else None,
        share=np.concatenate(shares) if len(parts) > 1 else None,
        is_log=np.repeat(is_log, strata) if any(is_log) else None,
    )


@dataclass(frozen=True, slots=True)
class _Part:
    """One of the scores that an objective is a mean over."""

    task: str
    metric: str
    share: float


@dataclass(frozen=True, slots=True)
class _Piece:
    """The items of a part."""

    values: Floats
    """[run item]"""
    weight: Floats
    """[run item]"""
    image: NDArray[np.object_]
    """[item]: id of its picture."""
    stratum: Places
    """[item]"""


def _numbered(parts: Sequence[_Part], pieces: Sequence[_Piece]) -> Places:
    """Numbers the pictures of all items, in the order of their ids.

    Of one id in two tasks are two pictures: their data sets may number them alike.
    """
    import pandas as pd

    tasks = list(dict.fromkeys(part.task for part in parts))
    of_task = [
        np.full(len(piece.image), tasks.index(part.task))
        for part, piece in zip(parts, pieces, strict=True)
    ]
    images = np.concatenate([piece.image for piece in pieces])
    keys = pd.MultiIndex.from_arrays([np.concatenate(of_task), images])
    return np.asarray(keys.factorize(sort=True)[0], np.int64)


def _parts(trials: Mapping[SweepStore, "pandas.DataFrame"]) -> list[_Part]:
    """Takes the objective of some trials apart: a task, or all tasks of a mean over them."""
    metrics: list[str] = sorted(
        {metric for rows in trials.values() for metric in rows["metric"].dropna()}
    )
    if len(metrics) != 1:
        raise SpecError(
            f"trials are paired by one objective; these have {', '.join(metrics) or 'none'}."
        )
    task, _, name = metrics[0].rpartition(".")
    if task == ALL_TASKS:
        found = {frozenset(one): one for one in (_of_all(sweep, name) for sweep in trials)}
        if len(found) > 1:
            raise SpecError(f"these sweeps took {metrics[0]} over other tasks or dense scores.")
        return next(iter(found.values()))
    if name == "exact_match" and any(_has_accuracy(sweep, task) for sweep in trials):
        raise SpecError(
            f"{metrics[0]} cannot be paired: each answer is kept with its accuracy, of which exact "
            f"matches are no part. Choose {task}.accuracy as the objective."
        )
    if name not in PAIRED:
        raise SpecError(
            f"{metrics[0]} is no mean over items, and cannot be paired by them. Objectives that "
            f"can: {', '.join(PAIRED)}, and means over tasks."
        )
    return [_Part(task, name, 1.0)]


def _has_accuracy(sweep: SweepStore, task: str) -> bool:
    """Whether what answers to a task are worth is their accuracy, people's agreement."""
    which = {"task": task, "metric": "accuracy"}
    return bool(len(sweep.read("scores", columns=["metric"], where=which)))


def _of_all(sweep: SweepStore, name: str) -> list[_Part]:
    """The tasks of a sweep's mean over them, as `evaluate.aggregates` takes it."""
    spec = sweep.spec()
    tasks = list(dict.fromkeys(ref.task for ref in spec.evaluate))
    parts = []
    for task in tasks:
        main = task_facts(spec.data[task].task if task in spec.data else task).main
        for metric in main:
            share = 1.0 if name == "macro" else 1 / _dense(sweep, task, metric)
            share /= len(tasks) * len(main)
            parts.append(_Part(task, metric, share))
    return parts


def _dense(sweep: SweepStore, task: str, metric: str) -> float:
    """What the dense model scored, by which `mean_relative` divides."""
    which = {"task": task, "metric": metric, "state": "dense", "image": "real"}
    found: list[float] = sweep.read("scores", columns=["value"], where=which)["value"].to_pylist()
    if not found:
        raise NotFoundError(f"{sweep.name} has no dense score of {task}.{metric}.")
    return found[0]


def _of_task(
    task: str, trials: Mapping[SweepStore, "pandas.DataFrame"], state: str | None
) -> "list[pandas.DataFrame]":
    """Reads what each trial answered to a task's questions."""
    import pandas as pd

    columns = []
    for sweep, rows in trials.items():
        answers = _answers(sweep, rows, task, state)
        for row in rows.to_dict("records"):
            own = row["reused_trial"] if row["state"] == "reused" else row["trial"]
            wanted = state or ("pruned" if pd.isna(row["score_repaired"]) else "repaired")
            found = answers.get((own, wanted))
            if found is None:
                run = f"{sweep.name}/{row['trial']}"
                raise NotFoundError(f"{run} has no {wanted} answers of {task}.")
            columns.append(found)
    return columns


def _of_part(part: _Part, columns: "Sequence[pandas.DataFrame]") -> _Piece:
    """Takes the items of a score from what trials answered."""
    import pandas as pd

    own_value = "image_value" if part.metric == _OVER_PICTURES else "value"
    values = pd.concat([one[own_value] for one in columns], axis=1, join="inner").dropna()
    if part.metric == _OVER_PICTURES:
        if columns[0]["image_value"].isna().all() and columns[0]["value"].notna().any():
            raise _unrecorded(part, "which pictures have a caption of theirs first")
        values = values[~columns[0].loc[values.index, "image_id"].duplicated()]
    if values.empty:
        raise SpecError(
            f"the trials have no question of {part.task} in common: nothing can be paired."
        )
    about = columns[0].loc[values.index]
    _check_alike(part.task, about, [one.loc[values.index] for one in columns[1:]])
    stratum = np.zeros(len(about), np.int64)
    if part.metric == BALANCED:
        if about["true_answer"].isna().any():
            raise _unrecorded(part, "each question's true answer")
        stratum, _ = pd.factorize(about["true_answer"], sort=True)
    weights = np.ones(values.shape).T
    if part.metric == LIKELIHOOD:
        values = values.clip(lower=_IMPOSSIBLE)
        weights = np.stack([one.loc[values.index, "weight"].to_numpy(float) for one in columns])
        if np.isnan(weights).any():
            raise _unrecorded(part, "each text's number of tokens")
    return _Piece(
        values=np.ascontiguousarray(values.to_numpy(np.float64).T),
        weight=weights,
        image=about["image_id"].to_numpy(object),
        stratum=stratum.astype(np.int64),
    )


def _unrecorded(part: _Part, what: str) -> SpecError:
    return SpecError(
        f"{part.task}.{part.metric} needs {what}, which an earlier ressa did not record with the "
        "answers. Run the sweep again under another name."
    )


def _check_alike(
    task: str, about: "pandas.DataFrame", others: "Sequence[pandas.DataFrame]"
) -> None:
    """Refuses answers to different questions: of two data sets that go by one name and ids."""
    true = about["true_answer"]
    for other in others:
        differs = true.notna() & other["true_answer"].notna() & (true != other["true_answer"])
        if differs.any():
            first = differs.idxmax()
            raise SpecError(
                f"these trials were asked different questions under the name {task}: of {first} "
                f"the true answer is {true[first]!r} in one and {other.loc[first, 'true_answer']!r}"
                " in another. Trials are paired by question: compare sweeps of the same data."
            )


def check_judged(sweep: SweepStore) -> None:
    """Refuses a sweep of whose objective no verdict can speak.

    Raises:
        SpecError: nothing can be paired by it, or a margin in points says nothing of it.
    """
    (part, *_) = parts = _parts({sweep: sweep.trials(["metric"])})
    if len(parts) == 1 and part.metric == LIKELIHOOD:
        raise SpecError(
            f"{part.task}.{LIKELIHOOD}: of a likelihood a verdict's margin in points says nothing."
        )


def _answers(
    sweep: SweepStore, rows: "pandas.DataFrame", task: str, state: str | None
) -> "dict[tuple[str, str], pandas.DataFrame]":
    """Each trial's answers to real pictures, by trial and state (None: any); one row a question."""
    import pandas as pd

    columns = ["trial", "state", "example_id", "image_id", "true_answer"]
    columns += ["value", "weight", "image_value"]
    names = list(
        dict.fromkeys(rows["reused_trial"].where(rows["state"] == "reused", rows["trial"]))
    )
    wanted: list[dict[str, Any]] = [{"trial": name} for name in names]
    asked = {"task": task, "image": "real"} | ({} if state is None else {"state": state})
    tables = [
        sweep.read(
            "answers",
            columns=columns,
            where=asked | which,
            in_order=False,
        ).to_pandas()
        for which in (wanted if len(names) <= _FEW else [{}])
    ]
    found = pd.concat(tables).set_index("example_id")
    return dict(iter(found.groupby(["trial", "state"])))
