"""The repair loop: DeepSpeed follows plain torch, at any ZeRO stage and number of workers."""

import json
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from pruned import (
    dense_vlm,
    prune,
    questions,
    repair_as_worker,
    repair_plan,
    repaired,
    state,
    task,
    teacher_logits,
    teacher_of,
)
from torch import Tensor
from torch.nn import functional

from ressa.data.easy_vqa import EasyVQA
from ressa.errors import RepairError
from ressa.models.vlm import VLM
from ressa.records import Example
from ressa.repair import (
    REPAIR_METHODS,
    RepairStep,
    Teacher,
    attach,
    merge,
    train,
)
from ressa.repair.batches import global_batches
from ressa.repair.curve import learning_rate
from ressa.repair.engine import deepspeed_config
from ressa.spec import Decoding, Distillation, Repair

Curve = list[dict[str, Any]]


def plain_repair(plan: Repair, kind: str = "blip2") -> tuple[Curve, dict[str, Tensor]]:
    """The same repair, written down as torch alone would do it in one process."""
    vlm = dense_vlm(kind)
    teacher = teacher_of(vlm, plan)
    adapters = attach(vlm.model, prune(vlm), vlm.towers, plan, seed=0)
    optimizer = torch.optim.AdamW(adapters.parameters(), weight_decay=0.0)
    batches = islice(global_batches(questions(), plan.batch_size, seed=0), plan.steps)
    curve = []
    for step, groups in enumerate(batches):
        examples = [questions()[index] for group in groups for index in group]
        if isinstance(teacher, Teacher):
            losses = answer_losses(vlm, teacher, examples, plan)
        else:
            losses = feature_losses(vlm, dense_vlm(kind), examples)
        loss = losses["loss"]
        optimizer.zero_grad()
        loss.backward()
        limit = plan.clip or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(adapters.parameters(), limit)
        optimizer.param_groups[0]["lr"] = learning_rate(plan, step)
        optimizer.step()
        curve.append({**losses, "gradient_norm": norm})
    merge(adapters)
    return [{k: v.item() for k, v in point.items()} for point in curve], state(vlm.model)


def answer_losses(
    vlm: VLM, teacher: Teacher, examples: list[Example], plan: Repair
) -> dict[str, Tensor]:
    blank = task().blank_image() if plan.objective == "text" else None
    batch = vlm.encode(examples, task().image, answers=True, blank=blank)
    logits, targets = vlm.answer_logits(batch)
    heat, weight = plan.distillation.temperature, plan.distillation.weight
    target = (teacher.of(examples).to(logits.device) / heat).softmax(-1)
    kl = (target * (target.log() - (logits / heat).log_softmax(-1))).sum(-1).mean() * heat**2
    ce = functional.cross_entropy(logits, targets)
    return {"loss": (1 - weight) * ce + weight * kl, "ce": ce, "kl": kl}


def feature_losses(vlm: VLM, dense: VLM, examples: list[Example]) -> dict[str, Tensor]:
    errors = []
    for example in examples:
        pixels = vlm.encode([example], task().image, answers=False).inputs["pixel_values"]
        own, wanted = (
            each.model.get_encoder("image")(pixel_values=pixels).last_hidden_state
            for each in (vlm, dense)
        )
        errors.append((own - wanted.detach()).norm() ** 2 / wanted.norm() ** 2)
    return {"loss": torch.stack(errors).mean()}


def assert_same_repair(
    got: tuple[Curve, dict[str, Tensor]],
    wanted: tuple[Curve, dict[str, Tensor]],
    kind: str = "blip2",
) -> None:
    """Curves agree within 1e-5, relative, and what training did to the weights within 1e-2.

    Adam divides a gradient by its own size, and so makes much of the rounding of tiny ones.
    """
    for point, reference in zip(got[0], wanted[0], strict=True):
        for name, value in reference.items():
            assert point[name] == pytest.approx(value, rel=1e-5), name
    vlm = dense_vlm(kind)
    prune(vlm)
    for name, start in vlm.model.state_dict().items():
        change = wanted[1][name] - start
        assert (got[1][name] - wanted[1][name]).norm() <= 1e-2 * change.norm(), name


# DeepSpeed's own threshold is larger than any matrix of a pocket model: nothing would be shared.
SHARE_ALL = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}

