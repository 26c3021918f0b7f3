"""What a sweep found, one row a trial, with what each score is to be compared with."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ressa.errors import SpecError, UnknownNameError
from ressa.landscape.allocations import (
    RACING,
    bests,
    has_several,
    is_best,
    is_pattern,
    of_search,
    options_of,
)
from ressa.store import ENDED_WELL, SUCCESSFUL, SweepStore, is_null, matching

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
_NAMED = 8  # running trials that a status names


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


PATTERN = "pattern"
"""What `parted` calls the difference between N:M patterns and unstructured sparsity."""
_RUN = re.compile(r"^(replicate|.*seed)=")
"""Options that tell runs of one allocation apart."""


def parted(frame: "pandas.DataFrame", by: str | None) -> "dict[str, pandas.DataFrame]":
    """Returns the trials of a search by what they chose for a field, values rising.

    Args:
        frame: a `results_table`.
        by: the field, such as repair.steps; or "pattern": N:M, or unstructured. None: all together.

    Raises:
        SpecError: no trial chose such a thing.
    """
    if by is None:
        return {"": frame}
    searched = of_search(frame)
    if by == PATTERN:
        values = is_pattern(searched).map({True: "N:M", False: "unstructured"})
    else:
        values = searched["options"].map(lambda text: _chosen_for(by, text))
    if values.isna().all():
        known = ", ".join((*chosen_fields(searched), PATTERN))
        raise SpecError(f"--by {by}: no trial chose such a thing. Fields: {known}.")
    return {value: searched[values == value] for value in sorted(set(values.dropna()), key=_rising)}


def runs_and_rest(options: str) -> tuple[str, str]:
    """Splits a trial's `options` into what tells runs of one allocation apart, and the rest."""
    words = options.split()
    is_run = [bool(_RUN.match(word)) for word in words]
    run, rest = ([w for w, is_it in zip(words, is_run, strict=True) if is_it == v] for v in (1, 0))
    return " ".join(run), " ".join(rest)


def chosen_fields(frame: "pandas.DataFrame") -> list[str]:
    """Returns the fields that trials chose, beside sparsities and seeds."""
    rest = {word for text in frame["options"] for word in runs_and_rest(text)[1].split()}
    return sorted({word.partition("=")[0] for word in rest})


def mixed(frame: "pandas.DataFrame") -> str | None:
    """Says in what trials of a map differ beside sparsities and seeds; None if in nothing."""
    searched = of_search(frame)
    found = {}
    for field in chosen_fields(searched):
        values = {_chosen_for(field, text) for text in searched["options"]} - {None}
        if len(values) > 1:
            found[field] = sorted(map(str, values), key=_rising)
    return "; ".join(f"{field}: {', '.join(values)}" for field, values in found.items()) or None


def _chosen_for(field: str, options: str) -> str | None:
    return next((w.partition("=")[2] for w in options.split() if w.startswith(f"{field}=")), None)


def _rising(text: str) -> tuple[float, str]:
    try:
        return float(text), text
    except ValueError:
        return math.inf, text


def failures(sweep: SweepStore, *more: str) -> "pandas.DataFrame":
    """Returns the trials that did not succeed: where they ended, why, and after how many tries.

    One that is tried again right now is none of them.

    Args:
        sweep: whose trials.
        more: further columns of the table `trials`.
    """
    columns = ["trial", "attempt", "state", "failure_stage", "failure_class", "error", *more]
    trials = sweep.trials(columns)
    failed = trials[~trials["state"].isin(ENDED_WELL)]
    if len(failed):
        failed = failed[~failed["trial"].isin(sweep.status().running)]
    return failed[columns].reset_index(drop=True)


SWEEP_COLUMNS = {
    "sweep": "name of the sweep",
    "state": "new, running, finished, interrupted, stopped, cancelled, hopeless (too many trials "
    "failed), or unknown (its driver is on another machine, or stands still)",
    "ended_by": "why it is finished before all planned trials ran",
    "done": "trials that ran to an end, whichever",
    "planned": "trials that are to run, baselines included",
    "failed": "trials that failed or were lost",
    "running": "trials that run; of many the first",
    "waiting": "of those, which have no place yet, what they need and what nodes have",
    "driver": "process and machine that drive it",
    "metric": "the objective; of several, the first",
    "best": "mean score of the best allocation over its runs, a fraction; null where there are "
    "several lines, or several objectives",
    "best_trial": "its first run",
    "best_runs": "how many runs it has",
    "lines": "budgets that have a best, which `ressa best` shows; null without budgets",
    "front": "allocations on the Pareto front (`ressa best --pareto`); null with one objective",
    "reused": "points that came to a trial that had run",
    "updated": "when its last row was written",
}
"""Columns of `sweep_row`, in order."""


