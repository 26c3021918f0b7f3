"""Checkpoints of a repair: a killed one ends as if it had never been stopped."""

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from pruned import checkpoints, dense_vlm, prune, questions, repair_plan, repaired
from torch import Tensor

from ressa.repair import REPAIR_METHODS, attach, remove_checkpoints
from ressa.repair.checkpoint import Checkpoint, recipe_hash
from ressa.repair.engine import deepspeed_config
from ressa.spec import Repair
from ressa.store import open_store

PLAN = repair_plan(steps=6, checkpoint_steps=2)
RECIPE = recipe_hash(PLAN, "blip2", questions(), 0)
Repaired = tuple[list[dict[str, Any]], dict[str, Tensor]]


@pytest.fixture(scope="module")
def never_stopped() -> Repaired:
    return repaired(PLAN)


def lasting(curve: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A curve without what depends on the clock and the machine."""
    passing = ("examples_per_second", "peak_memory_gib")
    return [{k: v for k, v in point.items() if k not in passing} for point in curve]


def assert_bit_equal(got: Repaired, wanted: Repaired) -> None:
    assert lasting(got[0]) == lasting(wanted[0])
    assert all(torch.equal(got[1][name], weight) for name, weight in wanted[1].items())


def kept(store: Path) -> list[str]:
    return open_store(store).stages.keys("repair-checkpoint")


def repair_until_killed(store: Path, told: Any) -> None:
    """Says each step when it is done; it is killed before the last."""
    from ressa.repair import loop

    check = loop.check_divergence

    def tell(curve: Any, repair: Repair) -> None:
        check(curve, repair)
        told.put(len(curve))
        time.sleep(600 if len(curve) == PLAN.steps else 0.05)

    loop.check_divergence = tell
    torch.set_num_threads(1)
    repaired(PLAN, store=store)


def test_a_repair_that_is_killed_ends_as_if_it_had_not_been(
    tmp_path: Path, never_stopped: Repaired
) -> None:
    context = multiprocessing.get_context("spawn")
    told = context.SimpleQueue()
    process = context.Process(target=repair_until_killed, args=(tmp_path, told))
    process.start()
    assert process.pid is not None
    last = random.randint(3, 5)
    while told.get() < last:
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert kept(tmp_path), f"killed at step {last}"
    assert_bit_equal(repaired(PLAN, store=tmp_path), never_stopped)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_going_on_is_bit_equal_at_every_stage(tmp_path: Path, stage: int) -> None:
    share_all = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
    plan = PLAN.model_copy(update={"zero_stage": stage, "deepspeed": share_all})
    begun, _ = repaired(plan, store=tmp_path, stop_after=5)
    ended = repaired(plan, store=tmp_path)
    assert ended[0][:4] == begun[:4]  # with the speed of then: they were not done again
    assert ended[0][4] != begun[4]
    assert_bit_equal(ended, repaired(plan))


@pytest.mark.parametrize(
    ("method", "stage"),
    [(method, 1) for method in sorted({*REPAIR_METHODS} - {"sparselora"})]
    + [("masked_finetune", 3)],
)
def test_every_method_goes_on_bit_equal(tmp_path: Path, method: str, stage: int) -> None:
    dropout = 0.2 if method == "lora" else 0.0  # drawn anew in each step, from the step
    share_all = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
    change = {"method": method, "dropout": dropout, "zero_stage": stage, "deepspeed": share_all}
    plan = repair_plan(steps=3, checkpoint_steps=2).model_copy(update=change)
    repaired(plan, store=tmp_path, stop_after=2)
    assert kept(tmp_path)
    assert_bit_equal(repaired(plan, store=tmp_path), repaired(plan))


def test_a_checkpoint_of_masked_finetuning_holds_what_is_kept_alone(tmp_path: Path) -> None:
    plan = repair_plan(method="masked_finetune", steps=3, checkpoint_steps=2, train=("language",))
    repaired(plan, store=tmp_path, stop_after=2)
    vlm = dense_vlm()
    masks = prune(vlm)
    checkpoint = checkpoints(tmp_path).newest(recipe_hash(plan, "blip2", questions(), 0))
    assert checkpoint is not None
    trained = attach(vlm.model, masks, vlm.towers, plan, seed=0).layers
    assert {name: tensor.numel() for name, tensor in checkpoint.moment.tensors.items()} == {
        f"{name}.weight{ending}": int(masks[name].sum())
        for name in trained
        for ending in ("", ".exp_avg", ".exp_avg_sq")
    }


def test_going_on_in_half_precision_is_bit_equal(tmp_path: Path) -> None:
    plan = PLAN.model_copy(update={"dtype": "bfloat16"})
    repaired(plan, store=tmp_path, stop_after=3)
    assert_bit_equal(repaired(plan, store=tmp_path), repaired(plan))


def test_only_two_are_kept_and_none_of_a_finished_trial(tmp_path: Path) -> None:
    repaired(PLAN, store=tmp_path)
    assert kept(tmp_path) == ["trial-00000004", "trial-00000006"]
    stages = open_store(tmp_path).stages
    remove_checkpoints(stages, "tri")  # another trial, whose key happens to begin alike
    assert kept(tmp_path) == ["trial-00000004", "trial-00000006"]
    remove_checkpoints(stages, "trial")
    assert kept(tmp_path) == []


def test_a_repair_shorter_than_the_distance_leaves_none(tmp_path: Path) -> None:
    repaired(repair_plan(steps=2, checkpoint_steps=3), store=tmp_path)
    assert kept(tmp_path) == []


def test_a_repair_that_was_done_is_told_again_without_training(tmp_path: Path) -> None:
    """Killed while the repaired model was scored."""
    wanted = repaired(PLAN, store=tmp_path)
    again = repaired(PLAN, store=tmp_path)
    assert again[0] == wanted[0]  # with the speed of then
    assert_bit_equal(again, wanted)


def test_nothing_frozen_and_nothing_pickled_is_kept(tmp_path: Path) -> None:
    repaired(PLAN, store=tmp_path, stop_after=3)
    files = [file for file in (tmp_path / "stages/repair-checkpoint").rglob("*") if file.is_file()]
    assert {file.suffix for file in files} == {".json", ".safetensors"}
    checkpoint = checkpoints(tmp_path).newest(RECIPE)
    assert checkpoint is not None and checkpoint.step == 2
    trained = [
        tensor for name, tensor in checkpoint.moment.tensors.items() if "exp_avg" not in name
    ]
    names = {name.rsplit(".", 1)[-1] for name in checkpoint.moment.tensors}
    assert names == {"lora_a", "lora_b", "exp_avg", "exp_avg_sq"}
    weights = 3 * 4 * sum(tensor.numel() for tensor in trained)
    assert sum(file.stat().st_size for file in files) < weights + 200 * len(names) * len(trained)


def test_what_deepspeed_was_told_is_left_for_a_user_to_read(tmp_path: Path) -> None:
    repaired(PLAN, store=tmp_path, stop_after=1)
    (config,) = (tmp_path / "stages/repair-deepspeed/trial").glob("*-deepspeed.json")
    told = json.loads(config.read_text())
    weights = told["zero_optimization"]["reduce_bucket_size"]
    assert told == deepspeed_config(PLAN, world_size=1, weights=weights)


def truncate(store: Path, suffix: str) -> None:
    """Cuts a file of the newest checkpoint in half."""
    (file,) = (store / "stages/repair-checkpoint/trial-00000004").glob(f"*{suffix}")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(
    "suffix", ["training.safetensors", "training.json", "manifest.json"], ids=lambda s: s
)
def test_a_truncated_one_is_refused_by_name_and_the_one_before_used(
    tmp_path: Path, suffix: str, never_stopped: Repaired, caplog: pytest.LogCaptureFixture
) -> None:
    repaired(PLAN, store=tmp_path, stop_after=5)
    truncate(tmp_path, suffix)
    newest = checkpoints(tmp_path).newest(RECIPE)
    assert newest is not None and newest.step == 2
    told = [record.getMessage() for record in caplog.records]
    assert (
        "trial trial: the repair checkpoint of step 4 is refused: it is truncated or damaged"
        in told
    )
    assert_bit_equal(repaired(PLAN, store=tmp_path), never_stopped)


def test_one_of_another_mask_or_recipe_is_refused_by_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    repaired(PLAN, store=tmp_path, stop_after=5)
    other = repair_plan(steps=6, learning_rate=0.02)
    assert recipe_hash(other, "blip2", questions(), 0) != RECIPE
    ours, theirs = checkpoints(tmp_path), checkpoints(tmp_path, mask="another mask")
    found = ours.newest(RECIPE)
    assert found is not None
    for step, (owner, recipe) in {5: (theirs, RECIPE), 6: (ours, "another recipe")}.items():
        curve = (*found.curve, *found.curve)[:step]
        owner.save(Checkpoint(curve=curve, micro_batch=14, moment=found.moment), recipe)
        caplog.clear()
        newest = ours.newest(RECIPE)
        assert newest is not None and newest.step == 4
        (told,) = [record.getMessage() for record in caplog.records]
        kind = "mask" if step == 5 else "recipe"
        assert f"checkpoint of step {step} is refused: it is of another {kind}" in told
        assert f"(another {kind}, not " in told


def test_how_a_step_is_computed_is_no_part_of_the_recipe() -> None:
    how = {"zero_stage": 3, "dtype": "bfloat16", "micro_batch": 7, "checkpoint_steps": 50}
    plan = PLAN.model_copy(update=how)
    assert recipe_hash(plan, "blip2", questions(), 0) == RECIPE
    for change in ({"steps": 7}, {"clip": 0.5}, {"train": ("vision",)}):
        plan = PLAN.model_copy(update=change)
        assert recipe_hash(plan, "blip2", questions(), 0) != RECIPE
    assert recipe_hash(PLAN, "blip2", questions(41), 0) != RECIPE
    assert recipe_hash(PLAN, "blip2", questions(), 1) != RECIPE
