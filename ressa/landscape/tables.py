"""What a sweep found, one row a trial, with what each score is to be compared with."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ressa.errors import UnknownNameError
from ressa.landscape.allocations import (
    has_several,
    is_best,
    of_search,
    options_of,
)
from ressa.store import SUCCESSFUL, SweepStore, is_null, matching

if TYPE_CHECKING:
    import pandas

COLUMNS = {
    "trial": "name of the trial",
    "vision": "what was asked of the vision tower: '0.5', '2:4', '98304/196608'; null where both "
    "towers were asked for one sparsity together",
    "language": "what was asked of the language tower",
    "sparsity": "zeros counted over all prunable weights",
    "whole": "zeros counted over all parameters of the model",
    "pruned": "objective after pruning, before repair",
    "repaired": "objective after repair",
    "standard_error": "of the last of the two, clustered by image",
    "blank_pruned": "objective on blank images before repair",
    "blank_repaired": "objective on blank images after repair",
    "recovery": "(repaired − pruned) / (dense − pruned); null where pruning lost less than two "
    "standard errors",
    "recovery_repaired": "the same against the dense model repaired with the same recipe",
    "state": "how the trial ended",
    "seconds": "wall time of the trial",
    "role": "baseline, search, or confirm: of a sweep that confirms another",
    "budget": "sparsity asked over all prunable weights, if any",
    "vision_sparsity": "zeros counted over the vision tower's prunable weights",
    "language_sparsity": "zeros counted over the language tower's prunable weights",
    "score": "value of the objective: repaired, or pruned where there is no repair",
    "best": "whether it is a run of the best allocation, of its budget where there are budgets, by "
    "the mean score over runs; with several objectives, of one on their Pareto front",
    "options": "what else the search chose, as field=value",
    "number": "number of the proposal; null for a baseline",
    "kept": "prunable weights of both towers that stay",
    "whole_kept": "parameters of the whole model that are not zero",
    "vision_packed_bytes": "bytes of the vision tower's prunable weights stored packed: those that "
    "stay and a bit for each place; of N:M the places in each group, ⌈log2 M⌉ bits a value",
    "language_packed_bytes": "the same of the language tower",
    "vision_macs": "multiply-accumulates with the vision tower's prunable weights that stay, in "
    "one forward pass over the first evaluation question, its picture and its answer",
    "language_macs": "the same of the language tower",
    "dense": "objective of the dense model",
    "dense_repaired": "objective of the dense model after the same repair",
    "pruned_standard_error": "of pruned, clustered by image",
    "repaired_standard_error": "of repaired, clustered by image",
    "blank_dense": "objective of the dense model on blank images",
    "majority": "objective of the majority answer per question",
    "calibration_seconds": "wall time of calibration",
    "prune_seconds": "wall time of pruning",
    "teacher_seconds": "wall time of asking the dense model for its logits",
    "repair_seconds": "wall time of repair",
    "evaluate_seconds": "wall time of evaluation",
    "cpu_seconds": "processor time of all workers",
    "stopped_step": "the repair step at which early stopping ended it",
    "error": "why it failed, in a sentence",
}
"""Columns of `results_table`, in order: scores and sparsities are fractions. `--where` may ask for
each, and `--sort` and `--columns` name them."""

_AS_STORED = (
    *("number", "vision_packed_bytes", "language_packed_bytes", "vision_macs", "language_macs"),
    *(f"{stage}_seconds" for stage in ("calibration", "prune", "teacher", "repair", "evaluate")),
    *("cpu_seconds", "stopped_step", "error"),
)

_READ = [
    *("trial", "role", "state", "model", "metric", "items", "budget", "point", "total_seconds"),
    *(
        "score",
        "objectives",
        "score_pruned",
        "score_repaired",
        "score_pruned_se",
        "score_repaired_se",
    ),
    *("blank_pruned", "blank_repaired", "floor_majority", "floor_dense_blank"),
    *("sparsity", "whole_sparsity", "whole_parameters", "whole_zeros"),
    *(
        f"{tower}_{column}"
        for tower in ("vision", "language")
        for column in ("target", "sparsity", "zeros", "prunable", "method", "group")
    ),
    *_AS_STORED,
]
"""The columns of the table `trials` that `results_table` is made from."""

LINE_COLUMNS = (
    "budget",
    *(
        f"{tower}_{what}"
        for tower in ("vision", "language")
        for what in ("zeros_requested", "prunable")
    ),
)
"""The columns of the table `trials` that `asked_lines` is made from."""

State = Literal["pruned", "repaired"]
STATES: Mapping[State, str] = {"pruned": "before repair", "repaired": "after repair"}
"""In which states a trial may have a score: columns of a `results_table`, and words."""
_ROUNDED = 2  # weights by which what the two towers are to lose may miss what was meant of both


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What a results table is about, for headers: the frame's `attrs["about"]`."""

    sweep: str
    model: str | None
    metric: str | None
    items: int | None
    methods: str | None
    dense: float | None
    dense_standard_error: float
    dense_repaired: float | None
    floor_majority: float | None
    floor_dense_blank: float | None
    vision_prunable: int | None
    language_prunable: int | None
    whole_parameters: int | None
    several_objectives: bool
    """Whether the best are a Pareto front."""

    @property
    def yardsticks(self) -> dict[str, float]:
        """What scores are to be compared with, as far as it is known."""
        scores = {
            "dense": self.dense,
            "dense-repaired": self.dense_repaired,
            "majority answer": self.floor_majority,
            "dense, blank image": self.floor_dense_blank,
        }
        return {name: score for name, score in scores.items() if score is not None}


