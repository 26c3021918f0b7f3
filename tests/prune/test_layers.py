import dataclasses
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from ressa.catalog import METHODS
from ressa.errors import InfeasibleAllocation, PruneError
from ressa.prune import (
    LayerStatistics,
    Pruned,
    PrunedLayers,
    PruneMethod,
    Statistics,
    apply_masks,
    count_zeros,
    keep_mask,
    prune_tower,
)
from ressa.prune.dsnot import DSnoT
from ressa.prune.magnitude import Magnitude
from ressa.prune.random import Random
from ressa.prune.sparsegpt import SparseGPT
from ressa.prune.wanda import Wanda
from ressa.sparsity import LayerShape, Target

LAYERS = tuple(
    LayerShape(name=name, tower="vision", block=block, rows=rows, columns=columns)
    for block, (name, rows, columns) in enumerate([("fc1", 12, 16), ("fc2", 6, 24)])
)
HALF = Target.parse("0.5")


@pytest.fixture
def tower() -> nn.ModuleDict:
    torch.manual_seed(0)
    layers = {layer.name: nn.Linear(layer.columns, layer.rows) for layer in LAYERS}
    return nn.ModuleDict(layers | {"head": nn.Linear(8, 8)})


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {layer.name: torch.randn(40, layer.columns).double() + 0.3 for layer in LAYERS}


@pytest.fixture
def statistics(inputs) -> Statistics:
    return Statistics(
        {
            name: LayerStatistics(
                samples=4,
                tokens=40,
                sums=rows.sum(dim=0),
                square_sums=rows.square().sum(dim=0),
                gram=rows.T @ rows,
            )
            for name, rows in inputs.items()
        }
    )


def choose(
    tower: nn.Module, method: PruneMethod, target: Target = HALF, **options
) -> dict[str, Tensor]:
    return prune_tower(tower, LAYERS, method, target=target, **options).masks


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


@pytest.mark.parametrize(("sparsity", "zeros"), [("0.29", 97), ("0.3", 101), ("1/3", 112)])
@pytest.mark.parametrize("group", ["row", "matrix", "tower"])
def test_a_tower_loses_exactly_its_share(tower, sparsity, zeros, group):
    pruned = prune_tower(tower, LAYERS, Magnitude(), target=Target.parse(sparsity), group=group)
    assert sum(report.zeros for report in pruned.layers) == zeros  # of 336, halves up
    assert sum(int((~mask).sum()) for mask in pruned.masks.values()) == zeros


def test_reports_say_what_was_asked_and_what_was_taken(tower):
    fc1, fc2 = prune_tower(tower, LAYERS, Magnitude(), target=HALF, group="matrix").layers
    assert (fc1.name, fc1.tower, fc1.block, fc1.rows, fc1.columns) == ("fc1", "vision", 0, 12, 16)
    assert (fc1.method, fc1.group, fc1.pattern) == ("magnitude", "matrix", None)
    assert (fc1.requested_zeros, fc1.zeros, fc2.requested_zeros, fc2.zeros) == (96, 96, 72, 72)


def test_reports_of_a_pattern_name_it(tower):
    target = Target.parse("1:4")
    for report in prune_tower(tower, LAYERS, Magnitude(), target=target).layers:
        assert (report.group, report.pattern) == ("pattern", "1:4")
        assert report.requested_zeros == report.zeros == report.rows * report.columns * 3 // 4


@pytest.mark.parametrize("target", ["0.29", "2:4"])
def test_a_pruned_tower_comes_back_from_bytes(tower, target):
    pruned = prune_tower(tower, LAYERS, Magnitude(), target=Target.parse(target))
    restored = PrunedLayers.from_bytes(pruned.to_bytes())
    assert restored.layers == pruned.layers
    assert same(restored.masks, pruned.masks)
    assert restored.to_bytes() == pruned.to_bytes()


def test_every_method_of_the_catalog_answers_to_its_name():
    for name in METHODS:
        method = METHODS[name]()
        assert isinstance(method, PruneMethod)
        assert method.name == name