PLANS = {
    "zero 0": repair_plan(zero_stage=0),
    "zero 1": repair_plan(zero_stage=1),
    "zero 2": repair_plan(zero_stage=2),
    "zero 0, micro-batches": repair_plan(zero_stage=0, micro_batch=3),
    "zero 1, micro-batches": repair_plan(zero_stage=1, micro_batch=3),
    "zero 2, micro-batches": repair_plan(zero_stage=2, micro_batch=3),
    "zero 3": repair_plan(zero_stage=3, deepspeed=SHARE_ALL),
    "zero 3, micro-batches": repair_plan(zero_stage=3, micro_batch=3, deepspeed=SHARE_ALL),
    "no clipping": repair_plan(clip=0.0),
    "blocks run again in backward": repair_plan(gradient_checkpointing=True),
    "blocks run again at zero 3": repair_plan(
        zero_stage=3, gradient_checkpointing=True, deepspeed=SHARE_ALL
    ),
    "text": repair_plan(objective="text", train=("language",)),
    "features": repair_plan(objective="features", train=("vision",)),
    "features at zero 3, micro-batches": repair_plan(
        objective="features", train=("vision",), zero_stage=3, micro_batch=3, deepspeed=SHARE_ALL
    ),
    "offload at zero 1": repair_plan(zero_stage=1, offload="cpu"),
    "offload at zero 3": repair_plan(zero_stage=3, offload="cpu", deepspeed=SHARE_ALL),
}

WITH_TWO_WORKERS = (
    "zero 0",
    "zero 1",
    "zero 2",
    "zero 2, micro-batches",
    "zero 3",
    "zero 3, micro-batches",
    "text",
    "features",
)


@pytest.fixture(scope="module")
def plain() -> tuple[Curve, dict[str, Tensor]]:
    return plain_repair(repair_plan())


def learns_the_same(plan: Repair) -> bool:
    """Whether a plan differs from the others but in how it is computed."""
    fields = ("objective", "method", "clip", "steps")
    return all(getattr(plan, field) == getattr(repair_plan(), field) for field in fields)


@pytest.mark.parametrize("name", PLANS)
def test_deepspeed_follows_plain_torch(name: str, plain: tuple[Curve, dict[str, Tensor]]) -> None:
    wanted = plain if learns_the_same(PLANS[name]) else plain_repair(PLANS[name])
    assert plain[0][0]["gradient_norm"] > 1.0, "or clipping was not tested"
    assert_same_repair(repaired(PLANS[name]), wanted)


def test_answers_between_steps_are_the_same_where_blocks_run_again_in_backward() -> None:
    def answers(plan: Repair) -> list[list[str]]:
        vlm = dense_vlm("llava")
        teacher = teacher_of(vlm, plan)
        adapters = attach(vlm.model, prune(vlm), vlm.towers, plan, seed=0)
        found = []

        def look(_: RepairStep) -> None:
            batch = vlm.encode(questions(8), task().image, answers=False)
            found.append(vlm.generate(batch, 4, Decoding(min_new_tokens=4)))

        list(train(vlm, adapters, questions(), task(), teacher, plan, seed=0, at_step=look))
        return found

    without = answers(repair_plan(steps=1))
    assert answers(repair_plan(steps=1, gradient_checkpointing=True)) == without
    assert all(len(answer.split()) > 1 for answer in without[0]), "or nothing was cached"


@cache
def short_plain_repair(method: str) -> tuple[Curve, dict[str, Tensor]]:
    return plain_repair(repair_plan(method=method, steps=2))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("method", sorted({*REPAIR_METHODS} - {"sparselora"}))
def test_every_method_follows_plain_torch(method: str, stage: int) -> None:
    plan = repair_plan(method=method, steps=2, zero_stage=stage, deepspeed=SHARE_ALL)
    assert_same_repair(repaired(plan), short_plain_repair(method))


