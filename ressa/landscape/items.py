"""The items behind scores: what several models scored on the same questions, laid side by side.

A score is a sum over strata s of share_s · (mean of an item's own score in s). An average has one
stratum; balanced accuracy has one for each true answer, all of equal share; a mean over tasks has
those of each task, whose shares add up to the task's: of retrieval one whose items are captions,
and one whose items are pictures. The influence of a picture g on a score,
ψ_g = Σ_{i in g} share_s (x_i − mean_s) / n_s, is what its standard error is made of: see
`evaluate.metrics`. G·ψ_g + score is here called what the picture says: its mean over all G pictures
is the score.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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

AVERAGES = ("exact_match", "accuracy", "cider", "ir1", "tr1")
BALANCED = "balanced_accuracy"
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
    picture: Places
    """[item]: number of its picture, from 0."""
    stratum: Places
    """[item]: number of its stratum, from 0."""
    share: Floats | None = None
    """[stratum]: how much each counts; None: alike, and all together 1."""

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
        return np.asarray(self._means() @ self._shares())

    @property
    def said(self) -> Floats:
        """[run picture]: what each picture says of each score; its mean is the score."""
        weight = self._shares() / np.bincount(self.stratum)
        off = (self.values - self._means()[:, self.stratum]) * weight[self.stratum]
        influence = np.stack([np.bincount(self.picture, row, self.pictures) for row in off])
        return np.asarray(self.pictures * influence + self.scores[:, None])

    def resampled(self, resamples: int, seed: int) -> Floats:
        """Scores on pictures drawn anew with replacement, [resample run]; the same for each run.

        A true answer that no drawn picture has is left out of the mean over answers.
        """
        share, strata, pictures = self._shares(), self.strata, self.pictures
        cell = self.stratum * pictures + self.picture
        counts = np.bincount(cell, minlength=strata * pictures).reshape(strata, pictures)
        sums = np.stack(
            [
                np.bincount(cell, row, strata * pictures).reshape(strata, pictures)
                for row in self.values
            ]
        )
        draw = np.random.default_rng(seed)
        found = []
        for start in range(0, resamples, _BLOCK):
            size = min(_BLOCK, resamples - start)
            times = draw.multinomial(pictures, np.full(pictures, 1 / pictures), size=size)
            drawn = times @ counts.T  # [resample stratum]
            totals = np.einsum("bp,rsp->bsr", times, sums, optimize=True)
            means = totals / np.where(drawn > 0, drawn, 1)[:, :, None]
            present = (drawn > 0) @ share / share.sum()
            found.append(np.einsum("bsr,s->br", means, share) / present[:, None])
        return np.concatenate(found)

    def of(self, runs: Sequence[Run]) -> "Items":
        """Returns the items of some of the runs, in their order."""
        rows = [self.runs.index(run) for run in runs]
        return replace(self, runs=tuple(runs), values=self.values[rows])

    def _shares(self) -> Floats:
        """[stratum]: how much each counts."""
        return np.full(self.strata, 1 / self.strata) if self.share is None else self.share

    def _means(self) -> Floats:
        """[run stratum]: mean of each stratum."""
        sums = [np.bincount(self.stratum, row) for row in self.values]
        return np.asarray(np.stack(sums) / np.bincount(self.stratum))


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
    pieces = [_of_part(part, trials, state) for part in parts]
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
        share=np.concatenate(shares) if len(parts) > 1 else None,
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
    return [_part(task, name, 1.0, metrics[0])]


def _has_accuracy(sweep: SweepStore, task: str) -> bool:
    """Whether what answers to a task are worth is their accuracy, people's agreement."""
    which = {"task": task, "metric": "accuracy"}
    return bool(len(sweep.read("scores", columns=["metric"], where=which)))


def _part(task: str, name: str, share: float, objective: str) -> _Part:
    if name not in (*AVERAGES, BALANCED):
        which = f"{task}.{name}"
        part = "" if which == objective else f"{objective} takes in {which}, which"
        raise SpecError(
            f"{part or objective} is no mean over items, and cannot be paired by them. Objectives "
            f"that can: {', '.join((*AVERAGES, BALANCED))}, and means over tasks of these."
        )
    return _Part(task, name, share)


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
            parts.append(_part(task, metric, share, f"{ALL_TASKS}.{name}"))
    return parts


def _dense(sweep: SweepStore, task: str, metric: str) -> float:
    """What the dense model scored, by which `mean_relative` divides."""
    which = {"task": task, "metric": metric, "state": "dense", "image": "real"}
    found: list[float] = sweep.read("scores", columns=["value"], where=which)["value"].to_pylist()
    if not found:
        raise NotFoundError(f"{sweep.name} has no dense score of {task}.{metric}.")
    return found[0]


def _of_part(
    part: _Part, trials: Mapping[SweepStore, "pandas.DataFrame"], state: str | None
) -> _Piece:
    """Reads what trials answered to one task's questions."""
    import pandas as pd

    own_value = "image_value" if part.metric == _OVER_PICTURES else "value"
    columns = []
    for sweep, rows in trials.items():
        answers = _answers(sweep, rows, part.task, state)
        for row in rows.to_dict("records"):
            own = row["reused_trial"] if row["state"] == "reused" else row["trial"]
            wanted = state or ("pruned" if pd.isna(row["score_repaired"]) else "repaired")
            found = answers.get((own, wanted))
            if found is None:
                run = f"{sweep.name}/{row['trial']}"
                raise NotFoundError(f"{run} has no {wanted} answers of {part.task}.")
            columns.append(found)
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
    return _Piece(
        values=np.ascontiguousarray(values.to_numpy(np.float64).T),
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


def check_paired(sweep: SweepStore) -> None:
    """Refuses a sweep whose objective is no mean over items.

    Raises:
        SpecError: nothing can be paired by it.
    """
    _parts({sweep: sweep.trials(["metric"])})


def _answers(
    sweep: SweepStore, rows: "pandas.DataFrame", task: str, state: str | None
) -> "dict[tuple[str, str], pandas.DataFrame]":
    """Each trial's answers to real pictures, by trial and state (None: any); one row a question."""
    import pandas as pd

    columns = ["trial", "state", "example_id", "image_id", "true_answer", "value", "image_value"]
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
