"""From a trial's outcome or failure to the rows of the store's tables."""

import json
import math
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ressa
from ressa.records import Failure, Outcome, Progress
from ressa.sparsity import TOWERS
from ressa.spec import Objective
from ressa.store import PACKAGES, SUCCESSFUL, TABLES, is_null
from ressa.sweep.plan import SweepPlan

if TYPE_CHECKING:
    from ressa.sweep.ledger import Attempt

Rows = dict[str, list[dict[str, Any]]]


def succeeded(attempt: "Attempt", outcome: Outcome, plan: SweepPlan, *, started: datetime) -> Rows:
    """Makes every row of an attempt that came to its end."""
    return {
        "scores": outcome.scores,
        "curves": outcome.curves,
        "layers": outcome.layers,
        "answers": outcome.answers,
        "trials": [
            _requested(attempt, plan)
            | outcome.summary
            | _objective(outcome, plan)
            | _circumstances(attempt, started)
            | {"state": "succeeded"}
        ],
    }


def stopped(
    attempt: "Attempt", so_far: Outcome, plan: SweepPlan, rung: Progress, *, started: datetime
) -> Rows:
    """Makes the rows of an attempt that early stopping ended, with what it had by then."""
    assert rung.rung is not None
    name = plan.spec.objectives[0].maximize
    found = _objective(so_far, plan) | {"score": None, "objectives": {name: rung.rung[name]}}
    row = _requested(attempt, plan) | so_far.summary | found | _circumstances(attempt, started)
    return {
        "scores": so_far.scores,
        "curves": so_far.curves,
        "answers": so_far.answers,
        "trials": [row | {"state": "stopped", "stopped_step": rung.step}],
    }


def unsuccessful(
    attempt: "Attempt", failure: Failure, plan: SweepPlan, *, started: datetime, state: str
) -> Rows:
    """Makes the one row of an attempt that failed or was lost."""
    row = _requested(attempt, plan) | _circumstances(attempt, started)
    told: dict[str, Any] = {
        "failure_class": failure.kind,
        "failure_stage": failure.stage,
        "error": failure.message,
        "traceback": failure.traceback,
    }
    if failure.micro_batch is not None:
        told["micro_batch"] = failure.micro_batch
    return {"trials": [row | told | {"state": state}]}


def unscored(outcome: Outcome, plan: SweepPlan) -> Failure | None:
    """Says which objective of an outcome is no number, if one is not."""
    for objective in plan.spec.objectives:
        value = _value(objective, outcome, plan)
        if value is None or not math.isfinite(value):
            came = "there is none" if value is None else f"it is {value}"
            message = (
                f"{objective.maximize} is no number ({came}), and the search cannot do without. A "
                "mean over tasks needs dense scores above 0; NaN comes of logits that overflow: "
                "model.dtype bfloat16 or float32."
            )
            return Failure(kind="numeric", stage="score", message=message)
    return None


def cancelled(attempt: "Attempt", plan: SweepPlan, *, started: datetime) -> Rows:
    """Makes the one row of an attempt that a user ended."""
    row = _requested(attempt, plan) | _circumstances(attempt, started)
    return {"trials": [row | {"state": "cancelled", "error": "ended by `ressa cancel`"}]}


def _requested(attempt: "Attempt", plan: SweepPlan) -> dict[str, Any]:
    """What the trial was asked for, known before it starts."""
    spec = attempt.spec
    row: dict[str, Any] = {
        "role": attempt.role,
        "number": attempt.number,
        "key": spec.key,
        "model": plan.spec.model.id,
        "budget": _budget(attempt, plan),
        "point": json.dumps(dict(attempt.point)),
        "workers": spec.workers,
        "micro_batch": None if spec.repair is None else spec.repair.micro_batch,
    }
    for tower in TOWERS:
        wanted = spec.tower(tower)
        known = None if wanted.is_shared else wanted.target
        row |= {
            f"{tower}_target": None if known is None else str(known),
            f"{tower}_sparsity": None if known is None else float(known.sparsity),
            f"{tower}_zeros_requested": plan.zeros(spec, tower),
            f"{tower}_prunable": plan.inventory.prunable(tower),
            f"{tower}_method": wanted.method,
            f"{tower}_group": wanted.group,
            f"{tower}_counting": wanted.counting,
            f"{tower}_layers": wanted.layerwise,
        }
    return row