@pytest.mark.parametrize("method", sorted({*REPAIR_METHODS} - {"sparselora"}))
def test_every_method_takes_steps_in_half_precision(method: str) -> None:
    """Of a model in fp32, within 2 % of its losses; and of one in bf16."""
    plan = repair_plan(method=method, steps=2, dtype="bfloat16")
    curve, _ = repaired(plan)
    for point, reference in zip(curve, short_plain_repair(method)[0], strict=True):
        assert point["loss"] == pytest.approx(reference["loss"], rel=2e-2)
    losses = [point["loss"] for point in curve]
    curve, weights = repaired(plan, dtype=torch.bfloat16)
    assert all(weight.dtype == torch.bfloat16 for weight in weights.values())
    assert [point["loss"] for point in curve] == pytest.approx(losses, rel=5e-2)


def test_deepspeed_follows_plain_torch_on_a_decoder_only_model() -> None:
    plan = repair_plan(steps=2)
    assert_same_repair(repaired(plan, "llava"), plain_repair(plan, "llava"), "llava")


def test_two_workers_follow_plain_torch_and_print_nothing(
    tmp_path: Path, plain: tuple[Curve, dict[str, Tensor]], capfd: pytest.CaptureFixture[str]
) -> None:
    plans = [PLANS[name] for name in WITH_TWO_WORKERS]
    plans.append(repair_plan(method="masked_finetune", steps=2, zero_stage=2))
    # One worker's checkpoint is gone on from by two at another stage, and theirs by one.
    repaired(repair_plan(checkpoint_steps=2), store=tmp_path / "theirs", stop_after=3)
    plans.append(repair_plan(zero_stage=3, checkpoint_steps=2, deepspeed=SHARE_ALL))
    torch.multiprocessing.spawn(repair_as_worker, args=(2, str(tmp_path), plans), nprocs=2)
    assert capfd.readouterr() == ("", "")
    teachers = {(tmp_path / f"teacher-{rank}").read_bytes() for rank in (0, 1)}
    assert teachers == {teacher_logits(dense_vlm(), questions(), task()).to_bytes()}
    for number, plan in enumerate(plans):
        curves, weights = zip(
            *(
                (
                    json.loads((tmp_path / f"curve-{number}-{rank}").read_text()),
                    torch.load(tmp_path / f"weights-{number}-{rank}"),
                )
                for rank in (0, 1)
            ),
            strict=True,
        )
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
        for name in ("loss", "ce", "kl", "gradient_norm"):
            assert [p[name] for p in curves[0]] == [p[name] for p in curves[1]]
        wanted = plain if learns_the_same(plan) else plain_repair(plan)
        assert_same_repair((curves[0], weights[0]), wanted)
    plan = repair_plan(zero_stage=0, checkpoint_steps=2)
    assert_same_repair(repaired(plan, store=tmp_path / "ours"), plain)


@pytest.mark.parametrize("stage", [1, 3])
@pytest.mark.parametrize(
    ("objective", "part"),
    [("image_text", "language"), ("text", "language"), ("features", "vision")],
)
def test_what_is_not_listed_stays_bit_identical_and_zeros_stay_zero(
    objective: str, part: str, stage: int
) -> None:
    plan = repair_plan(
        objective=objective, train=(part,), steps=2, zero_stage=stage, deepspeed=SHARE_ALL
    )
    vlm = dense_vlm()
    teacher = teacher_of(vlm, plan)
    masks = prune(vlm)
    before, kept = state(vlm.model), {name: mask.clone() for name, mask in masks.items()}
    adapters = attach(vlm.model, masks, vlm.towers, plan, seed=0)
    trained = {f"{name}.weight" for name in adapters.layers}
    list(train(vlm, adapters, questions(), task(), teacher, plan, seed=0))
    merge(adapters)
    after = vlm.model.state_dict()
    for name, weight in before.items():
        assert torch.equal(after[name], weight) == (name not in trained), name
    for name, mask in masks.items():
        assert torch.equal(mask, kept[name])
        assert not after[f"{name}.weight"][~mask].any()


@pytest.mark.parametrize("name", ["zero 1", "text", "features"])
def test_repair_is_the_same_twice(name: str) -> None:
    (one, weights), (two, again) = repaired(PLANS[name]), repaired(PLANS[name])
    for point in (*one, *two):
        del point["examples_per_second"], point["peak_memory_gib"]
    assert one == two
    assert all(torch.equal(weights[name], again[name]) for name in weights)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_the_weight_of_distillation_goes_from_task_to_teacher(weight: float) -> None:
    curve, _ = repaired(repair_plan(distillation=Distillation(weight=weight), steps=2))
    for point in curve:
        assert point["loss"] == pytest.approx(point["kl"] if weight else point["ce"])
        assert point["kl"] > 0


