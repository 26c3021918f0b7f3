"""How far a sweep is: its state, its best and its failures, without the table of all trials."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ressa.landscape.allocations import RACING, bests
from ressa.landscape.render import percent
from ressa.store import ENDED_WELL, SweepStore

if TYPE_CHECKING:
    import pandas

_NAMED = 8  # running trials that a status names


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


def best_words(row: dict[str, Any]) -> str | None:
    """Says what a `sweep_row` knows of the best; None where nothing has a score."""
    if row["front"] is not None:
        return f"front of {row['front']}"
    if (row["lines"] or 1) > 1:
        return f"{row['lines']} lines"
    return None if row["best"] is None else f"{percent(row['best'])} % ({row['best_trial']})"


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
