"""Repair: a SparseLoRA layer and a whole step of a pocket model, ours beside PEFT and plain torch.

A layer's step is forward and backward with r = 16, an input that needs a gradient, half of the
weights pruned at random, fp32. Beside ours stand, on the same weights:

- PEFT's LoRA, which cannot keep a zero, dropout 0;
- masked full fine-tuning: autograd, and a hook that masks the weight's gradient;
- the paper's form, as its code has it (Shwai-He/RESSA, lavis/peft/src/peft/tuners/lora.py at
  17d7897): autograd through (W + B·A·s)·M, M a bool tensor.

Times are process CPU seconds, in turns. Memory is the highest number of bytes that torch's CPU
allocator had handed out within one step and not got back, weights and gradients of the step before
not counted, from the allocator's own events (`torch.profiler`, `profile_memory`).

The whole step is that of `ressa.repair.train`, DeepSpeed included; the peer's is the same batches,
teacher and loss in plain torch with PEFT's LoRA on the same layers at the same ranks.
"""

import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from itertools import islice
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.report import Row, interleaved
from ressa.data.easy_vqa import EasyVQA
from ressa.models import VLM, load_vlm
from ressa.repair import Adapters, Teacher, attach, teacher_parts, train
from ressa.repair.batches import global_batches
from ressa.repair.distillation import loss_parts
from ressa.repair.sparselora import SparseLoRALinear
from ressa.spec import Repair, spec_from_mapping

RANK = 16
SCALE = 1.0
SHAPES = [(1024, 1024), (2048, 5632), (4096, 4096)]
TOKENS = [512, 2048, 4096]
MODELS = ["pocket-blip2", "pocket-llava"]
STEPS = 12  # of a pocket model; the first is not counted

Step = Callable[[], object]


def rows(given: Namespace) -> Iterator[Row]:
    """Measures all that the peers at hand allow; says which are missing."""
    try:
        import peft
    except ImportError:
        print("peft is not installed: its rows are left out.")
        peft = None  # type: ignore[assignment]
    for out, columns in SHAPES:
        for tokens in TOKENS:
            yield from _layer(out, columns, tokens, peft)
    for model in MODELS:
        yield from _whole_step(model, peft)


def _layer(out: int, columns: int, tokens: int, peft: Any) -> Iterator[Row]:
    steps, forget = _layer_steps(out, columns, tokens, peft)
    rounds = 3 if tokens * out * columns > 2**34 else 5 if tokens * out * columns > 2**32 else 15
    for step in steps.values():
        step()
    taken = interleaved(rounds, **{name: lambda s=step: s for name, step in steps.items()})
    peaks = {name: _peak_mib(step, forget) for name, step in steps.items()}
    shape, wide = f"{out}×{columns}, {tokens} tokens", min(out, columns) >= 2048
    size = "layer ≥ 2048 wide" if wide else "small layer"
    ceilings: dict[str, tuple[float, float]] = {}
    if wide:  # how many times the peer's time ours may be: at most, and wished for
        ceilings = {"masked fine-tuning": (1.15, 1.15), "the paper's form": (0.95, 0.7)}
    for peer, seconds in taken.items():
        if peer == "ours":
            continue
        ceiling = ceilings.get(peer)
        yield Row(
            name=f"SparseLoRA step, {size}: time", shape=shape, peer_name=peer,
            ours=taken["ours"] * 1e3, peer=seconds * 1e3, unit="ms", rounds=rounds,
            floor=ceiling and 1 / ceiling[0], goal=ceiling and 1 / ceiling[1],
        )  # fmt: skip
        limit = 1 / 1.1 if peer == "PEFT LoRA" else None
        yield Row(
            name="SparseLoRA step: peak memory", shape=shape, peer_name=peer,
            ours=peaks["ours"], peer=peaks[peer], unit="MiB", rounds=1, floor=limit, goal=limit,
        )  # fmt: skip


