"""`python -m benchmarks.obvious FILE VISION LANGUAGE`: one pair of sparsities the obvious way.

One process does all that a trial's row says: it loads the model, scores it dense, calibrates,
prunes both towers, scores, repairs if the file says so and scores again, with the same functions
and settings as a trial, and shares nothing with anyone. Prints what it found as JSON.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from ressa.catalog import METHODS, TASKS
from ressa.evaluate import closed_scores, predictions
from ressa.models import VLM, load_vlm
from ressa.prune import PackedMasks, Statistics, mask_hash, prune_layers, removals, walk
from ressa.prune.removal import requested_zeros
from ressa.records import TrialSpec
from ressa.sparsity import TOWERS
from ressa.spec import load_spec
from ressa.sweep.plan import make_plan


def main(file: str, vision: str, language: str) -> None:
    """Works on one pair."""
    plan = make_plan(load_spec(Path(file), ()).spec)
    trial = plan.trial({"vision_sparsity": vision, "language_sparsity": language})
    torch.set_num_threads(trial.cpus_per_worker)
    vlm = load_vlm(trial.model)
    teacher = None
    found: dict[str, Any] = {"floor_dense_blank": _scores(trial, vlm)[1]}
    if trial.repair is not None:
        from ressa.repair import Teacher, teacher_parts

        data = trial.repair.data
        task = TASKS[data.task]()
        examples = task.examples(data.split, data.samples, data.seed)
        parts = teacher_parts(vlm, examples, task)
        teacher = Teacher({id: rows for part in parts for id, rows in part.rows.items()})
    masks = _prune(trial, vlm)
    found |= {"mask_hash": mask_hash(masks), "score_pruned": _scores(trial, vlm)[0]}
    if trial.repair is not None:
        from ressa.repair import attach, merge, train

        seed = data.seed
        adapters = attach(vlm.model, masks, vlm.towers, trial.repair, seed=seed)
        for _ in train(vlm, adapters, examples, task, teacher, trial.repair, seed=seed):
            pass
        merge(adapters)
        found["score_repaired"] = _scores(trial, vlm)[0]
    print(json.dumps(found))


def _prune(trial: TrialSpec, vlm: VLM) -> PackedMasks:
    ref = trial.calibration
    task = TASKS[ref.task]()
    examples = task.examples(ref.split, ref.samples, ref.seed)
    known: dict[str, list[Statistics]] = {
        tower: list(walk(vlm, examples, task.image, tower, prunes=False)) for tower in TOWERS
    }
    masks = PackedMasks()
    for tower in TOWERS:
        wanted, layers = trial.tower(tower), vlm.towers.inventory.tower(tower)
        lost = removals(layers, wanted)
        asked = requested_zeros(layers, wanted, lost)
        share = {layer.name: both for layer, *both in zip(layers, lost, asked, strict=True)}
        for block in known[tower]:
            own = [layer for layer in layers if layer.name in block.layers]
            pruned = prune_layers(
                vlm.model,
                own,
                METHODS[wanted.method].from_spec(wanted),
                [share[layer.name][0] for layer in own],
                requested=[share[layer.name][1] for layer in own],
                group=wanted.group,
                statistics=block.layers,
                seed=ref.seed,
            )
            pruned.apply(vlm.model)
            masks |= pruned.masks
    return masks


def _scores(trial: TrialSpec, vlm: VLM) -> tuple[float, float]:
    """Scores the first evaluation, on its pictures and on blank ones, as a trial does."""
    (ref,) = trial.evaluate
    task = TASKS[ref.task]()
    examples = task.examples(ref.split, ref.samples, ref.seed)
    real, blank = (
        closed_scores(examples, predictions(vlm, task, examples, blank=shown), task.answers)
        for shown in (False, True)
    )
    return real["balanced_accuracy"], blank["balanced_accuracy"]


if __name__ == "__main__":
    main(*sys.argv[1:])
