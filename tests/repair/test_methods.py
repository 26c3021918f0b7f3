"""What holds for every repair method: exact gradients, zeros kept, nothing else touched."""

import pytest
import torch
from pruned import dense_vlm, prune, questions, repair_plan, state, task, teacher_logits
from torch import Tensor, nn
from torch.nn import functional

from ressa.errors import RepairError, SpecError
from ressa.repair import (
    REPAIR_METHODS,
    AdaptedLinear,
    attach,
    bits,
    merge,
    train,
    trained_layers,
)
from ressa.repair.lora import LoRALinear
from ressa.repair.sparselora import StraightThroughLinear
from ressa.repair.spp import row_vectors
from ressa.spec import Rank, spec_from_mapping

IN, OUT, RANK, SCALE = 13, 6, 3, 0.7  # IN is no multiple of eight: a row's last byte is padded
METHODS = sorted(REPAIR_METHODS)
EXACT = sorted({*METHODS} - {"straight_through"})


@pytest.fixture(params=[1 << 18, 25], ids=["whole", "by rows"], autouse=True)
def runs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rebuilds weights whole, and a row at a time."""
    monkeypatch.setattr(bits, "_LEAST", request.param)
    monkeypatch.setattr(bits, "_MOST", request.param)
    monkeypatch.setattr(bits, "_TILE", request.param // 2)


@pytest.fixture
def half() -> Tensor:
    """A mask of about half of the weights."""
    return torch.rand(OUT, IN, generator=torch.Generator().manual_seed(2)) < 0.5


def adapted(
    method: str, mask: Tensor | None, dtype: torch.dtype = torch.float64, *, trained: bool = True
) -> AdaptedLinear:
    torch.manual_seed(0)
    linear = nn.Linear(IN, OUT, dtype=dtype)
    if mask is not None:
        linear.weight.data.masked_fill_(~mask, 0)
    generator = torch.Generator().manual_seed(1)
    layer = REPAIR_METHODS[method].adopt(linear, mask, rank=RANK, scale=SCALE, generator=generator)
    for name, parameter in layer.trained.items() if trained else ():
        if name != "weight":
            parameter.data.normal_(generator=generator)
    return layer


def plainly(layer: AdaptedLinear, mask: Tensor) -> Tensor:
    """The weight that a method's formula gives, for autograd to differentiate."""
    if layer.trains == ("weight",):
        return layer.weight * mask
    if layer.trains == ("spp_alpha", "spp_beta"):
        group = torch.arange(OUT) * len(layer.spp_alpha) // OUT
        return layer.weight * (1 + SCALE * layer.spp_alpha[group] * layer.spp_beta[:, None])
    update = SCALE * layer.lora_b @ layer.lora_a
    return layer.weight + (update if type(layer) is LoRALinear else mask * update)


