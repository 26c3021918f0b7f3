"""From a stored trial to a folder that ships: its model is made again, compared, and written."""

import json
import math
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ressa.errors import (
    ConflictError,
    NotFoundError,
    SpecError,
    VerificationError,
    did_you_mean,
)
from ressa.export import check_target
from ressa.records import TrialSpec, as_json
from ressa.sparsity import TOWERS
from ressa.store import SUCCESSFUL, SweepStore, is_null
from ressa.sweep.driver import specs_of
from ressa.sweep.plan import SweepPlan, make_plan

if TYPE_CHECKING:
    from ressa.export import Proof, Unmerged
    from ressa.trial import Remade

Row = Mapping[str, Any]

_PACKAGES = ("ressa", "torch", "transformers", "safetensors")
_GAP_FACTOR = 10  # by which sums in another order may change a difference that is rounding


def export(
    sweep: SweepStore,
    trial: str,
    target: Path,
    *,
    form: Literal["merged", "adapters"] = "merged",
    told: Callable[[str], None],
) -> dict[str, Any]:
    """Writes a trial's model as a folder with its certificate, which it returns.

    Its masks and what its repair trained are read from the store. What `stages gc` has removed is
    made again as the trial did: bit for bit on a processor of its type, with as many workers.

    Args:
        sweep: the trial's.
        trial: its name.
        target: must not exist, or be empty.
        form: the merged model for transformers, or masks and adapters beside the dense model.
        told: is told what is being done.

    Raises:
        NotFoundError: no such trial, or it has not ended. SpecError: it has no model.
        ConflictError: the target is not empty; or the model's files or data have changed since.
        StoreError: there is no room.
        VerificationError: the model is not the one that the trial's row describes.
    """
    check_target(target)
    row = _row_of(sweep, trial)
    plan, spec = _spec_of(sweep, row)

    from ressa import workers  # they need torch
    from ressa.export import Unmerged, merged, write

    resources = plan.spec.resources
    workers.use_device(resources.gpus_per_worker, deterministic=resources.deterministic)
    workers.set_threads(spec.cpus_per_worker)
    remade = _remade(spec, row, sweep, told)
    pruning = remade.pruning
    unmerged = Unmerged(
        vlm=remade.vlm,
        model=plan.spec.model,
        masks=pruning.masks,
        layers=tuple(report for tower in TOWERS for report in pruning.reports[tower]),
        changed=frozenset(pruning.changed),
        adapters=remade.adapters,
        repair=spec.repair,
    )
    told("merging")
    proof = merged(unmerged, remade.probe, form)
    _compare(row, unmerged, proof)
    checked = _checked(row, remade, proof)
    told(f"writing and verifying {target}")
    about = _about(sweep, row, spec) | {"checked": checked}
    return write(target, unmerged, proof, about, form=form)


def _row_of(sweep: SweepStore, trial: str) -> Row:
    """Finds the row of a trial that has a model; of one that was reused, the trial that ran."""
    rows = {row["trial"]: row for row in sweep.trials().to_dict("records")}
    if trial not in rows:
        proposed = set(sweep.proposals()["trial"])
        if trial in proposed:
            raise NotFoundError(f"trial {trial} of {sweep.name} has not ended: there is no model.")
        raise NotFoundError(
            f"no trial {trial!r} in sweep {sweep.name}.{did_you_mean(trial, rows)} "
            f"`ressa results {sweep.name} --store {sweep.store.location}` lists them."
        )
    row = rows[trial]
    if row["state"] not in SUCCESSFUL:
        raise SpecError(
            f"trial {trial} of {sweep.name} has no model to export: {_ending(row)}. Export one "
            f"that succeeded: `ressa results {sweep.name}`."
        )
    ran: Row = row if is_null(row["reused_trial"]) else rows[row["reused_trial"]]
    return ran


def _ending(row: Row) -> str:
    if row["state"] == "stopped":
        return f"early stopping ended it at step {row['stopped_step']}"
    where = "" if is_null(row["failure_stage"]) else f" at {row['failure_stage']}"
    why = "" if is_null(row["error"]) else f": {str(row['error']).rstrip('.')}"
    return f"it {row['state']}{where}{why}"


def _spec_of(sweep: SweepStore, row: Row) -> tuple[SweepPlan, TrialSpec]:
    """Works out what a trial was, from the stored spec; its key says whether that is still so."""
    specs = specs_of(sweep)
    plan = make_plan(specs[-1])
    for spec in reversed(specs):  # workers may have grown since, and count as much as the rest
        then = SweepPlan(spec, plan.inventory, plan.fingerprint)
        for found in _attempts(sweep, then, row):
            if found.key == row["key"]:
                return then, found
    raise ConflictError(
        f"trial {row['trial']} of {sweep.name} cannot be made again: the files of the model "
        f"{plan.spec.model.id}, its data or this ressa are no longer those that it ran with. Put "
        "them back, or run the sweep again under another name."
    )


