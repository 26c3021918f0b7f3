"""SparseLoRA as method.md section 9 wants it: masked, exact, and gone after the merge."""

import pytest
import torch
from pruned import dense_vlm, prune, questions, repair_plan, state, task
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from ressa.errors import RepairError
from ressa.repair import attach, bits, merge
from ressa.repair.sparselora import SparseLoRALinear

IN, OUT, RANK, SCALE = 10, 6, 3, 0.7


def adapted(
    keep_mask: Tensor | None, *, dtype: torch.dtype = torch.float32, trained: bool = True
) -> SparseLoRALinear:
    torch.manual_seed(0)
    linear = nn.Linear(IN, OUT, dtype=dtype)
    if keep_mask is not None:
        linear.weight.data.masked_fill_(~keep_mask, 0)
    generator = torch.Generator().manual_seed(1)
    layer = SparseLoRALinear.adopt(linear, keep_mask, rank=RANK, scale=SCALE, generator=generator)
    if trained:
        layer.lora_b.data.normal_(generator=generator)
    return layer


@pytest.fixture(params=[1 << 18, 25], ids=["whole", "by rows"], autouse=True)
def runs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Rebuilds weights whole, and two rows at a time: large layers are cut, small ones are not."""
    monkeypatch.setattr(bits, "_LEAST", request.param)
    monkeypatch.setattr(bits, "_MOST", request.param)
    return int(request.param)


@pytest.fixture
def half() -> Tensor:
    """A mask of about half of the weights."""
    return torch.rand(OUT, IN, generator=torch.Generator().manual_seed(2)) < 0.5


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 5, IN, generator=torch.Generator().manual_seed(3))


def naive(layer: SparseLoRALinear, x: Tensor, keep_mask: Tensor) -> Tensor:
    weight = layer.weight + layer.scale * layer.lora_b @ layer.lora_a
    return functional.linear(x, weight * keep_mask, layer.bias)


def test_before_training_a_layer_is_the_pruned_layer_exactly(
    half: Tensor, x: Tensor, runs: int
) -> None:
    layer = adapted(half, trained=False)
    pruned = functional.linear(x, layer.weight, layer.bias)
    if runs < OUT * IN:  # products of other shapes are rounded otherwise
        torch.testing.assert_close(layer(x), pruned, rtol=1e-6, atol=1e-6)
    else:
        assert torch.equal(layer(x), pruned)
    weight = layer.weight.clone()
    layer.merge()
    assert torch.equal(layer.weight, weight)


def test_gradients_match_autograd_on_the_plain_formula(half: Tensor, x: Tensor) -> None:
    layer, plain = adapted(half), adapted(half)
    x, plain_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    layer(x).square().sum().backward()
    naive(plain, plain_x, half).square().sum().backward()
    for got, wanted in ((x, plain_x), (layer.lora_a, plain.lora_a), (layer.lora_b, plain.lora_b)):
        torch.testing.assert_close(got.grad, wanted.grad)


def test_gradients_match_the_closed_form(half: Tensor, x: Tensor) -> None:
    layer = adapted(half)
    grad_output = torch.randn(2, 5, OUT, generator=torch.Generator().manual_seed(4))
    layer(x).backward(grad_output)
    masked = half * (grad_output.reshape(-1, OUT).T @ x.reshape(-1, IN))
    torch.testing.assert_close(layer.lora_a.grad, SCALE * layer.lora_b.T @ masked)
    torch.testing.assert_close(layer.lora_b.grad, SCALE * masked @ layer.lora_a.T)


def test_gradients_match_finite_differences(half: Tensor) -> None:
    generator = torch.Generator().manual_seed(5)

    def matrix(*shape: int) -> Tensor:
        values = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return values.requires_grad_()

    layer = adapted(half, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x, a, b: functional_call(layer, {"lora_a": a, "lora_b": b}, x),
        (matrix(4, IN), matrix(RANK, IN), matrix(OUT, RANK)),
    )


def test_only_the_input_is_kept_for_backward(half: Tensor, x: Tensor) -> None:
    layer = adapted(half)
    x.requires_grad_()
    own = {t.data_ptr() for t in (x, *layer.parameters(), *layer.buffers())}
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()), lambda t: t):
        layer(x)
    assert set(kept) <= own


def test_a_merged_layer_answers_as_its_adapter_did(half: Tensor, x: Tensor) -> None:
    for mask in (half, None):
        layer = adapted(mask, dtype=torch.float64)
        before = layer(x.double())
        layer.merge()
        assert type(layer) is nn.Linear
        torch.testing.assert_close(layer(x.double()), before, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merging_keeps_every_zero(half: Tensor, dtype: torch.dtype) -> None:
    layer = adapted(half, dtype=dtype)
    layer.lora_b.data.copy_(-layer.lora_b.abs())  # products with the mask would leave -0.0
    layer.merge()
    pruned = layer.weight[~half]
    assert torch.equal(pruned.view(torch.int8), torch.zeros_like(pruned).view(torch.int8))
    assert layer.weight[half].ne(0).float().mean() > 0.9


def test_a_kept_weight_that_is_zero_still_learns(half: Tensor, x: Tensor) -> None:
    layer = adapted(half)
    row, column = half.nonzero()[0].tolist()
    layer.weight.data[row, column] = 0
    layer.merge()
    assert layer.weight[row, column] != 0


def test_a_full_mask_is_ordinary_lora(x: Tensor) -> None:
    full = torch.ones(OUT, IN, dtype=torch.bool)
    masked, ordinary = adapted(full), adapted(None)
    for layer in (masked, ordinary):
        layer(x).square().sum().backward()
    torch.testing.assert_close(masked(x), ordinary(x))
    torch.testing.assert_close(masked.lora_a.grad, ordinary.lora_a.grad)
    torch.testing.assert_close(masked.lora_b.grad, ordinary.lora_b.grad)
    masked.merge()
    ordinary.merge()
    assert torch.equal(masked.weight, ordinary.weight)


def test_an_empty_mask_leaves_the_bias_and_no_gradient(x: Tensor) -> None:
    layer = adapted(torch.zeros(OUT, IN, dtype=torch.bool))
    output = layer(x)
    assert torch.equal(output, layer.bias.expand_as(output))
    output.square().sum().backward()
    assert not layer.lora_a.grad.any()
    assert not layer.lora_b.grad.any()


def test_merging_again_without_training_changes_nothing(half: Tensor) -> None:
    layer = adapted(half)
    layer.merge()
    once = layer.weight.clone()
    generator = torch.Generator()
    SparseLoRALinear.adopt(layer, half, rank=RANK, scale=SCALE, generator=generator).merge()
    assert torch.equal(layer.weight, once)


def test_attaching_and_merging_leaves_a_plain_unchanged_model() -> None:
    vlm = dense_vlm()
    masks = prune(vlm)
    before, kinds = state(vlm.model), [type(module) for module in vlm.model.modules()]
    adapters = attach(vlm.model, masks, vlm.towers, repair_plan(), seed=0)
    assert {name for name in adapters.layers if name in masks} == set(masks)
    merge(adapters)
    after = vlm.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert [type(module) for module in vlm.model.modules()] == kinds


def test_only_adapters_of_the_listed_parts_can_be_trained() -> None:
    for parts in (("vision",), ("language", "connector")):
        vlm = dense_vlm()
        plan = repair_plan(train=parts)
        adapters = attach(vlm.model, prune(vlm), vlm.towers, plan, seed=0)
        own = {f"{layer}.weight" for layer in adapters.layers}
        assert own <= {name for part in parts for name in vlm.towers.of(part)}
        trainable = [p for p in vlm.model.parameters() if p.requires_grad]
        assert {id(p) for p in trainable} == {id(p) for p in adapters.parameters()}


def test_the_initial_a_follows_from_seed_and_name_alone() -> None:
    both, alone = dense_vlm(), dense_vlm()
    masks = prune(both)
    together = attach(both.model, masks, both.towers, repair_plan(), seed=3)
    plan = repair_plan(train=("language",))
    single = attach(alone.model, masks, alone.towers, plan, seed=3)
    for name, layer in single.layers.items():
        assert torch.equal(layer.lora_a, together.layers[name].lora_a)
    firsts = {tuple(layer.lora_a[0, :4].tolist()) for layer in single.layers.values()}
    assert len(firsts) == len(single.layers)
    other = dense_vlm()
    reseeded = attach(other.model, masks, other.towers, plan, seed=4)
    assert not torch.equal(
        next(iter(reseeded.layers.values())).lora_a, next(iter(single.layers.values())).lora_a
    )


def test_a_mask_that_prunes_nothing_is_the_dense_repair() -> None:
    vlm = dense_vlm()
    masks = prune(vlm, sparsity=0.0)
    adapters = attach(vlm.model, masks, vlm.towers, repair_plan(), seed=0)
    assert all(layer.keep_bits is None for layer in adapters.layers.values())


def test_a_trained_layer_without_a_mask_is_refused() -> None:
    vlm = dense_vlm()
    masks = prune(vlm)
    missing = masks.popitem()[0]
    with pytest.raises(RepairError, match=missing):
        attach(vlm.model, masks, vlm.towers, repair_plan(), seed=0)


def test_adapters_survive_being_stored() -> None:
    def logits(seed: int) -> Tensor:
        vlm = dense_vlm()
        adapters = attach(vlm.model, prune(vlm), vlm.towers, repair_plan(), seed=seed)
        if seed == 0:
            for parameter in adapters.parameters():
                parameter.data.normal_(std=0.1)
            stored.append(adapters.to_bytes())
        adapters.load(stored[0])
        with torch.no_grad():
            return vlm.answer_logits(vlm.encode(questions(6), task().image, answers=True))[0]

    stored: list[bytes] = []
    assert torch.equal(logits(0), logits(1))


def test_adapters_of_another_rank_are_refused() -> None:
    vlm, other = dense_vlm(), dense_vlm()
    adapters = attach(vlm.model, prune(vlm), vlm.towers, repair_plan(), seed=0)
    plan = repair_plan(train=("language",))
    fewer = attach(other.model, prune(other), other.towers, plan, seed=0)
    with pytest.raises(RepairError, match="other layers or ranks"):
        fewer.load(adapters.to_bytes())


def test_a_run_of_rows_is_cut_for_a_cpus_cache_alone() -> None:
    run = torch.empty(40, 1 << 15)
    assert [len(run[tile]) for tile in bits.tiles(run)] == [4] * 10
    assert list(bits.tiles(run.to("meta"))) == [slice(0, 40)]