def test_a_pattern_that_does_not_divide_a_layer_is_refused(tower):
    with pytest.raises(InfeasibleAllocation, match="fc2"):
        choose(tower, Magnitude(), Target.parse("8:16"))


def test_a_method_that_needs_statistics_says_so(tower):
    with pytest.raises(PruneError, match="calibrate"):
        choose(tower, Wanda())


def test_a_weight_that_is_not_a_number_names_its_layer(tower, statistics):
    tower["fc2"].weight.data[0, 0] = torch.nan
    with pytest.raises(PruneError, match="fc2") as caught:
        choose(tower, Wanda(), statistics=statistics)
    assert caught.value.failure == "numeric"


def test_a_saliency_of_the_wrong_shape_names_its_layer(tower):
    class Transposed(PruneMethod):
        name = "transposed"

        def saliency(self, weight, statistics, generator):
            return weight.T

    with pytest.raises(PruneError, match="fc1"):
        choose(tower, Transposed())


def test_random_masks_depend_on_seed_and_layer_name_alone(tower):
    alone = prune_tower(tower, LAYERS[1:], Random(), target=HALF, seed=1).masks["fc2"]
    assert alone.equal(choose(tower, Random(), seed=1)["fc2"])
    assert not alone.equal(choose(tower, Random(), seed=2)["fc2"])


def test_random_masks_of_two_layers_differ():
    twins = nn.ModuleDict({"a": nn.Linear(16, 16), "b": nn.Linear(16, 16)})
    layers = [LayerShape(name=n, tower="vision", block=0, rows=16, columns=16) for n in "ab"]
    masks = prune_tower(twins, layers, Random(), target=HALF).masks
    assert not masks["a"].equal(masks["b"])


def test_random_pruning_favours_no_column():
    wide = nn.ModuleDict({"wide": nn.Linear(16, 4000)})
    layers = [LayerShape(name="wide", tower="vision", block=0, rows=4000, columns=16)]
    (mask,) = prune_tower(wide, layers, Random(), target=HALF).masks.values()
    # A column's share has a standard deviation of about 0.8 %.
    assert mask.float().mean(dim=0).sub(0.5).abs().max() < 0.04


def test_pruned_weights_are_plus_zero_and_nothing_else_changes(tower):
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    masks = choose(tower, Magnitude())
    apply_masks(tower, masks)
    for name, mask in masks.items():
        weight = tower[name].weight
        assert not torch.signbit(weight[~mask]).any() and not weight[~mask].any()
        assert weight[mask].equal(before.pop(f"{name}.weight")[mask])
    assert all(tower.state_dict()[name].equal(value) for name, value in before.items())


def test_counts_tell_pruned_zeros_from_others(tower):
    tower["fc1"].weight.data[:, 5] = 0
    masks = {"fc1": torch.ones(12, 16, dtype=torch.bool)}
    masks["fc1"][:3] = False
    apply_masks(tower, masks)
    fc1, fc2 = count_zeros(tower, LAYERS, masks)
    assert (fc1.weights, fc1.pruned, fc1.zeros, fc1.violations) == (192, 48, 57, 0)
    assert (fc2.weights, fc2.pruned, fc2.zeros, fc2.violations) == (144, 0, 0, 0)