def _attempts(sweep: SweepStore, plan: SweepPlan, row: Row) -> Iterator[TrialSpec]:
    """Yields what a trial may have run as: with the spec's micro-batch, or a smaller one."""
    proposals = sweep.proposals()
    own = proposals[proposals["trial"] == row["trial"]].to_dict("records")
    for proposal in own:
        if row["role"] == "baseline":
            spec = plan.baseline(row["trial"])
        else:
            spec = plan.trial(json.loads(proposal["point"]))
        size = proposal["micro_batch"]
        if not is_null(size) and spec.repair is not None:
            smaller = spec.repair.model_copy(update={"micro_batch": int(size)})
            spec = replace(spec, repair=smaller)
        yield spec


def _remade(spec: TrialSpec, row: Row, sweep: SweepStore, told: Callable[[str], None]) -> "Remade":
    from ressa.trial import remake

    learnt = row["adapters_hash"]
    steps = remake(spec, sweep.store.location, None if is_null(learnt) else learnt)
    told("reading the dense model, its masks and what repair trained")
    while True:
        try:
            progress = next(steps)
        except StopIteration as end:
            made: Remade = end.value
            return made
        at = f" {progress.step}/{progress.steps}" if progress.step else ""
        told(f"the store holds it no longer, so it is made again: {progress.stage}{at}")


def _compare(row: Row, unmerged: "Unmerged", proof: "Proof") -> None:
    """Makes sure that this is the model that the trial's row describes."""
    from ressa.prune import mask_hash

    found = mask_hash(unmerged.masks)
    if found != row["mask_hash"]:
        raise VerificationError(
            f"the masks are not those of trial {row['trial']} ({found[:12]}…, its row says "
            f"{str(row['mask_hash'])[:12]}…): they were made again on another processor, or a "
            "stage of the store is of another trial."
        )
    for tower in TOWERS:
        pruned = sum(one["pruned"] for one in proof.matrices if one["tower"] == tower)
        if pruned != row[f"{tower}_zeros"]:
            raise VerificationError(
                f"{tower}: {pruned:,} weights are pruned, the row of trial {row['trial']} says "
                f"{row[f'{tower}_zeros']:,}."
            )
    known, gap = row["merge_gap"], proof.merge_gap
    if gap is not None and not is_null(known) and gap > _GAP_FACTOR * max(known, 1e-6):
        raise VerificationError(
            f"merging changes logits by up to {gap:.2g}, in trial {row['trial']} by {known:.2g}."
        )


def _checked(row: Row, remade: "Remade", proof: "Proof") -> dict[str, Any]:
    """Says how sure it is that repair came to the same as in the trial; it scores where it must."""
    if proof.learnt_hash is None:
        how = "its masks are the trial's, bit for bit; nothing was repaired."
        return {"how": how}
    found, known = proof.learnt_hash, row["adapters_hash"]
    whence = (
        "its repair was run again" if remade.repeats else "what its repair trained was read again"
    )
    if found == known:
        how = f"{whence}: the same bits as in the trial, by their hash."
        return {"how": how, "adapters_hash": found}
    task, _, metric = str(row["metric"]).rpartition(".")
    split_scores = [
        score["value"]
        for score in remade.scores()
        if (score["task"], score["metric"], score["state"]) == (task, metric, "final")
    ]
    score, was, error = split_scores[0], row["score"], row["score_repaired_se"]
    how = f"{whence}, not to the same bits; {row['metric']} {score:.4f}, in the trial {was:.4f}."
    if not abs(score - was) <= (0 if is_null(error) else error):  # NaN is refused
        raise VerificationError(
            f"trial {row['trial']}: {how} That is more than a standard error apart: export where "
            "it ran, or run it again."
        )
    return {"how": how, "adapters_hash": found, "score": score}


def _about(sweep: SweepStore, row: Row, spec: TrialSpec) -> dict[str, Any]:
    scores = sweep.scores()
    columns = ("task", "split", "state", "image", "metric", "value", "standard_error", "items")
    own = scores[scores["trial"] == row["trial"]][list(columns)].to_dict("records")
    recipe = as_json(spec)
    for tower in TOWERS:
        recipe[tower]["target"] = str(spec.tower(tower).target)
    for part in ("model", "fingerprint", "repair", "rungs", "rung_samples"):
        recipe.pop(part)
    return {
        "sweep": sweep.name,
        "trial": row["trial"],
        "key": row["key"],
        "fingerprint": spec.fingerprint,
        "recipe": recipe,
        "scores": [{name: _known(value) for name, value in score.items()} for score in own],
        "made_by": {package: version(package) for package in _PACKAGES}
        | {"python": platform.python_version(), "machine": platform.machine()},
    }


def _known(value: object) -> object:
    """A value as JSON has it: an infinite perplexity is as little a number as none."""
    is_number = not is_null(value) and (not isinstance(value, float) or math.isfinite(value))
    return value if is_number else None
