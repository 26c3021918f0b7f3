"""Pruned pocket models of random weights, questions for them, and workers that repair them."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from ressa.data.easy_vqa import EasyVQA
from ressa.models.pocket.build import build_blip2, build_llava
from ressa.models.pocket.recipe import vocabulary
from ressa.models.towers import find_towers
from ressa.models.vlm import VLM
from ressa.records import Example
from ressa.repair import (
    AnyTeacher,
    Checkpoints,
    FeatureTeacher,
    StoredTeacher,
    Teacher,
    attach,
    merge,
    teacher_parts,
    train,
)
from ressa.spec import Distillation, Rank, Repair
from ressa.store import open_store
from ressa.workers import device, use_device

BUILD = {"blip2": build_blip2, "llava": build_llava}
ANSWERS = ("yes", "no", "red circle", "no blue yes", "triangle")

task = cache(EasyVQA)


def dense_vlm(kind: str = "blip2", dtype: torch.dtype = torch.float32) -> VLM:
    """A model of random weights, the same at every call; on the GPU if there is one."""
    torch.manual_seed(0)
    model, processor = BUILD[kind](_words())
    model.to(device(), dtype)
    return VLM(name=kind, model=model.eval(), processor=processor, towers=find_towers(model))


@cache
def _words() -> list[str]:
    return vocabulary(task())


def questions(how_many: int = 40) -> tuple[Example, ...]:
    """Questions about a few images, with answers of one to three words."""
    drawn = task().examples("train", how_many, seed=0)
    return tuple(
        dataclasses.replace(example, answer=ANSWERS[index % len(ANSWERS)])
        for index, example in enumerate(drawn)
    )


def prune(vlm: VLM, sparsity: float = 0.5) -> dict[str, Tensor]:
    """Prunes every prunable layer by magnitude and returns the keep masks."""
    masks = {}
    for layer in vlm.towers.inventory.layers:
        weight = vlm.model.get_submodule(layer.name).weight
        smallest = weight.detach().abs().flatten().argsort()[: int(sparsity * weight.numel())]
        keep = torch.ones(weight.numel(), dtype=torch.bool, device=weight.device)
        keep[smallest] = False
        masks[layer.name] = keep.view_as(weight)
        weight.data.masked_fill_(~masks[layer.name], 0)
    return masks


def repair_plan(**changes: Any) -> Repair:
    """A short repair with everything in it: warm-up, cosine, clipping, distillation."""
    plan = Repair(
        rank=Rank(vision=4, language=4, connector=2),
        steps=4,
        batch_size=14,
        learning_rate=0.01,
        schedule="cosine",
        warmup_steps=1,
        clip=1.0,
        distillation=Distillation(weight=0.3, temperature=2.0),
    )
    return plan.model_copy(update=changes)


def state(model: torch.nn.Module) -> dict[str, Tensor]:
    """A copy of all weights."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def teacher_logits(
    vlm: VLM, examples: Sequence[Example], task: EasyVQA, *, blank: bool = False
) -> Teacher:
    """All that a dense model says of some questions, in one."""
    parts = teacher_parts(vlm, examples, task, blank=blank)
    return Teacher({id: rows for part in parts for id, rows in part.rows.items()})


def teacher_of(vlm: VLM, plan: Repair) -> Teacher | FeatureTeacher:
    """What a dense model teaches by a plan."""
    if plan.objective == "features":
        return FeatureTeacher(vlm)
    return teacher_logits(vlm, questions(), task(), blank=plan.objective == "text")


def repaired(
    plan: Repair,
    kind: str = "blip2",
    store: Path | None = None,
    stop_after: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """Prunes and repairs a fresh model; returns the curve and the merged weights.

    Args:
        store: where to leave checkpoints, and whence to go on.
        stop_after: walk away after so many steps.
    """
    vlm = dense_vlm(kind, dtype)
    teacher: AnyTeacher = teacher_of(vlm, plan)
    if isinstance(teacher, Teacher):
        teacher = StoredTeacher([teacher.to_bytes()])
    adapters = attach(vlm.model, prune(vlm), vlm.towers, plan, seed=0)
    steps = train(
        vlm,
        adapters,
        questions(),
        task(),
        teacher,
        plan,
        seed=0,
        checkpoints=None if store is None else checkpoints(store),
    )
    curve = [asdict(step) for step in islice(steps, stop_after)]
    if stop_after is not None:
        return curve, {}
    merge(adapters)
    return curve, state(vlm.model)


def checkpoints(store: Path, mask: str = "a mask") -> Checkpoints:
    """The checkpoints of the one trial in a store."""
    return Checkpoints(open_store(store, create=True).stages, "trial", mask_hash=mask)


def repair_as_worker(rank: int, workers: int, folder: str, plans: Sequence[Repair]) -> None:
    """Joins a group of workers, repairs by each plan in turn, and writes what came out.

    The last plan goes on from a checkpoint in `<folder>/theirs`, and leaves its own in `ours`.
    """
    torch.set_num_threads(1)
    use_device(0)  # several workers want a GPU each
    rendezvous = distributed.FileStore(f"{folder}/rendezvous", workers)
    distributed.init_process_group("gloo", store=rendezvous, rank=rank, world_size=workers)
    teacher = teacher_logits(dense_vlm(), questions(), task())
    Path(folder, f"teacher-{rank}").write_bytes(teacher.to_bytes())
    for number, plan in enumerate(plans):
        store = Path(folder, "theirs") if number == len(plans) - 1 else None
        curve, weights = repaired(plan, store=store)
        Path(folder, f"curve-{number}-{rank}").write_text(json.dumps(curve))
        torch.save(weights, Path(folder, f"weights-{number}-{rank}"))
    repaired(plans[-1], store=Path(folder, "ours"), stop_after=3)
    distributed.destroy_process_group()
