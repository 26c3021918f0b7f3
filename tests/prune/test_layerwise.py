"""How a tower's sparsity is split over its blocks: totals, bounds, order."""

import itertools
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ressa.errors import PruneError
from ressa.prune.layerwise import ecoflap_shares, outlier_shares, owl_shares
from ressa.sparsity import LayerShape, Target, tower_zeros, zeros_per_matrix, zeros_per_row
from ressa.spec import Ecoflap, Owl
from tests.prune.layers import statistics_of

sparsities = st.fractions(0, 1, max_denominator=200).map(Target)
scores = st.floats(0, 1, allow_subnormal=False)
blocks = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30), scores), min_size=1, max_size=9)


def tower(sizes: list[tuple[int, int]], *, a_block: int = 1) -> list[LayerShape]:
    return [
        LayerShape(
            name=f"layer{index}", tower="language", block=index // a_block, rows=r, columns=c
        )
        for index, (r, c) in enumerate(sizes)
    ]


def owl(drawn: list[tuple[int, int, float]], target: Target, **options: float):
    layers = tower([size[:2] for size in drawn])
    outliers = dict(enumerate(size[2] for size in drawn))
    return layers, owl_shares(layers, target, outliers, Owl(**options))


def ecoflap(drawn: list[tuple[int, int, float]], target: Target, **options: float):
    layers = tower([size[:2] for size in drawn])
    importances = {layer.name: size[2] for layer, size in zip(layers, drawn, strict=True)}
    return layers, ecoflap_shares(layers, target, importances, Ecoflap(**options))


@pytest.mark.parametrize("allocate", [owl, ecoflap])
@given(blocks, sparsities)
def test_the_weighted_mean_is_the_target_and_counts_meet_it_to_the_weight(allocate, drawn, target):
    layers, shares = allocate(drawn, target)
    weights = sum(layer.weights for layer in layers)
    assert sum(shares[x.name] * x.weights for x in layers) == target.sparsity * weights
    parts = [shares[layer.name] for layer in layers]
    assert sum(zeros_per_matrix(layers, target, shares=parts)) == tower_zeros(layers, target)
    rows = zeros_per_row(layers, target, shares=parts)
    assert sum(int(zeros.sum()) for zeros in rows) == tower_zeros(layers, target)
    for layer, share, zeros in zip(layers, parts, rows, strict=True):
        exact = share * layer.columns
        assert set(zeros.tolist()) <= {exact.__floor__(), exact.__ceil__()}


@given(blocks, sparsities, st.sampled_from([0.0, 0.08, 0.5, 1.0]))
def test_owl_stays_within_its_bounds_and_spares_blocks_with_more_outliers(drawn, target, spread):
    _, shares = owl(drawn, target, spread=spread)
    low = max(Fraction(0), target.sparsity - Fraction(str(spread)))
    high = min(Fraction(1), target.sparsity + Fraction(str(spread)))
    assert all(low <= share <= high for share in shares.values())
    ordered = sorted(zip((size[2] for size in drawn), shares.values(), strict=True))
    assert all(one[1] >= other[1] for one, other in itertools.pairwise(ordered))


@given(blocks, sparsities, st.sampled_from([0.0, 0.1, 1.0]))
def test_ecoflap_stays_within_its_bounds_and_keeps_more_of_what_matters_more(drawn, target, spread):
    alike = [(7, 6, importance) for _, _, importance in drawn]
    for sizes in (drawn, alike):
        _, shares = ecoflap(sizes, target, spread=spread)
        high = min(Fraction(1), target.sparsity + Fraction(str(spread)))
        assert all(0 <= share <= high for share in shares.values())
    ordered = sorted(zip((size[2] for size in alike), shares.values(), strict=True))
    assert all(one[1] >= other[1] for one, other in itertools.pairwise(ordered))


@given(blocks, sparsities)
def test_equal_outlier_shares_are_uniform(drawn, target):
    _, shares = owl([(rows, columns, 0.25) for rows, columns, _ in drawn], target)
    assert set(shares.values()) == {target.sparsity}


@pytest.mark.parametrize("importance", [0.0, 0.7])
@given(blocks, sparsities)
def test_equal_importance_per_weight_is_uniform(importance, drawn, target):
    # Halves are exact in floats, as the claim is exact.
    sized = [(rows, columns, importance and rows * columns * 0.5) for rows, columns, _ in drawn]
    _, shares = ecoflap(sized, target)
    assert set(shares.values()) == {target.sparsity}