def results_table(sweep: SweepStore) -> "pandas.DataFrame":
    """Returns one row per trial with a finished attempt: baselines, then by number.

    Columns are `COLUMNS`; `attrs["about"]` is an `About`.
    """
    import pandas as pd

    trials = sweep.trials(_READ)
    about = _about(sweep, trials)
    frame = pd.DataFrame(
        {
            "trial": trials["trial"],
            "vision": trials["vision_target"],
            "language": trials["language_target"],
            "sparsity": trials["sparsity"],
            "whole": trials["whole_sparsity"],
            "pruned": trials["score_pruned"],
            "repaired": trials["score_repaired"],
            "standard_error": trials["score_repaired_se"].where(
                trials["score_repaired"].notna(), trials["score_pruned_se"]
            ),
            "blank_pruned": trials["blank_pruned"],
            "blank_repaired": trials["blank_repaired"],
            "recovery": recovery(trials, about.dense, about.dense_standard_error),
            "recovery_repaired": recovery(trials, about.dense_repaired, about.dense_standard_error),
            "state": trials["state"],
            "seconds": trials["total_seconds"],
            "role": trials["role"],
            "budget": trials["budget"],
            "vision_sparsity": _realised(trials, "vision"),
            "language_sparsity": _realised(trials, "language"),
            "score": trials["score"],
            "options": options_of(trials["point"]),
            "number": trials["number"],
            "kept": _kept(trials, "vision") + _kept(trials, "language"),
            "whole_kept": trials["whole_parameters"] - trials["whole_zeros"],
            "dense": about.dense,
            "dense_repaired": about.dense_repaired,
            "pruned_standard_error": trials["score_pruned_se"],
            "repaired_standard_error": trials["score_repaired_se"],
            "blank_dense": about.floor_dense_blank,
            "majority": about.floor_majority,
            **{column: trials[column] for column in _AS_STORED[1:]},
        }
    )
    frame = frame.assign(best=is_best(frame, trials["objectives"]))[list(COLUMNS)]
    frame.attrs["about"] = about
    return frame


def asked_lines(trials: "pandas.DataFrame") -> "pandas.Series[float]":
    """Returns each trial's line: sparsity asked over all prunable weights, to four decimals.

    It is the budget, or else what the towers' targets amount to; what lies a rounding of each
    tower apart is one line. What came out would not do: with `counting: reference` it is less, and
    in each allocation by another amount.

    Args:
        trials: rows of the table, with `LINE_COLUMNS`.
    """

    def both(what: str) -> "pandas.Series[float]":
        return trials[f"vision_{what}"].astype(float) + trials[f"language_{what}"].astype(float)

    zeros = both("zeros_requested").sort_values()
    is_next = ~(zeros.diff() <= _ROUNDED)
    first = zeros.where(is_next).ffill().reindex(trials.index)
    return trials["budget"].astype(float).fillna(first / both("prunable")).round(4)


def chosen(
    frame: "pandas.DataFrame",
    *,
    where: str | None = None,
    sort: Sequence[str] = (),
    columns: Sequence[str] = (),
) -> "pandas.DataFrame":
    """Returns some rows and columns of a frame, in an order.

    Args:
        frame: such as a `results_table`.
        where: an SQL expression that the rows meet: see `store.matching`.
        sort: columns to sort by, the first one first; one after `-` falls. Nulls come last.
        columns: those wanted, in order; none given: all.

    Raises:
        SpecError: there is no such column, or the expression cannot be read.
    """
    names = [column.removeprefix("-") for column in sort]
    for column in (*names, *columns):
        if column not in frame.columns:
            raise UnknownNameError("column", column, list(frame.columns))
    found = frame if where is None else frame.iloc[matching(frame, where)]
    if names:
        rising = [not column.startswith("-") for column in sort]
        found = found.sort_values(names, ascending=rising, kind="stable", na_position="last")
    return found[list(columns)] if columns else found