def _budget(attempt: "Attempt", plan: SweepPlan) -> float | None:
    if attempt.spec.vision.is_shared:
        return float(attempt.spec.vision.target.sparsity)
    budget = plan.budget_of(attempt.point) if attempt.number is not None else None
    return None if budget is None else float(budget)


def _objective(outcome: Outcome, plan: SweepPlan) -> dict[str, Any]:
    """Picks the objective's values out of the scores."""
    task, split, metric = plan.objective
    found = {
        (row["state"], row["image"]): row
        for row in outcome.scores
        if (row["task"], row["split"], row["metric"]) == (task, split, metric)
    }

    def value(state: str, image: str = "real", column: str = "value") -> Any:
        return found.get((state, image), {}).get(column)

    pruned, repaired = value("pruned"), value("repaired")
    return {
        "metric": f"{task}.{metric}",
        "items": value("pruned", column="items"),
        "score": pruned if repaired is None else repaired,
        "objectives": {o.maximize: _value(o, outcome, plan) for o in plan.spec.objectives},
        "score_pruned": pruned,
        "score_repaired": repaired,
        "score_unmerged": value("repaired_unmerged"),
        "score_pruned_se": value("pruned", column="standard_error"),
        "score_repaired_se": value("repaired", column="standard_error"),
        "blank_pruned": value("pruned", "blank"),
        "blank_repaired": value("repaired", "blank"),
        "floor_majority": value("majority"),
        "floor_dense_blank": value("dense", "blank"),
    }


def _value(objective: Objective, outcome: Outcome, plan: SweepPlan) -> float | None:
    """The value of one objective: counted, or the score of the last state of the model."""
    if not objective.task:
        found = outcome.summary | {
            f"{tower}_sparsity": outcome.summary[f"{tower}_zeros"] / plan.inventory.prunable(tower)
            for tower in TOWERS
        }
        return float(found[objective.maximize])
    wanted = plan.measured(objective)
    states = {
        row["state"]: row["value"]
        for row in outcome.scores
        if (row["task"], row["split"], row["metric"]) == wanted and row["image"] == "real"
    }
    return states.get("repaired", states.get("pruned"))


def reused(
    attempt: "Attempt", original: Mapping[str, Any], plan: SweepPlan, *, trial: str
) -> dict[str, Any]:
    """Makes the row of a trial that came to the same as another one: its result, at no cost."""
    now = datetime.now(UTC)
    known = {column.name for column in TABLES["trials"].own_columns}  # not what a later ressa has
    result = {
        name: value
        for name, value in original.items()
        if name in known and not name.endswith("_seconds") and not is_null(value)
    }
    row = result | _requested(attempt, plan) | {"started": now, "finished": now}
    row |= {"state": "reused", "reused_trial": trial, "total_seconds": 0.0}
    if original["state"] not in SUCCESSFUL:
        row["state"] = original["state"]
        row["error"] = f"the same trial as {trial}: {row.get('error', row['state'])}"
    return row


def objectives(row: Mapping[str, Any], plan: SweepPlan) -> tuple[float, ...] | None:
    """Reads the objectives of a trial that came to a result off its row, just made or stored.

    None if one is no number.
    """
    values = row["objectives"]
    values = json.loads(values) if isinstance(values, str) else values
    found = [values.get(objective.maximize) for objective in plan.spec.objectives]
    if any(value is None or not math.isfinite(value) for value in found):
        return None
    return tuple(map(float, found))


def _circumstances(attempt: "Attempt", started: datetime) -> dict[str, Any]:
    return {
        "started": started,
        "finished": datetime.now(UTC),
        "ressa_commit": _commit(),
        **_versions(),
    }


@cache
def _versions() -> dict[str, str]:
    return {
        f"{name}_version": platform.python_version() if name == "python" else version(name)
        for name in PACKAGES
    }


@cache
def _commit() -> str | None:
    """The commit of the checkout that this ressa is run from, with -dirty if files differ."""
    package = Path(ressa.__file__).parent
    if not (package.parent / ".git").exists():  # installed, perhaps inside another's checkout
        return None
    describe = ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=40"]
    try:
        found = subprocess.run(
            describe, cwd=package, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None
