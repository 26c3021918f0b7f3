"""The best allocations of a sweep: of each line, on the Pareto front, or as good within noise."""

import math
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from ressa.errors import SpecError
from ressa.landscape.allocations import allocations, is_best, of_search, without_run
from ressa.landscape.lines import Edge
from ressa.landscape.tables import results_table
from ressa.spec import SweepSpec
from ressa.store import SweepStore

if TYPE_CHECKING:
    import pandas

    from ressa.landscape.items import Floats

COLUMNS = (
    *("budget", "trial", "vision", "language", "sparsity", "score", "standard_error"),
    *("runs", "spread", "below_best", "options", "vision_sparsity", "language_sparsity"),
)


def best_table(
    sweep: SweepStore, *, budget: float | None = None, pareto: bool = False, within: str = ""
) -> "pandas.DataFrame":
    """Returns the best allocations, one row each, by their mean score over their runs.

    Columns are `COLUMNS`: `trial` is the first run, `spread` the standard deviation over runs,
    `standard_error` that of the mean: its pictures' and, of several runs, theirs; `below_best` how
    far it lies below the best of its line.

    Args:
        sweep: whose trials.
        budget: of one line alone.
        pareto: all that no other allocation beats in sparsity and score; with several objectives,
            in those.
        within: "1se" keeps all that lie within one standard error of the best of their line; of a
            line without one, the best alone.

    Raises:
        SpecError: there is no such budget, or `within` is not of that form.
    """
    table = results_table(sweep)
    several_objectives = table.attrs["about"].several_objectives
    searched = of_search(table)
    found = over_runs(searched[searched["state"] == "succeeded"]).assign(below_best=0.0)[
        [*COLUMNS, "best"]
    ]
    if budget is not None:
        lines = sorted(found["budget"].dropna().unique())
        if not any(abs(line - budget) < 1e-9 for line in lines):
            known = ", ".join(f"{line:g}" for line in lines) or "no line"
            raise SpecError(f"--budget {budget:g}: {sweep.name} has {known}.")
        found = found[(found["budget"] - budget).abs() < 1e-9]
    line = found["budget"].astype(float).fillna(-1.0)
    top = found.groupby(line)["score"].transform("max")
    found = found.assign(below_best=top - found["score"])
    if pareto:
        front = found[found["best"]] if several_objectives else _front(found)
        return front.sort_values("sparsity").reset_index(drop=True)
    if within:
        error = found["standard_error"].where(found["below_best"] == 0).groupby(line)
        reach = _errors(within) * error.transform("first").astype(float)
        # Where no error is known, nothing but the best itself is known to be as good.
        found = found[found["below_best"] <= reach.fillna(0.0)]
    else:
        found = found[(found["below_best"] == 0) & ~found.duplicated(["budget", "score"])]
    return found.sort_values(["budget", "score"], ascending=[True, False]).reset_index(drop=True)


def edge_of(row: Mapping[str, Any], spec: SweepSpec) -> Edge | None:
    """Says whether an allocation lies at the edge of what its line was searched for.

    Args:
        row: of a `best_table`; one without a line is at the edge only of what is no question: of
            all sizes the least pruned one scores best.
        spec: the sweep's.
    """
    if math.isnan(row["budget"]):
        return None
    axes = {axis.name: axis for axis in spec.dimensions}
    for tower, low, high in _ENDS:
        axis, asked = axes.get(f"{tower}_sparsity"), row[tower]
        if axis is None or not isinstance(asked, str) or ":" in asked:
            continue
        numbers = [Fraction(axis.low), Fraction(axis.high)]
        if axis.choices is not None:
            numbers = [Fraction(text) for text in axis.choices if ":" not in text]
        share = Fraction(asked)
        if 0 < share <= min(numbers):
            return low
        if max(numbers) <= share < 1:
            return high
    return None


_ENDS: tuple[tuple[str, Edge, Edge], ...] = (
    ("vision", "vision_low", "vision_high"),
    ("language", "language_low", "language_high"),
)


def over_runs(frame: "pandas.DataFrame") -> "pandas.DataFrame":
    """Returns a `results_table` with the runs of each allocation as one row.

    It is the first run's, with the means of their scores and `options` without the run's number.
    Standard errors are those of the means: the pictures' and, of several runs, theirs. Two columns
    more: `runs`, and `spread`, the standard deviation of their scores. Baselines stay as they are.
    """
    import numpy as np
    import pandas as pd

    options = without_run(frame["options"])
    is_run = (options != frame["options"]) & (frame["role"] != "baseline")
    single = frame[~is_run].assign(runs=1, spread=np.nan)
    if not is_run.any():
        return single
    groups = (
        frame[is_run]
        .assign(options=options)
        .groupby(["budget", "vision", "language", "options"], dropna=False, sort=False)
    )
    found = groups.first().reset_index()
    for score in ("score", "pruned", "repaired"):
        error = "standard_error" if score == "score" else f"{score}_standard_error"
        told = groups[[score, error]].agg(list)
        runs = [np.array(values, float) for values in told[score]]
        errors = [np.array(values, float) for values in told[error]]
        found[score] = [values.mean() for values in runs]
        found[error] = [
            math.sqrt((of_pictures**2).mean() + _variance(values) / len(values))
            for values, of_pictures in zip(runs, errors, strict=True)
        ]
    spread = groups["score"].std().to_numpy()
    best = groups["best"].any().to_numpy()
    found = found.assign(runs=groups.size().to_numpy(), spread=spread, best=best)
    return pd.concat([single, found[single.columns]], ignore_index=True)


def best_trials(frame: "pandas.DataFrame", state: str, *, several_objectives: bool) -> set[str]:
    """Returns the trials to star on a map: of each line, the best in a state.

    Before repair another one may be best than after it. A front of several objectives is that of
    the whole search, in every state.

    Args:
        frame: trials of a search, as `over_runs` returns them.
        state: pruned or repaired.
        several_objectives: as the table's `About` says.
    """
    if several_objectives:
        return set(frame.loc[frame["best"].astype(bool), "trial"])
    own = frame.assign(score=frame[state].where(frame["state"] == "succeeded"))
    return set(frame.loc[is_best(own), "trial"])


def ranked(frame: "pandas.DataFrame") -> list[str]:
    """Returns the trials of a search with a score: a run of each best allocation, then the others.

    Both by their score, the highest first.

    Args:
        frame: a `results_table`.
    """
    scored = of_search(frame, scored="score")
    leads = scored["best"].astype(bool) & ~allocations(scored).duplicated()
    order = scored.assign(leads=leads).sort_values(
        ["leads", "score"], ascending=False, kind="stable"
    )
    return list(order["trial"])


def _variance(values: "Floats") -> float:
    return float(values.var(ddof=1)) if len(values) > 1 else 0.0


def _front(found: "pandas.DataFrame") -> "pandas.DataFrame":
    """Those that no other allocation beats in sparsity and score."""
    ranked = found.sort_values(["sparsity", "score"], ascending=[False, False], kind="stable")
    highest = ranked["score"].cummax()
    before = highest.shift(1).fillna(float("-inf"))
    return ranked[ranked["score"] > before]


def _errors(within: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)se", within.strip())
    if found is None:
        raise SpecError(f"--within: a number of standard errors, such as 1se; got {within!r}.")
    return float(found[1])
