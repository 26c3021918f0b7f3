"""The items behind scores: what several models scored on the same questions, laid side by side.

A score is a sum over strata s of share_s · (mean of an item's own score in s). An average has one
stratum; balanced accuracy has one for each true answer, all of equal share. The influence of a
picture g on a score, ψ_g = Σ_{i in g} share_s (x_i − mean_s) / n_s, is what its standard error is
made of: see `evaluate.metrics`. G·ψ_g + score is here called what the picture says: its mean over
all G pictures is the score.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ressa.errors import NotFoundError, SpecError
from ressa.store import SweepStore

if TYPE_CHECKING:
    import pandas

Floats = NDArray[np.float64]
Places = NDArray[np.int64]

AVERAGES = ("exact_match", "accuracy", "cider")
BALANCED = "balanced_accuracy"
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

    @property
    def pictures(self) -> int:
        """How many pictures there are."""
        return int(self.picture.max()) + 1

    @property
    def scores(self) -> Floats:
        """[run]: the scores."""
        return np.asarray(self._means().mean(axis=1))

    @property
    def said(self) -> Floats:
        """[run picture]: what each picture says of each score; its mean is the score."""
        strata = int(self.stratum.max()) + 1
        counts = np.bincount(self.stratum, minlength=strata)
        off = (self.values - self._means()[:, self.stratum]) / (strata * counts[self.stratum])
        influence = np.stack([np.bincount(self.picture, row, self.pictures) for row in off])
        return np.asarray(self.pictures * influence + self.scores[:, None])

    def resampled(self, resamples: int, seed: int) -> Floats:
        """Scores on pictures drawn anew with replacement, [resample run]; the same for each run.

        A true answer that no drawn picture has is left out of the mean over answers.
        """
        strata, pictures = int(self.stratum.max()) + 1, self.pictures
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
            present = (drawn > 0).sum(axis=1)[:, None]
            found.append(means.sum(axis=1) / present)
        return np.concatenate(found)

    def of(self, runs: Sequence[Run]) -> "Items":
        """Returns the items of some of the runs, in their order."""
        rows = [self.runs.index(run) for run in runs]
        return replace(self, runs=tuple(runs), values=self.values[rows])

    def _means(self) -> Floats:
        """[run stratum]: mean of each stratum."""
        strata = int(self.stratum.max()) + 1
        counts = np.bincount(self.stratum, minlength=strata)
        sums = [np.bincount(self.stratum, row, strata) for row in self.values]
        return np.asarray(np.stack(sums) / counts)


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
            in common.
        NotFoundError: there are no answers of a trial.
    """
    import pandas as pd

    metric = _metric(trials)
    task, _, name = metric.rpartition(".")
    runs: list[Run] = []
    columns = []
    for sweep, rows in trials.items():
        answers = _answers(sweep, rows, task, state)
        for row in rows.to_dict("records"):
            own = row["reused_trial"] if row["state"] == "reused" else row["trial"]
            wanted = state or ("pruned" if pd.isna(row["score_repaired"]) else "repaired")
            found = answers.get((own, wanted))
            if found is None:
                name = f"{sweep.name}/{row['trial']}"
                raise NotFoundError(f"{name} has no {wanted} answers of {task}.")
            runs.append((sweep.name, row["trial"]))
            columns.append(found)
    values = pd.concat([one["value"] for one in columns], axis=1, join="inner").dropna()
    if values.empty:
        raise SpecError(f"the trials have no question of {task} in common: nothing can be paired.")
    about = columns[0].loc[values.index]
    picture, _ = pd.factorize(about["image_id"], sort=True)
    stratum = np.zeros(len(about), np.int64)
    if name == BALANCED:
        if about["true_answer"].isna().any():
            raise SpecError(
                f"{metric} needs each question's true answer, which an earlier ressa did not "
                "record with the answers. Run the sweep again under another name."
            )
        stratum, _ = pd.factorize(about["true_answer"], sort=True)
    return Items(
        runs=tuple(runs),
        values=np.ascontiguousarray(values.to_numpy(np.float64).T),
        picture=picture.astype(np.int64),
        stratum=stratum.astype(np.int64),
    )


def _metric(trials: Mapping[SweepStore, "pandas.DataFrame"]) -> str:
    metrics: list[str] = sorted(
        {metric for rows in trials.values() for metric in rows["metric"].dropna()}
    )
    if len(metrics) != 1:
        raise SpecError(
            f"trials are paired by one objective; these have {', '.join(metrics) or 'none'}."
        )
    name = metrics[0].rpartition(".")[2]
    if name not in (*AVERAGES, BALANCED):
        raise SpecError(
            f"{metrics[0]} is no mean over items, and cannot be paired by them. Objectives that "
            f"can: {', '.join((*AVERAGES, BALANCED))}."
        )
    return metrics[0]


def _answers(
    sweep: SweepStore, rows: "pandas.DataFrame", task: str, state: str | None
) -> "dict[tuple[str, str], pandas.DataFrame]":
    """Each trial's answers to real pictures, by trial and state (None: any); one row a question."""
    import pandas as pd

    columns = ["trial", "state", "example_id", "image_id", "true_answer", "value"]
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