def inputs(dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, 5, IN, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("method", EXACT)
def test_outputs_and_gradients_are_those_of_the_formula(
    method: str, masked: bool, half: Tensor
) -> None:
    mask = half if masked else None
    layer, plain = adapted(method, mask), adapted(method, mask)
    x, plain_x = inputs().requires_grad_(), inputs().requires_grad_()
    output = layer(x)
    weight = plainly(plain, half if masked else torch.ones_like(half))
    wanted = functional.linear(plain_x, weight, plain.bias)
    torch.testing.assert_close(output, wanted, rtol=1e-12, atol=1e-12)
    output.square().sum().backward()
    wanted.square().sum().backward()
    torch.testing.assert_close(x.grad, plain_x.grad, rtol=1e-11, atol=1e-11)
    for name, parameter in layer.trained.items():
        torch.testing.assert_close(parameter.grad, plain.trained[name].grad, rtol=1e-11, atol=1e-11)


def test_straight_through_takes_the_gradient_that_no_mask_would_give(half: Tensor) -> None:
    layer, exact = adapted("straight_through", half), adapted("sparselora", half)
    x = inputs().requires_grad_()
    torch.testing.assert_close(layer(x), exact(x))
    grad_output = torch.randn(2, 5, OUT, dtype=torch.float64)
    (grad_x,) = torch.autograd.grad(exact(x), x, grad_output)
    layer(x).backward(grad_output)
    torch.testing.assert_close(x.grad, grad_x)
    whole = grad_output.reshape(-1, OUT).T @ x.detach().reshape(-1, IN)
    assert isinstance(layer, StraightThroughLinear)
    torch.testing.assert_close(layer.lora_a.grad, SCALE * layer.lora_b.T @ whole)
    torch.testing.assert_close(layer.lora_b.grad, SCALE * whole @ layer.lora_a.T)


@pytest.mark.parametrize("method", METHODS)
def test_a_model_may_change_an_output_in_place(method: str, half: Tensor) -> None:
    layer = adapted(method, half)
    layer(inputs().requires_grad_()).add_(1).sum().backward()  # as Llama 4's mixtures do
    assert all(parameter.grad is not None for parameter in layer.trained.values())


@pytest.mark.parametrize("method", METHODS)
def test_before_training_every_method_is_the_pruned_layer(method: str, half: Tensor) -> None:
    layer = adapted(method, half, trained=False)
    weight = layer.weight.detach().clone()
    wanted = functional.linear(inputs(), weight, layer.bias)
    torch.testing.assert_close(layer(inputs()), wanted, rtol=1e-14, atol=1e-14)
    layer.merge()
    assert type(layer) is nn.Linear
    assert torch.equal(layer.weight, weight)
    assert not any(parameter.requires_grad for parameter in layer.parameters())
    assert {*layer.state_dict()} == {"weight", "bias"}


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_of_a_model_in_half_precision_puts_out_half_precision(method: str) -> None:
    """Though a T5 asks its `wo` for the type of what it hands it: residuals would be fp32 then."""
    vlm = dense_vlm("blip2", torch.bfloat16)
    masks = prune(vlm)
    batch = vlm.encode(questions(6), task().image, answers=True)
    adapters = attach(vlm.model, masks, vlm.towers, repair_plan(method=method), seed=0)
    seen = []
    for layer in adapters.layers.values():
        layer.register_forward_hook(lambda layer, args, output: seen.append(output.dtype))
    vlm.answer_logits(batch)
    assert {*seen} == {torch.bfloat16}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", METHODS)
def test_a_merge_keeps_every_zero_positive(method: str, dtype: torch.dtype, half: Tensor) -> None:
    layer = adapted(method, half, dtype)
    for parameter in layer.trained.values():
        parameter.data.copy_(-parameter.data.abs())  # also: -0.0 where masked_finetune is pruned
    layer.merge()
    assert layer.weight.dtype == dtype
    pruned = layer.weight[~half]
    assert torch.equal(pruned.view(torch.int8), torch.zeros_like(pruned).view(torch.int8))
    assert layer.weight[half].ne(0).float().mean() > 0.9


@pytest.mark.parametrize("method", sorted({*METHODS} - {"lora"}))
def test_a_merged_layer_answers_as_it_did_in_training(method: str, half: Tensor) -> None:
    layer = adapted(method, half)
    before = layer(inputs())
    layer.merge()
    torch.testing.assert_close(layer(inputs()), before, rtol=1e-12, atol=1e-12)
    once = layer.weight.clone()
    generator = torch.Generator()
    again = REPAIR_METHODS[method].adopt(layer, half, rank=RANK, scale=SCALE, generator=generator)
    again.merge()
    assert torch.equal(layer.weight, once)


def test_lora_is_dense_until_its_merge_prunes_it_again(half: Tensor) -> None:
    layer = adapted("lora", half)
    assert isinstance(layer, LoRALinear)
    dense = layer.weight + SCALE * layer.lora_b @ layer.lora_a
    unmerged = layer(inputs())
    torch.testing.assert_close(unmerged, functional.linear(inputs(), dense, layer.bias))
    layer.merge()
    torch.testing.assert_close(layer.weight, dense * half)
    assert (layer(inputs()) - unmerged).abs().max() > 0.1


@pytest.mark.parametrize("method", ["sparselora", "straight_through", "masked_finetune", "spp"])
def test_nothing_is_learnt_where_nothing_is_kept(method: str) -> None:
    layer = adapted(method, torch.zeros(OUT, IN, dtype=torch.bool))
    output = layer(inputs())
    assert torch.equal(output, layer.bias.expand_as(output))
    if method == "straight_through":
        return  # its gradient knows of no mask
    output.square().sum().backward()
    assert not any(parameter.grad.any() for parameter in layer.trained.values())


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_adamw_leaves_the_zeros_of_masked_finetuning_alone(half: Tensor, decay: float) -> None:
    layer = adapted("masked_finetune", half)
    start = layer.weight.detach().clone()
    optimizer = torch.optim.AdamW(layer.trained.values(), lr=0.1, weight_decay=decay)
    for _ in range(5):
        optimizer.zero_grad()
        layer(inputs()).square().sum().backward()
        optimizer.step()
        assert not layer.weight[~half].any()
    assert (layer.weight != start)[half].all()


def test_a_half_precision_weight_is_trained_in_fp32_and_rounded_once(half: Tensor) -> None:
    layer = adapted("masked_finetune", half, torch.bfloat16)
    assert layer.weight.dtype == torch.float32
    assert layer(inputs(torch.bfloat16)).dtype == torch.bfloat16
    layer.weight.data[half] += 2**-14  # below what bfloat16 holds beside most weights
    wanted = (layer.weight.detach() * half).bfloat16()
    layer.merge()
    assert torch.equal(layer.weight, wanted)


def test_dropout_thins_what_the_update_sees_and_nothing_else(half: Tensor) -> None:
    layer = adapted("lora", half)
    assert isinstance(layer, LoRALinear)
    layer.dropout, layer.training = 0.5, True
    x = inputs()
    torch.manual_seed(7)
    got = layer(x)
    torch.manual_seed(7)
    thinned = functional.dropout(x, 0.5)
    wanted = functional.linear(x, layer.weight, layer.bias)
    wanted = wanted + SCALE * thinned @ layer.lora_a.T @ layer.lora_b.T
    torch.testing.assert_close(got, wanted)
    layer.training = False
    assert torch.equal(layer(x), layer(x))


@pytest.mark.parametrize("method", sorted({*METHODS} - {"lora"}))
def test_dropout_is_refused_where_it_has_no_place(method: str) -> None:
    space = {"vision_sparsity": 0.5, "language_sparsity": 0.5}
    repair = {"method": method, "dropout": 0.1}
    with pytest.raises(SpecError, match=f"{method} has no place for dropout"):
        spec_from_mapping({"ressa": 1, "model": "pocket-blip2", "space": space, "repair": repair})


def test_dropout_acts_in_training_and_is_the_same_twice() -> None:
    def curve(dropout: float) -> list[float]:
        vlm = dense_vlm()
        teacher = teacher_logits(vlm, questions(), task())
        plan = repair_plan(method="lora", dropout=dropout, steps=3)
        adapters = attach(vlm.model, prune(vlm), vlm.towers, plan, seed=0)
        steps = train(vlm, adapters, questions(), task(), teacher, plan, seed=0)
        losses = [step.loss for step in steps]
        assert not any(layer.training for layer in adapters.layers.values())
        return losses

    thinned = curve(0.5)
    torch.randn(3)  # whatever was drawn before
    assert curve(0.5) == thinned
    assert curve(0.0) != thinned


@pytest.mark.parametrize("method", METHODS)
def test_what_is_not_trained_stays_bit_identical_and_zeros_stay(method: str) -> None:
    vlm = dense_vlm()
    teacher = teacher_logits(vlm, questions(), task())
    masks = prune(vlm)
    before = state(vlm.model)
    plan = repair_plan(method=method, train=("language",), targets=("q", "wo"), steps=2)
    adapters = attach(vlm.model, masks, vlm.towers, plan, seed=0)
    trained = {f"{name}.weight" for name in adapters.layers}
    assert {name.split(".")[-2] for name in trained} == {"q", "wo"}
    list(train(vlm, adapters, questions(), task(), teacher, plan, seed=0))
    merge(adapters)
    after = vlm.model.state_dict()
    assert list(after) == list(before)
    for name, weight in before.items():
        assert torch.equal(after[name], weight) == (name not in trained), name
    for name, mask in masks.items():
        weight = after[f"{name}.weight"]
        assert not weight[~mask].any()
        assert not torch.signbit(weight[~mask]).any()


@pytest.mark.parametrize("method", METHODS)
def test_what_was_trained_survives_being_stored(method: str) -> None:
    def attached(seed: int) -> dict[str, Tensor]:
        vlm = dense_vlm()
        adapters = attach(vlm.model, prune(vlm), vlm.towers, repair_plan(method=method), seed=seed)
        if seed == 0:
            for parameter in adapters.parameters():
                parameter.data.mul_(1.5).add_(parameter.data != 0, alpha=0.01)
            stored.append(adapters.to_bytes())
        adapters.load(stored[0])
        merge(adapters)
        return state(vlm.model)

    stored: list[bytes] = []
    one, two = attached(0), attached(1)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_number_of_trained_weights_is_counted_by_part() -> None:
    counts = {}
    for method in METHODS:
        vlm = dense_vlm()
        masks = prune(vlm)
        plan = repair_plan(method=method, rank=Rank(vision=2, language=3, connector=1))
        counts[method] = attach(vlm.model, masks, vlm.towers, plan, seed=0).trainable_weights()
        shapes = vlm.towers.inventory.tower("language")
        by_rank = {
            "lora": sum(3 * (layer.rows + layer.columns) for layer in shapes),
            "masked_finetune": sum(int(masks[layer.name].sum()) for layer in shapes),
        }
        wanted = by_rank.get(method, by_rank["lora"])
        nearest = sum(layer.columns for layer in shapes) / 2 if method == "spp" else 0
        assert abs(counts[method]["language"] - wanted) <= nearest
    assert counts["sparselora"] == counts["lora"] == counts["straight_through"]
    assert {*counts["lora"]} == {"vision", "connector", "language"}


def test_a_trained_tower_without_a_target_is_refused() -> None:
    vlm = dense_vlm()
    plan = repair_plan(targets=("wo",))
    with pytest.raises(RepairError, match=r"is a layer of vision\. Its layers end in .*fc1"):
        attach(vlm.model, prune(vlm), vlm.towers, plan, seed=0)


def test_zero_3_refuses_layers_that_stay_in_single_precision_before_any_work() -> None:
    """As transformers loads T5 in float16: its wo stays in float32."""
    vlm = dense_vlm(dtype=torch.bfloat16)
    plan = repair_plan(zero_stage=3, dtype="bfloat16")
    assert trained_layers(vlm.model, vlm.towers, plan)
    wo = [name for name, _ in vlm.model.named_modules() if name.endswith(".wo")]
    for name in wo:
        vlm.model.get_submodule(name).float()
    with pytest.raises(RepairError, match=rf"{wo[0]} is float32 \(of {len(wo)} .*zero_stage to 2"):
        attach(vlm.model, None, vlm.towers, plan, seed=0)
    assert type(vlm.model.get_submodule(wo[0])) is torch.nn.Linear
    two = plan.model_copy(update={"zero_stage": 2})
    assert attach(vlm.model, None, vlm.towers, two, seed=0).layers.keys() >= {*wo}


def test_packed_masks_unpack_to_what_they_were(half: Tensor) -> None:
    assert torch.equal(bits.unpack(bits.pack(half), IN).bool(), half)
    assert bits.pack(half).numel() == OUT * 2


@pytest.mark.parametrize("method", EXACT)
def test_half_precision_follows_fp32(method: str, half: Tensor) -> None:
    layer, wide = adapted(method, half, torch.bfloat16), adapted(method, half, torch.float32)
    wide.load_state_dict(layer.state_dict())
    x, wide_x = inputs(torch.bfloat16).requires_grad_(), inputs(torch.float32).requires_grad_()
    for adapter, given in ((layer, x), (wide, wide_x)):
        adapter(given).float().square().sum().backward()
    assert x.grad is not None and wide_x.grad is not None
    assert (x.grad - wide_x.grad).norm() < 0.02 * wide_x.grad.norm()
    for name, parameter in layer.trained.items():
        assert parameter.grad.dtype == torch.float32
        wanted = wide.trained[name].grad
        assert (parameter.grad - wanted).norm() < 0.02 * wanted.norm()


@pytest.mark.parametrize("method", ["sparselora", "straight_through", "spp"])
def test_a_step_never_holds_a_whole_weight(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bits, "_LEAST", 1 << 18)
    monkeypatch.setattr(bits, "_MOST", 1 << 23)
    linear = nn.Linear(1024, 1024)
    mask = linear.weight.detach() > 0
    generator = torch.Generator().manual_seed(0)
    layer = REPAIR_METHODS[method].adopt(linear, mask, rank=4, scale=1.0, generator=generator)
    x = torch.randn(64, 1024, requires_grad=True)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        layer(x).sum().backward()
    events = profile.profiler.kineto_results.events()
    largest = max(event.nbytes() for event in events if event.name() == "[memory]")
    assert 0 < largest <= mask.numel()  # a quarter of its fp32 bytes


def test_spp_trains_as_many_weights_as_lora() -> None:
    assert row_vectors(8, 64, 64) * 64 + 64 == 8 * (64 + 64)
    assert row_vectors(8, 256, 64) * 64 + 256 == 8 * (256 + 64)
    assert row_vectors(1, 256, 64) == 1


def test_spp_has_no_more_vectors_than_rows() -> None:
    linear = nn.Linear(8, 3)
    generator = torch.Generator().manual_seed(0)
    layer = REPAIR_METHODS["spp"].adopt(linear, None, rank=5, scale=1.0, generator=generator)
    assert {name: tuple(p.shape) for name, p in layer.trained.items()} == {
        "spp_alpha": (3, 8),
        "spp_beta": (3,),
    }


def test_an_update_is_scaled_by_alpha_over_its_parts_rank() -> None:
    vlm = dense_vlm()
    rank = {"vision": 2, "language": 3, "connector": 4}
    plan = repair_plan(alpha=6.0, rank=Rank(**rank))
    adapters = attach(vlm.model, prune(vlm), vlm.towers, plan, seed=0)
    for name, layer in adapters.layers.items():
        assert len(layer.lora_a) == rank[adapters.parts[name]]
        assert layer.scale == 6.0 / rank[adapters.parts[name]]
        largest = layer.lora_a.abs().max() * layer.in_features**0.5
        assert 0.9 < largest <= 1, "drawn Kaiming-uniform"