@pytest.mark.parametrize("kind", ["blip2", "llava"])
def test_features_come_near_the_dense_towers_without_a_language_model(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the language model was run")

    monkeypatch.setattr(VLM, "all_logits", refuse)
    plan = repair_plan(objective="features", train=("vision",), steps=12)
    losses = [point["loss"] for point in repaired(plan, kind)[0]]
    assert 0 < losses[-1] < 0.7 * losses[0] < 1


def test_text_repair_sees_no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a picture was opened")

    monkeypatch.setattr(EasyVQA, "image", refuse)
    curve, _ = repaired(PLANS["text"])
    assert curve[-1]["loss"] < curve[0]["loss"]


def test_repair_without_a_teacher_learns_the_task_alone() -> None:
    plan = repair_plan(distillation=Distillation(weight=0.0), steps=2)
    vlm = dense_vlm()
    adapters = attach(vlm.model, prune(vlm), vlm.towers, plan, seed=0)
    curve = list(train(vlm, adapters, questions(), task(), None, plan, seed=0))
    with_teacher, _ = repaired(plan)
    assert [point.kl for point in curve] == [None, None]
    assert [point.loss for point in curve] == [point["loss"] for point in with_teacher]


def test_the_recorded_rate_is_the_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = repair_plan(steps=4, warmup_steps=1, learning_rate=0.01)
    used: list[float] = []
    step = torch.optim.AdamW.step

    def spy(self: torch.optim.AdamW, *args: Any, **kwargs: Any) -> Any:
        used.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    curve, _ = repaired(plan)
    wanted = [0.005, 0.01, 0.0075, 0.0025]
    assert used == pytest.approx(wanted)
    assert [point["learning_rate"] for point in curve] == used


def test_a_repair_that_runs_away_ends_with_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers stay finite: the right rate at first, and then hundreds of times as much."""
    plan = repair_plan(steps=80, learning_rate=0.01, warmup_steps=0, clip=0.0)
    gentle = learning_rate
    monkeypatch.setattr(
        "ressa.repair.loop.learning_rate",
        lambda repair, step: gentle(repair, step) if step < 40 else 3.0,
    )
    with pytest.raises(
        RepairError, match=r"diverged at step \d+ of 80: loss [\d.e+]+, (for 10|gradient norm inf)"
    ):
        repaired(plan)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_divergence_is_a_numeric_failure_that_names_its_step(stage: int) -> None:
    plan = repair_plan(zero_stage=stage, learning_rate=1e30, warmup_steps=0, clip=0.0)
    with pytest.raises(RepairError, match=r"diverged at step [2-4] of 4") as raised:
        repaired(plan)
    assert raised.value.failure == "numeric"


@pytest.mark.parametrize(
    ("method", "stage"),
    [("masked_finetune", 0), ("masked_finetune", 1), ("masked_finetune", 3), ("sparselora", 3)],
)
def test_weights_that_lie_transposed_are_trained_like_others(
    method: str, stage: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As GPT-2's do, and the experts of some mixtures; checkpoints hold them too."""
    plan = repair_plan(
        method=method, steps=2, checkpoint_steps=1, zero_stage=stage, deepspeed=SHARE_ALL
    )
    wanted = repaired(plan)

    def transposed(*which: Any) -> VLM:
        vlm = dense_vlm(*which)
        for layer in vlm.towers.inventory.layers:
            weight = vlm.model.get_parameter(f"{layer.name}.weight")
            weight.data = weight.detach().T.contiguous().T
        return vlm

    monkeypatch.setattr("pruned.dense_vlm", transposed)
    curve, weights = repaired(plan, store=tmp_path)
    assert [point["loss"] for point in curve] == pytest.approx([p["loss"] for p in wanted[0]])
    torch.testing.assert_close(weights, wanted[1])


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_updates_in_half_precision_stay_near_those_in_full(
    stage: int, plain: tuple[Curve, dict[str, Tensor]]
) -> None:
    """Losses within 2 %, and after the merge the fp32 masters count: no zero is lost."""
    plan = repair_plan(zero_stage=stage, dtype="bfloat16")
    curve, weights = repaired(plan)
    for point, reference in zip(curve, plain[0], strict=True):
        assert point["loss"] == pytest.approx(reference["loss"], rel=2e-2)
    assert curve[-1]["loss"] != plain[0][-1]["loss"]
    assert all(weight.dtype == torch.float32 for weight in weights.values())
    config = deepspeed_config(plan, world_size=1, weights=1)
    assert config["zero_optimization"]["stage"] == max(1, stage)


@pytest.mark.parametrize("stage", [1, 2])
def test_training_in_half_precision_rounds_no_weight_of_a_model_in_full(stage: int) -> None:
    """Steps that move nothing leave the weights as they were: masters begin as the weights are."""
    plan = repair_plan(
        method="masked_finetune", dtype="bfloat16", zero_stage=stage, learning_rate=1e-12, steps=1
    )
    _, weights = repaired(plan)
    vlm = dense_vlm()
    prune(vlm)
    torch.testing.assert_close(weights, state(vlm.model), rtol=0, atol=1e-9)


def test_every_stage_takes_the_same_steps_on_a_model_in_half_precision() -> None:
    curves = []
    for stage in (1, 2, 3):
        plan = repair_plan(zero_stage=stage, dtype="bfloat16", deepspeed=SHARE_ALL)
        curve, weights = repaired(plan, dtype=torch.bfloat16)
        assert all(weight.dtype == torch.bfloat16 for weight in weights.values())
        curves.append([point["loss"] for point in curve])
    # Within one step of bfloat16: processors differ in the order of sums (2.2e-3 seen).
    assert curves[0] == pytest.approx(curves[1], rel=2**-8)
    assert curves[0] == pytest.approx(curves[2], rel=2**-8)


def test_float16_is_refused_without_a_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(RepairError, match="float16 needs a GPU"):
        repaired(repair_plan(dtype="float16"))


def test_zero_3_shares_weights_out_while_it_trains_and_leaves_a_plain_model() -> None:
    plan = repair_plan(zero_stage=3, deepspeed=SHARE_ALL)
    vlm = dense_vlm()
    teacher = teacher_logits(vlm, questions(), task())
    masks = prune(vlm)
    linear = functional.linear
    own = {name: id(parameter) for name, parameter in vlm.model.named_parameters()}
    adapters = attach(vlm.model, masks, vlm.towers, plan, seed=0)
    layer = next(iter(adapters.layers.values()))
    steps = train(vlm, adapters, questions(), task(), teacher, plan, seed=0)
    next(steps)
    assert layer.weight.numel() == layer.lora_a.numel() == 0, "gathered only while it computes"
    assert len(list(steps)) == plan.steps - 1
    merge(adapters)
    assert functional.linear is linear
    assert {name: id(parameter) for name, parameter in vlm.model.named_parameters()} == own
    for module in vlm.model.modules():
        assert type(module._parameters) is dict
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


@pytest.mark.parametrize("where", ["ressa.repair.loop.Engine", "torch.optim.AdamW.step"])
def test_memory_that_ends_as_the_engine_is_made_or_updates_asks_for_half_the_questions(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_much(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("no room for moments")

    monkeypatch.setattr(where, too_much)
    with pytest.raises(RepairError, match=r"no room for moments.*micro_batch to half") as caught:
        repaired(repair_plan(steps=1))
    assert caught.value.failure == "oom"


def test_deepspeed_is_configured_from_the_plan() -> None:
    plan = repair_plan(batch_size=128, micro_batch=20, zero_stage=2, clip=0.5)
    assert deepspeed_config(plan, world_size=2, weights=1000) == {
        "train_micro_batch_size_per_gpu": 16,
        "gradient_accumulation_steps": 4,
        "gradient_clipping": 0.5,
        "zero_optimization": {"stage": 2, "reduce_bucket_size": 1000},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": False},
        "fp16": {"enabled": False},
        "steps_per_print": None,
        "wall_clock_breakdown": False,
    }
    whole = deepspeed_config(repair_plan(batch_size=128, clip=0.0), world_size=1, weights=10**9)
    assert whole["train_micro_batch_size_per_gpu"] == 128
    assert whole["gradient_accumulation_steps"] == 1
    assert whole["gradient_clipping"] == 0.0
    assert whole["zero_optimization"]["reduce_bucket_size"] == 500_000_000