def _layer_steps(
    out: int, columns: int, tokens: int, peft: Any
) -> tuple[dict[str, Step], Callable[[], None]]:
    """Forward and backward of one layer in each form, and what forgets all gradients."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=generator) * scale

    keep = torch.rand(out, columns, generator=generator) < 0.5
    weight, bias = draw(out, columns, scale=columns**-0.5) * keep, draw(out)
    lora_a, lora_b = nn.Parameter(draw(RANK, columns, scale=0.01)), nn.Parameter(draw(out, RANK))
    full = nn.Parameter(weight.clone())
    full.register_hook(lambda gradient: gradient * keep)
    x, grad_output = draw(tokens, columns).requires_grad_(), draw(tokens, out)
    ours = SparseLoRALinear.adopt(
        _linear(weight, bias), keep, rank=RANK, scale=SCALE, generator=generator
    )
    ours.lora_a, ours.lora_b = lora_a, lora_b
    trained = [x, lora_a, lora_b, full]
    forward: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: ours(x),
        "masked fine-tuning": lambda: functional.linear(x, full, bias),
        "the paper's form": lambda: functional.linear(
            x, (weight + lora_b @ lora_a * SCALE) * keep, bias
        ),
    }
    if peft is not None:
        linear = _linear(weight, bias)
        config = peft.LoraConfig(
            r=RANK, lora_alpha=SCALE * RANK, lora_dropout=0.0, target_modules=["0"]
        )
        adapted = peft.get_peft_model(nn.Sequential(linear), config)
        trained += adapted.parameters()
        forward["PEFT LoRA"] = lambda: adapted(x)

    def forget() -> None:
        for tensor in trained:
            tensor.grad = None

    def step_of(compute: Callable[[], Tensor]) -> Step:
        def step() -> None:
            forget()
            compute().backward(grad_output)

        return step

    return {name: step_of(compute) for name, compute in forward.items()}, forget


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.load_state_dict({"weight": weight, "bias": bias})
    return linear


def _peak_mib(step: Step, forget: Callable[[], None]) -> float:
    forget()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        step()
    now = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak / 2**20


def _whole_step(name: str, peft: Any) -> Iterator[Row]:
    spec = spec_from_mapping(
        {"ressa": 1, "model": name, "space": {"vision_sparsity": 0.5, "language_sparsity": 0.5}}
    ).spec
    plan = spec.repair.model_copy(update={"steps": STEPS})
    task = EasyVQA()
    examples = task.examples("train", 2000, seed=0)
    parts = teacher_parts(load_vlm(spec.model), examples, task)
    teacher = Teacher({id: rows for part in parts for id, rows in part.rows.items()})
    steps = {"ours": _our_steps, "plain torch, SparseLoRA": _plain_steps}
    if peft is not None:
        steps["plain torch, PEFT LoRA"] = lambda *given: _plain_steps(*given, peft=peft)
    running = {
        form: start(load_vlm(spec.model), examples, task, teacher, plan)
        for form, start in steps.items()
    }
    taken: dict[str, list[float]] = {form: [] for form in running}
    for number in range(STEPS):
        for form, following in running.items():
            began = time.process_time()
            next(following)
            if number:  # the first reads the pictures and starts DeepSpeed
                taken[form].append(time.process_time() - began)
    for form, seconds in taken.items():
        if form != "ours":
            limit = 1 / 1.3 if "PEFT" in form else None  # without: DeepSpeed's own overhead
            yield Row(
                name="whole repair step", shape=f"{name}, batch {plan.batch_size}",
                peer_name=form, ours=median(taken["ours"]) * 1e3, peer=median(seconds) * 1e3,
                unit="ms", rounds=STEPS - 1, floor=limit, goal=limit,
            )  # fmt: skip


def _our_steps(vlm: VLM, examples: Any, task: Any, teacher: Teacher, plan: Repair) -> Iterator[Any]:
    adapters = attach(vlm.model, _prune(vlm), vlm.towers, plan, seed=0)
    return iter(train(vlm, adapters, examples, task, teacher, plan, seed=0))


def _plain_steps(
    vlm: VLM, examples: Any, task: Any, teacher: Teacher, plan: Repair, peft: Any = None
) -> Iterator[None]:
    """The same steps without DeepSpeed: our adapters, or PEFT's on the same layers."""
    masks = _prune(vlm)
    if peft is None:
        trained = list(attach(vlm.model, masks, vlm.towers, plan, seed=0).parameters())
    else:
        trained = _peft_lora(vlm, masks, plan, peft)
    optimizer = torch.optim.AdamW(trained, lr=plan.learning_rate, weight_decay=0.0)
    batches = list(islice(global_batches(examples, plan.batch_size, seed=0), plan.steps))
    encoded = vlm.encode(examples, task.image, answers=True)
    for groups in batches:
        rows = [row for group in groups for row in group]
        batch = encoded.select(rows)
        assert batch.labels is not None
        optimizer.zero_grad()
        dense = teacher.of([examples[row] for row in rows])
        ce, kl = loss_parts(
            vlm, batch, dense, plan.distillation,
            tokens=float((batch.labels >= 0).sum()), questions=float(len(rows)),
        )  # fmt: skip
        assert kl is not None
        torch.lerp(ce, kl, plan.distillation.weight).backward()
        torch.nn.utils.clip_grad_norm_(trained, plan.clip)
        optimizer.step()
        yield


def _peft_lora(vlm: VLM, masks: Any, plan: Repair, peft: Any) -> list[nn.Parameter]:
    """Puts PEFT's LoRA on the layers that we would train, at our ranks."""
    ours: Adapters = attach(vlm.model, masks, vlm.towers, plan, seed=0)
    ranks = {name: getattr(plan.rank, part) for name, part in ours.parts.items()}
    for layer in ours.layers.values():
        layer.leave()
    config = peft.LoraConfig(
        r=max(ranks.values()), lora_alpha=plan.alpha, lora_dropout=0.0,
        target_modules=list(ranks), rank_pattern=ranks,
    )  # fmt: skip
    peft.inject_adapter_in_model(config, vlm.model)
    return [parameter for parameter in vlm.model.parameters() if parameter.requires_grad]


def _prune(vlm: VLM) -> dict[str, Tensor]:
    """Prunes half of each prunable layer, by magnitude."""
    masks = {}
    for layer in vlm.towers.inventory.layers:
        weight = vlm.model.get_submodule(layer.name).weight.data
        masks[layer.name] = weight.abs() > weight.abs().median()
        weight.masked_fill_(~masks[layer.name], 0)
    return masks