def states_of(frame: "pandas.DataFrame") -> list[State]:
    """Returns the states in which trials of a search were scored."""
    searched = of_search(frame, scored="score")
    return [*STATES] if searched["repaired"].notna().any() else ["pruned"]


def recovery(trials: "pandas.DataFrame", dense: float | None, dense_standard_error: float) -> Any:
    """Returns the share of what pruning lost that repair brought back: 1 is all of it.

    NaN of baselines, of what lost less than two standard errors of the loss, and without repair.

    Args:
        trials: rows of the table `trials`.
        dense: score to recover to.
        dense_standard_error: of it.
    """
    import numpy as np

    if dense is None:
        return math.nan
    lost = dense - trials["score_pruned"]
    # As if the two were independent: they answer the same questions, so this is cautious.
    standard_error = np.hypot(dense_standard_error, trials["score_pruned_se"].fillna(0.0))
    told = (trials["role"] != "baseline") & (lost > 2 * standard_error)
    return (trials["score_repaired"] - trials["score_pruned"]).where(told) / lost.where(told)


def _kept(trials: "pandas.DataFrame", tower: str) -> "pandas.Series":
    return trials[f"{tower}_prunable"] - trials[f"{tower}_zeros"]


def _realised(trials: "pandas.DataFrame", tower: str) -> "pandas.Series":
    counted = trials[f"{tower}_zeros"].astype("Float64") / trials[f"{tower}_prunable"]
    return counted.astype("float64").where(counted.notna(), trials[f"{tower}_sparsity"])


def _about(sweep: SweepStore, trials: "pandas.DataFrame") -> About:
    def first(column: str) -> Any:
        known = trials[column].dropna()
        return known.iloc[0] if len(known) else None

    def whole(column: str) -> int | None:
        value = first(column)
        return None if value is None else int(value)

    def score_of(trial: str) -> "pandas.DataFrame":
        return trials[(trials["trial"] == trial) & trials["state"].isin(SUCCESSFUL)]

    dense = score_of("dense")
    if len(dense):
        value, standard_error = dense["score"].iloc[0], dense["score_pruned_se"].iloc[0]
    else:
        value, standard_error = _dense_from_scores(sweep, trials, first("metric"))
    repaired = score_of("dense-repaired")
    return About(
        sweep=sweep.name,
        model=first("model"),
        metric=first("metric"),
        items=whole("items"),
        methods=_methods(trials),
        dense=_number(value),
        dense_standard_error=_number(standard_error) or 0.0,
        dense_repaired=_number(repaired["score"].iloc[0]) if len(repaired) else None,
        floor_majority=_number(first("floor_majority")),
        floor_dense_blank=_number(first("floor_dense_blank")),
        vision_prunable=whole("vision_prunable"),
        language_prunable=whole("language_prunable"),
        whole_parameters=whole("whole_parameters"),
        several_objectives=has_several(trials["objectives"]),
    )


def _dense_from_scores(
    sweep: SweepStore, trials: "pandas.DataFrame", metric: str | None
) -> tuple[Any, Any]:
    """The dense model's score without the baseline trial: every trial scores it as a yardstick."""
    if metric is None:
        return None, None
    task, _, name = metric.rpartition(".")
    which = {"task": task, "metric": name, "state": "dense", "image": "real"}
    # Of one trial that has a score this is quickly found; any other has the same.
    scored = trials.loc[trials["score_pruned"].notna(), "trial"]
    for narrower in (*({"trial": trial} for trial in scored[:1]), {}):
        found = sweep.read("scores", columns=["value", "standard_error"], where=which | narrower)
        for row in found.slice(0, 1).to_pylist():
            return row["value"], row["standard_error"]
    return None, None


def _methods(trials: "pandas.DataFrame") -> str | None:
    """How the search pruned, in a few words: 'wanda per row', or 'wanda | magnitude …'."""
    searched = of_search(trials)
    pairs = {
        tower: sorted(
            _method_words(method, group)
            for method, group in searched[[f"{tower}_method", f"{tower}_group"]]
            .drop_duplicates()
            .itertuples(index=False)
            if isinstance(method, str)
        )
        for tower in ("vision", "language")
    }
    if not any(pairs.values()):
        return None
    if pairs["vision"] == pairs["language"]:
        return " or ".join(pairs["vision"])
    return f"vision {' or '.join(pairs['vision'])}, language {' or '.join(pairs['language'])}"


def _method_words(method: str, group: Any) -> str:
    if not isinstance(group, str):
        return method
    return f"{method} over both towers" if group == "all" else f"{method} per {group}"


def _number(value: Any) -> float | None:
    return None if is_null(value) else float(value)