@pytest.mark.parametrize("value", [1e-30, -0.0, float("nan")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pruned_weight_that_is_not_exactly_zero_is_counted(tower, value, dtype):
    masks = choose(tower.to(dtype), Magnitude())
    apply_masks(tower, masks)
    row, column = (~masks["fc2"]).nonzero()[4]
    tower["fc2"].weight.data[row, column] = value
    assert [count.violations for count in count_zeros(tower, LAYERS, masks)] == [0, 1]


def test_a_target_solved_from_a_budget_is_met_to_the_weight(tower):
    pruned = prune_tower(tower, LAYERS, Magnitude(), target=Target(Fraction(97, 336)))
    assert sum(report.zeros for report in pruned.layers) == 97


class Doubling(PruneMethod):
    """Keeps as magnitude does, and doubles what stays."""

    name = "doubling"

    def saliency(self, weight, statistics, generator):
        return weight.abs()

    def prune(self, weight, statistics, removal, generator):
        keep = keep_mask(self.saliency(weight, statistics, generator), removal)
        return Pruned(keep, 2 * weight)


def test_new_weights_are_applied_and_nothing_else_changes(tower):
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    pruned = prune_tower(tower, LAYERS, Doubling(), target=HALF)
    assert same(tower.state_dict(), before)
    PrunedLayers.from_bytes(pruned.to_bytes()).apply(tower)
    for name, mask in pruned.masks.items():
        dense, weight = before.pop(f"{name}.weight"), tower[name].weight
        assert weight[mask].equal(2 * dense[mask])
        assert not torch.signbit(weight[~mask]).any() and not weight[~mask].any()
    assert all(tower.state_dict()[name].equal(value) for name, value in before.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_new_weights_come_back_from_bytes(tower, dtype):
    pruned = prune_tower(tower.to(dtype), LAYERS, Doubling(), target=Target.parse("0.29"))
    restored = PrunedLayers.from_bytes(pruned.to_bytes())
    assert same(restored.weights, pruned.weights)
    assert all(weight.dtype == dtype for weight in restored.weights.values())


def test_a_new_weight_that_is_not_finite_names_its_layer(tower):
    tower["fc2"].weight.data[0] = torch.finfo(torch.float32).max
    with pytest.raises(PruneError, match=r"fc2.*not finite") as caught:
        choose(tower, Doubling())
    assert caught.value.failure == "numeric"


@pytest.mark.parametrize("method", [Magnitude(), Wanda(), SparseGPT(), DSnoT()])
@pytest.mark.parametrize("target", [HALF, Target.parse("2:4")], ids=str)
def test_reports_say_how_much_of_the_output_is_lost(tower, inputs, statistics, method, target):
    before = {name: tower[name].weight.detach().double() for name in inputs}
    pruned = prune_tower(tower, LAYERS, method, target=target, statistics=statistics)
    pruned.apply(tower)
    for report in pruned.layers:
        rows, dense = inputs[report.name], before[report.name]
        left = tower[report.name].weight.detach()
        lost = (rows @ (dense - left).T).square().sum()
        expected = float(lost / (rows @ dense.T).square().sum())
        assert report.output_error == pytest.approx(expected, rel=1e-9)
        assert report.seconds > 0


def test_without_gram_matrices_no_output_error_is_claimed(tower):
    pruned = prune_tower(tower, LAYERS, Magnitude(), target=HALF)
    assert [report.output_error for report in pruned.layers] == [None, None]


def test_a_method_that_needs_gram_matrices_says_so(tower, statistics):
    plain = {n: dataclasses.replace(s, gram=None) for n, s in statistics.layers.items()}
    with pytest.raises(PruneError, match="gram"):
        choose(tower, SparseGPT(), statistics=Statistics(plain))


def test_a_whole_tower_loses_its_lowest_saliencies(tower):
    tower["fc1"].weight.data *= 0.1
    pruned = prune_tower(tower, LAYERS, Magnitude(), target=Target.parse("0.6"), group="tower")
    weights = torch.cat([tower[name].weight.detach().flatten() for name in pruned.masks]).abs()
    kept = torch.cat([mask.flatten() for mask in pruned.masks.values()])
    assert int((~kept).sum()) == 202  # 0.6 of 336, halves up
    assert weights[~kept].max() < weights[kept].min()
    fc1, fc2 = pruned.layers
    assert fc1.zeros > fc2.zeros and (fc1.requested_zeros, fc2.requested_zeros) == (
        fc1.zeros,
        fc2.zeros,
    )
    assert fc1.group == "tower"


def test_equal_saliencies_of_a_whole_tower_go_in_the_order_of_the_layers(tower):
    for name in ("fc1", "fc2"):
        tower[name].weight.data.fill_(1)
    fc1, fc2 = prune_tower(tower, LAYERS, Magnitude(), target=HALF, group="tower").layers
    assert (fc1.zeros, fc2.zeros) == (168, 0)
