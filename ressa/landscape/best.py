"""The best allocations of a sweep: of each line, on the Pareto front, or as good within noise."""

import re
from typing import TYPE_CHECKING

from ressa.errors import SpecError
from ressa.landscape.tables import results_table
from ressa.store import SweepStore

if TYPE_CHECKING:
    import pandas

COLUMNS = (
    *("budget", "trial", "vision", "language", "sparsity", "score", "standard_error"),
    *("runs", "spread", "below_best", "options"),
)
RUN = re.compile(r" ?replicate=\d+")


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
        within: "1se" keeps all that lie within one standard error of the best of their line.

    Raises:
        SpecError: there is no such budget, or `within` is not of that form.
    """
    frame = results_table(sweep)
    frame = frame[(frame["role"] != "baseline") & (frame["state"] == "succeeded")]
    found = _over_runs(frame)
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
        return _front(found).reset_index(drop=True)
    if within:
        error = found["standard_error"].where(found["below_best"] == 0).groupby(line)
        reach = _errors(within) * error.transform("first").astype(float)
        found = found[found["below_best"] <= reach]
    else:
        found = found[(found["below_best"] == 0) & ~found.duplicated(["budget", "score"])]
    return found.sort_values(["budget", "score"], ascending=[True, False]).reset_index(drop=True)


def _over_runs(frame: "pandas.DataFrame") -> "pandas.DataFrame":
    """One row for each allocation: what its runs have in common, and their mean score."""
    import numpy as np

    options = frame["options"].str.replace(RUN, "", regex=True)
    has_runs = bool((options != frame["options"]).any())
    frame = frame.assign(options=options, runs=1, spread=np.nan, below_best=0.0)
    if not has_runs:
        return frame[[*COLUMNS, "best"]]
    key = ["budget", "vision", "language", "options"]
    groups = frame.groupby(key, dropna=False, sort=False)
    found = groups.first().reset_index()
    score = groups["score"].agg(["mean", "std", "count"]).reset_index()
    pictures = (frame["standard_error"].astype(float) ** 2).groupby(
        [frame[column] for column in key], dropna=False, sort=False
    )
    square = pictures.mean().to_numpy() + (score["std"] ** 2 / score["count"]).fillna(0.0)
    return found.assign(
        score=score["mean"],
        runs=score["count"],
        spread=score["std"],
        standard_error=np.sqrt(square),
        best=groups["best"].any().to_numpy(),
    )[[*COLUMNS, "best"]]


def _front(found: "pandas.DataFrame") -> "pandas.DataFrame":
    if found["best"].sum() > 1:  # objectives that the sweep itself declared
        return found[found["best"]].sort_values("sparsity")
    ranked = found.sort_values(["sparsity", "score"], ascending=[False, False], kind="stable")
    highest = ranked["score"].cummax()
    before = highest.shift(1).fillna(float("-inf"))
    return ranked[ranked["score"] > before].sort_values("sparsity")


def _errors(within: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)se", within.strip())
    if found is None:
        raise SpecError(f"--within: a number of standard errors, such as 1se; got {within!r}.")
    return float(found[1])
