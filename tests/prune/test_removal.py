"""What each layer loses: by group, by counting, by how the tower's sparsity is split."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ressa.errors import InfeasibleAllocation
from ressa.prune import keep_mask
from ressa.prune.layerwise import owl_shares
from ressa.prune.removal import removals, requested_zeros
from ressa.sparsity import LayerShape, Pattern, Target, round_half_up, tower_zeros
from ressa.spec import Owl, TowerTarget

SIZES = [(5, 8), (3, 12), (9, 4)]
LAYERS = [
    LayerShape(name=name, tower="vision", block=block, rows=rows, columns=columns)
    for block, (name, (rows, columns)) in enumerate(zip("abc", SIZES, strict=True))
]
SALIENCIES = {
    layer.name: torch.rand(layer.rows, layer.columns, generator=torch.Generator().manual_seed(s))
    * (1 + s)
    for s, layer in enumerate(LAYERS)
}
sparsities = st.fractions(0, 1, max_denominator=100)


def wanted(sparsity: object, group: str = "row", **options) -> TowerTarget:
    return TowerTarget(method="any", group=group, target=Target.parse(sparsity), **options)


def saliency(layer: LayerShape) -> Tensor:
    return SALIENCIES[layer.name]


def lost(removal: object, layer: LayerShape) -> int:
    return int(np.sum(removal)) if not isinstance(removal, Pattern) else layer.weights // 2


@pytest.mark.parametrize("group", ["row", "matrix", "tower", "all"])
@given(sparsities)
def test_every_group_loses_the_towers_count_to_the_weight(group, sparsity):
    found = removals(LAYERS, wanted(sparsity, group), saliency=saliency)
    assert sum(map(lost, found, LAYERS)) == tower_zeros(LAYERS, Target(sparsity))
    kinds = {type(removal) for removal in found}
    assert kinds == ({np.ndarray} if group == "row" else {int})


@pytest.mark.parametrize("group", ["tower", "all"])
def test_one_threshold_takes_the_lowest_saliencies_of_all_layers(group):
    found = removals(LAYERS, wanted("0.6", group), saliency=saliency)
    together = torch.cat([SALIENCIES[layer.name].reshape(-1) for layer in LAYERS])
    threshold = together.sort().values[tower_zeros(LAYERS, Target.parse("0.6")) - 1]
    for layer, removal in zip(LAYERS, found, strict=True):
        kept = keep_mask(SALIENCIES[layer.name], removal)
        assert kept.equal(SALIENCIES[layer.name] > threshold)


@pytest.mark.parametrize("group", ["row", "matrix", "tower"])
def test_a_pattern_decides_alone(group):
    found = removals(LAYERS, wanted("2:4", group, layers=Owl(), counting="reference"))
    assert found == [Pattern(2, 4)] * 3


def test_a_pattern_that_does_not_divide_a_layer_names_it():
    with pytest.raises(InfeasibleAllocation, match=r"c \(4 inputs\)"):
        removals(LAYERS, wanted("4:8"))


def test_reference_counting_takes_the_floor_of_each_row_matrix_or_tower():
    for sparsity in ("0.3", "0.29", "0.99"):
        share = Fraction(sparsity)
        rows = removals(LAYERS, wanted(sparsity, counting="reference"))
        for layer, zeros in zip(LAYERS, rows, strict=True):
            assert set(zeros.tolist()) == {(share * layer.columns).__floor__()}
        matrices = removals(LAYERS, wanted(sparsity, "matrix", counting="reference"))
        assert matrices == [(share * layer.weights).__floor__() for layer in LAYERS]
        tower = wanted(sparsity, "tower", counting="reference")
        weights = sum(layer.weights for layer in LAYERS)
        assert sum(removals(LAYERS, tower, saliency=saliency)) == (share * weights).__floor__()


@pytest.mark.parametrize("group", ["row", "matrix", "tower"])
@pytest.mark.parametrize("sparsity", ["0.29", "2:4"])
def test_what_was_asked_is_the_exact_count_though_the_reference_takes_less(group, sparsity):
    exact, floors = wanted(sparsity, group), wanted(sparsity, group, counting="reference")
    lost_exactly = removals(LAYERS, exact, saliency=saliency)
    asked = requested_zeros(LAYERS, exact, lost_exactly)
    assert asked == list(map(lost, lost_exactly, LAYERS))
    taken = removals(LAYERS, floors, saliency=saliency)
    assert requested_zeros(LAYERS, floors, taken) == (
        asked if group != "tower" else [*map(lost, taken, LAYERS)]
    )


def test_reference_counting_is_exact_where_the_references_float_is_not():
    layer = LayerShape(name="a", tower="vision", block=0, rows=1, columns=10)
    assert int(10 * (1 - 0.9)) == 0
    (zeros,) = removals([layer], wanted("0.1", counting="reference"))
    assert zeros.tolist() == [1]


@pytest.mark.parametrize("group", ["row", "matrix"])
@given(sparsities, sparsities, sparsities)
def test_listed_layers_lose_what_the_table_says_and_the_others_the_rest(group, whole, first, last):
    table = (("a", first), ("c", last))
    listed = round_half_up(first * 40) + round_half_up(last * 36)
    left = tower_zeros(LAYERS, Target(whole)) - listed
    asked = wanted(whole, group, layers=table)
    if not 0 <= left <= 36:
        with pytest.raises(InfeasibleAllocation, match="its other layers would have sparsity"):
            removals(LAYERS, asked)
        return
    a, b, c = removals(LAYERS, asked)
    counts = [round_half_up(first * 40), left, round_half_up(last * 36)]
    assert [int(np.sum(removal)) for removal in (a, b, c)] == counts
    if group == "row":
        assert np.ptp(a) <= 1
        assert np.ptp(b) <= 1


def test_a_table_of_all_layers_must_come_to_the_towers_count():
    table = (("a", Fraction(1, 2)), ("b", Fraction(1, 4)), ("c", Fraction(3, 4)))
    zeros = [20, 9, 27]
    assert removals(LAYERS, wanted("1/2", "matrix", layers=table)) == zeros
    with pytest.raises(InfeasibleAllocation) as error:
        removals(LAYERS, wanted("0.6", "matrix", layers=table))
    assert "comes to sparsity 0.5000 (56 zeros), the tower is to lose 0.5982 (67)" in str(
        error.value
    )
    assert "ask for vision sparsity 0.5." in str(error.value)


@pytest.mark.parametrize("group", ["row", "matrix"])
def test_equal_scores_are_uniform_to_the_weight(group):
    target = Target.parse("0.37")
    shares = owl_shares(LAYERS, target, {0: 0.2, 1: 0.2, 2: 0.2}, Owl())
    split = removals(LAYERS, wanted("0.37", group, layers=Owl()), shares=shares)
    for one, other in zip(split, removals(LAYERS, wanted("0.37", group)), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("group", ["row", "matrix"])
def test_shares_that_differ_are_met_together_to_the_weight(group):
    target = Target.parse("0.37")
    shares = owl_shares(LAYERS, target, {0: 0.0, 1: 0.2, 2: 0.3}, Owl())
    found = removals(LAYERS, wanted("0.37", group, layers=Owl()), shares=shares)
    assert sum(map(lost, found, LAYERS)) == tower_zeros(LAYERS, target)
    realised = [lost(r, x) / x.weights for r, x in zip(found, LAYERS, strict=True)]
    assert realised == sorted(realised, reverse=True)
    with pytest.raises(ValueError, match="miss the tower's target"):
        removals(LAYERS, wanted("0.5", group, layers=Owl()), shares=shares)
