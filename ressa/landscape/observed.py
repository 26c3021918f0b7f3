"""Which trials a map is made from: all of one or several sweeps that differ in nothing else."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ressa.errors import NotFoundError, SpecError
from ressa.landscape.allocations import is_pattern, of_search
from ressa.landscape.items import Floats, read_items
from ressa.landscape.surrogate import Observed
from ressa.landscape.together import check_alike
from ressa.store import SweepStore

if TYPE_CHECKING:
    import pandas

_READ = [
    *(
        "trial",
        "attempt",
        "key",
        "role",
        "state",
        "reused_trial",
        "model",
        "metric",
        "point",
        "budget",
    ),
    "sparsity",
    *("score_pruned", "score_repaired"),
    *(f"{tower}_{what}" for tower in ("vision", "language") for what in ("zeros", "prunable")),
    *("vision_target", "language_target"),
    *(f"{tower}_{what}" for tower in ("vision", "language") for what in ("packed_bytes", "macs")),
]


def mapped_trials(
    sweeps: Sequence[SweepStore], *, state: str | None = None
) -> "dict[SweepStore, pandas.DataFrame]":
    """Returns the trials of each sweep that a map is made from: rows of their tables `trials`.

    Those that came to a score, each only once; patterns N:M are left out, which score otherwise
    than their sparsity says. `state`, `vision` and `language` are columns: which score counts, and
    the sparsities that were counted.

    Args:
        sweeps: of one model, evaluation and recipe.
        state: pruned or repaired; None takes repaired where there is a repair.

    Raises:
        SpecError: the trials differ in more than sparsities and seeds.
        NotFoundError: no trial has such a score.
    """
    found = {sweep: _scored(sweep.trials(_READ)) for sweep in sweeps}
    check_alike(found)
    if state is None:
        has_repair = any(rows["score_repaired"].notna().any() for rows in found.values())
        state = "repaired" if has_repair else "pruned"
    seen: set[str] = set()
    for sweep, rows in found.items():
        rows = rows[rows[f"score_{state}"].notna() & ~rows["key"].isin(seen)]
        seen.update(rows["key"].dropna())
        found[sweep] = rows.assign(
            wanted=state,
            vision=rows["vision_zeros"].astype(float) / rows["vision_prunable"].astype(float),
            language=rows["language_zeros"].astype(float) / rows["language_prunable"].astype(float),
            score=rows[f"score_{state}"].astype(float),
        )
    found = {sweep: rows for sweep, rows in found.items() if len(rows)}
    if not found:
        names = ", ".join(sweep.name for sweep in sweeps)
        raise NotFoundError(
            f"no trial of {names} has a {state} score yet: there is nothing to map."
        )
    return found


def observed(trials: "Mapping[SweepStore, pandas.DataFrame]") -> Observed:
    """Reads what some trials scored, on the questions that all of them were asked.

    Args:
        trials: as `mapped_trials` gives them.

    Raises:
        SpecError: there are several sweeps, and their trials cannot be paired by items.
        NotFoundError: there are several sweeps, and no answers of a trial.
    """
    vision, language, score = (
        np.concatenate([rows[column].to_numpy(float) for rows in trials.values()])
        for column in ("vision", "language", "score")
    )
    influence: Floats | None = None
    try:
        items = read_items(trials, state=next(iter(trials.values()))["wanted"].iloc[0])
    except (SpecError, NotFoundError):  # the objective is no mean over items, or they are gone
        if len(trials) > 1:
            raise
    else:
        score = items.scores
        influence = (items.said - score[:, None]) / items.pictures
    return Observed(vision=vision, language=language, score=score, influence=influence)


def _scored(trials: "pandas.DataFrame") -> "pandas.DataFrame":
    runs = of_search(trials)
    counted = runs["vision_zeros"].notna() & runs["language_zeros"].notna()
    runs = runs[counted & (runs["state"] == "succeeded")]
    return runs[~is_pattern(runs, ("vision_target", "language_target"))]