def sweep_row(sweep: SweepStore) -> dict[str, Any]:
    """Returns how far a sweep is, as a row with columns `SWEEP_COLUMNS`.

    What there is none of is None.
    """
    state, found = sweep.status(), bests(sweep.trials(RACING))
    driver = state.holder if state.state in ("running", "unknown") else None
    return {
        "sweep": state.name,
        "state": state.state,
        "ended_by": state.why,
        "done": state.done,
        "planned": state.planned,
        "failed": state.counts.get("failed", 0) + state.counts.get("lost", 0),
        "running": _some(state.running, ", "),
        "waiting": _some([_waits(*one) for one in state.waiting.items()], "; "),
        "driver": f"process {driver.pid} on {driver.host}" if driver else None,
        "metric": state.metric,
        "best": found.only.score if found.only else None,
        "best_trial": found.only.trial if found.only else None,
        "best_runs": found.only.runs if found.only else None,
        "lines": found.lines,
        "front": found.front,
        "reused": state.counts.get("reused"),
        "updated": state.updated,
    }


def _some(words: Sequence[str], between: str) -> str | None:
    """Joins words, of many the first; None if there are none."""
    more = [f"and {len(words) - _NAMED:,} more"] if len(words) > _NAMED else []
    return between.join([*words[:_NAMED], *more]) or None


def _waits(trial: str, why: dict[str, Any]) -> str:
    """Says why a trial has no place yet: what it needs, and what nodes had when that was noted."""
    nodes = ", ".join(map(str, why.get("nodes") or ["there is no node"]))
    return f"{trial} needs {why.get('needs', '?')}; {nodes}"


def repair_order(frame: "pandas.DataFrame") -> str | None:
    """Says how alike repair leaves the order of the trials; None where that means nothing."""
    correlation, count = rank_correlation(frame)
    return None if math.isnan(correlation) else f"τ = {correlation:.2f} over {count} trials"


def best_words(row: dict[str, Any]) -> str | None:
    """Says what a `sweep_row` knows of the best; None where nothing has a score."""
    if row["front"] is not None:
        return f"front of {row['front']}"
    if (row["lines"] or 1) > 1:
        return f"{row['lines']} lines"
    return None if row["best"] is None else f"{100 * row['best']:.1f} % ({row['best_trial']})"


def short_row(row: dict[str, Any]) -> dict[str, Any]:
    """Shortens a `sweep_row` for a terminal of 80 columns."""
    planned = "" if row["planned"] is None else f"/{row['planned']}"
    return {
        "sweep": row["sweep"],
        "state": row["state"],
        "trials": f"{row['done']}{planned}",
        "failed": row["failed"],
        "best": best_words(row),
        "updated": row["updated"],
    }


def colour_range(frame: "pandas.DataFrame") -> tuple[float, float]:
    """Returns the scores at which a map's colours begin and end, for all its panels.

    Below the lowest floor a model does worse than one that cannot see: colours are not spent there.
    """
    about: About = frame.attrs["about"]
    scores = frame[["pruned", "repaired"]].stack().dropna()
    tops = [score for score in (scores.max(), about.dense) if score is not None and score == score]
    floors = [f for f in (about.floor_majority, about.floor_dense_blank) if f is not None]
    high = max(tops, default=1.0)
    low = max([scores.min(), *([min(floors)] if floors else [])]) if len(scores) else 0.0
    return (low, high) if low < high else (high - 0.01, high)


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


def rank_correlation(frame: "pandas.DataFrame") -> tuple[float, int]:
    """Returns how alike repair leaves the order of a search's trials, and of how many.

    Kendall's τ of the scores before and after repair: 1 if repair changes no order, -1 if it turns
    it round; NaN of fewer than three trials, or where one of the scores is the same in all.

    Args:
        frame: a `results_table`.
    """
    import pandas as pd

    searched = of_search(frame)
    searched = searched[searched["state"] == "succeeded"]
    # A trial that was reused would count twice.
    pairs = searched[["pruned", "repaired"]].dropna().apply(pd.to_numeric)
    if len(pairs) < 3:
        return math.nan, len(pairs)
    return kendall(pairs["pruned"].tolist(), pairs["repaired"].tolist()), len(pairs)


def kendall(one: Sequence[float], other: Sequence[float]) -> float:
    """Returns Kendall's τ-b of two rankings of the same things; NaN if one ties all of them.

    Of all pairs, (those in the same order − those swapped) / √(untied in one · untied in other).
    """
    from bisect import bisect_right, insort

    count = len(one)
    swapped, seen = 0, list[float]()
    for _, value in sorted(zip(one, other, strict=True)):  # ties of one rise in the other
        swapped += len(seen) - bisect_right(seen, value)
        insort(seen, value)

    def tied(values: Iterable[object]) -> int:
        return sum(times * (times - 1) // 2 for times in Counter(values).values())

    pairs, both = count * (count - 1) // 2, tied(zip(one, other, strict=True))
    ties = tied(one), tied(other)
    untied = (pairs - ties[0]) * (pairs - ties[1])
    return (pairs - sum(ties) + both - 2 * swapped) / math.sqrt(untied) if untied else math.nan


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