def test_owl_is_the_papers_where_blocks_are_alike_and_bounds_are_far():
    # Equally spaced shares and λ = .08 map to 0, -.08, -.16, centred: S + .08, S, S - .08.
    _, shares = owl([(10, 10, 0.125), (10, 10, 0.25), (10, 10, 0.375)], Target.parse("0.5"))
    assert [float(share) for share in shares.values()] == [0.58, 0.5, 0.42]


def test_owl_with_blocks_of_several_sizes_is_one_shift_within_the_bounds():
    # A large block with few outliers: unclipped its sparsity would lie close to the target.
    drawn = [(10, 90, 0.0), (10, 10, 0.5), (10, 10, 1.0)]
    _, shares = owl(drawn, Target.parse("0.5"), spread=0.1)
    found = [float(share) for share in shares.values()]
    assert found == pytest.approx([0.5 + 0.02, 0.5 - 0.08, 0.4])


def test_ecoflap_shares_what_is_kept_and_a_full_block_leaves_the_rest():
    # 100 weights a block, S = .5: each keeps 40, 30 more are shared by importance.
    alike = [(10, 10, importance) for importance in (1.0, 2.0, 3.0)]
    _, shares = ecoflap(alike, Target.parse("0.5"))
    assert list(shares.values()) == [Fraction(55, 100), Fraction(50, 100), Fraction(45, 100)]
    # S = .1: each keeps 80 (at most .2), 30 more; 20 fill a block.
    greedy = [(10, 10, importance) for importance in (1.0, 1.0, 8.0)]
    _, shares = ecoflap(greedy, Target.parse("0.1"))
    assert list(shares.values()) == [Fraction(15, 100), Fraction(15, 100), 0]


def test_layers_of_a_block_share_its_sparsity_and_add_up_their_importance():
    layers = tower([(4, 5)] * 4, a_block=2)
    importances = {"layer0": 0.0, "layer1": 3.0, "layer2": 0.5, "layer3": 0.5}
    shares = ecoflap_shares(layers, Target.parse("0.5"), importances, Ecoflap())
    assert shares["layer0"] == shares["layer1"] < shares["layer2"] == shares["layer3"]


def test_outliers_are_counted_over_all_layers_of_a_block_one_at_a_time():
    generator = torch.Generator().manual_seed(0)
    layers = tower([(6, 8), (5, 4), (7, 8)], a_block=2)
    weights = {x.name: torch.randn(x.rows, x.columns, generator=generator) ** 3 for x in layers}
    known = {
        x.name: statistics_of(torch.randn(50, x.columns, generator=generator).double())
        for x in layers
    }
    found = outlier_shares(layers, known, lambda layer: weights[layer.name], 2.0)
    together: dict[int, list[float]] = {0: [], 1: []}
    for layer in layers:
        norm = known[layer.name].square_sums.sqrt()
        saliency = weights[layer.name].double().abs() * norm
        together[layer.block] += saliency.reshape(-1).tolist()
    for block, values in together.items():
        mean = sum(values) / len(values)
        assert found[block] == sum(value > 2 * mean for value in values) / len(values)
    assert found[0] != found[1]


def test_outlier_shares_do_not_depend_on_the_scale_of_the_inputs():
    layers = tower([(6, 8), (9, 8)])
    weight = torch.randn(9, 8, generator=torch.Generator().manual_seed(1)) ** 3
    inputs = torch.randn(50, 8, generator=torch.Generator().manual_seed(2)).double()
    found = [
        outlier_shares(
            layers,
            {layer.name: statistics_of(scale * inputs) for layer in layers},
            lambda layer: weight[: layer.rows],
            3.0,
        )
        for scale in (1.0, 64.0)
    ]
    assert found[0] == found[1]


def test_a_weight_that_is_not_a_number_is_refused():
    layers = tower([(2, 2)])
    known = {"layer0": statistics_of(torch.ones(3, 2).double())}
    with pytest.raises(PruneError, match="layer0 is not finite"):
        outlier_shares(layers, known, lambda layer: torch.full((2, 2), torch.nan), 5.0)
