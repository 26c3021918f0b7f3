"""Counting is exact: to the weight, at every sparsity, for every tower."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ressa.errors import InfeasibleAllocation, SpecError
from ressa.sparsity import (
    Inventory,
    LayerShape,
    Pattern,
    Target,
    check_pattern,
    exact_fraction,
    format_fraction,
    round_half_up,
    solve_language,
    solve_vision,
    tower_zeros,
    zeros_per_matrix,
    zeros_per_row,
)

shares = st.fractions(0, 1, max_denominator=1000) | st.decimals(
    0, 1, places=4, allow_nan=False
).map(Fraction)
targets = shares.map(Target)
shapes = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 13)), min_size=1, max_size=6)


def tower(sizes: list[tuple[int, int]], name: str = "vision") -> tuple[LayerShape, ...]:
    return tuple(
        LayerShape(name=f"{name}.{index}", tower=name, block=index, rows=rows, columns=columns)
        for index, (rows, columns) in enumerate(sizes)
    )


def inventory(vision: list[tuple[int, int]], language: list[tuple[int, int]]) -> Inventory:
    layers = tower(vision) + tower(language, "language")
    return Inventory(layers=layers, parameters={"vision": 500, "connector": 9, "language": 700})


@given(shapes, targets)
def test_a_tower_loses_exactly_its_share_rounded_half_up(sizes, target):
    layers = tower(sizes)
    weights = sum(rows * columns for rows, columns in sizes)
    total = round_half_up(target.sparsity * weights)
    assert sum(zeros.sum() for zeros in zeros_per_row(layers, target)) == total
    assert sum(zeros_per_matrix(layers, target)) == total
    assert tower_zeros(layers, target) == total


@given(shapes, targets)
def test_every_row_and_matrix_loses_the_floor_or_the_ceiling_of_its_share(sizes, target):
    layers = tower(sizes)
    for layer, zeros in zip(layers, zeros_per_row(layers, target), strict=True):
        share = target.sparsity * layer.columns
        assert zeros.shape == (layer.rows,)
        assert set(zeros.tolist()) <= {share.__floor__(), share.__ceil__()}
    for layer, count in zip(layers, zeros_per_matrix(layers, target), strict=True):
        share = target.sparsity * layer.weights
        assert count in (share.__floor__(), share.__ceil__())


def test_the_largest_remainders_lose_the_extra_weight_and_ties_go_to_the_first():
    # 0.29 of 10 inputs is 2.9, of 7 inputs 2.03; the tower of 58 weights loses 17 (16.82).
    layers = tower([(4, 7), (3, 10)])
    narrow, wide = zeros_per_row(layers, Target.parse("0.29"))
    assert wide.tolist() == [3, 3, 3]
    assert narrow.tolist() == [2, 2, 2, 2]
    # 0.25 of 2 inputs is one half everywhere: five of ten rows lose one weight, the first five.
    first, second = zeros_per_row(tower([(4, 2), (6, 2)]), Target.parse("0.25"))
    assert first.tolist() == [1, 1, 1, 1]
    assert second.tolist() == [1, 0, 0, 0, 0, 0]


def test_a_decimal_is_counted_exactly_where_a_float_is_not():
    assert int(0.29 * 100) == 28
    assert zeros_per_row(tower([(1, 100)]), Target.parse("0.29"))[0].tolist() == [29]


@pytest.mark.parametrize(("half", "rounded"), [("1/2", 1), ("5/2", 3), ("7/5", 1), ("0", 0)])
def test_halves_round_up(half, rounded):
    assert round_half_up(Fraction(half)) == rounded


@given(shapes, shapes, shares, targets)
def test_a_solved_language_sparsity_meets_the_budget_to_the_weight(vision, language, budget, given):
    model = inventory(vision, language)
    total = round_half_up(budget * model.prunable())
    left = total - tower_zeros(model.tower("vision"), given)
    if 0 <= left <= model.prunable("language"):
        solved = solve_language(model, budget, given)
        zeros = tower_zeros(model.tower("vision"), given)
        assert zeros + tower_zeros(model.tower("language"), solved) == total
        assert Target.parse(str(solved)) == solved
    else:
        with pytest.raises(InfeasibleAllocation, match="language sparsity is a fraction"):
            solve_language(model, budget, given)


@given(shapes, shapes, shares, targets)
def test_a_solved_vision_sparsity_meets_the_budget_to_the_weight(vision, language, budget, given):
    model = inventory(vision, language)
    try:
        solved = solve_vision(model, budget, given)
    except InfeasibleAllocation:
        return
    zeros = tower_zeros(model.tower("vision"), solved) + tower_zeros(model.tower("language"), given)
    assert zeros == round_half_up(budget * model.prunable())


def test_an_unreachable_budget_says_what_it_asks_for():
    model = inventory([(10, 10)], [(10, 7)])
    with pytest.raises(InfeasibleAllocation) as error:
        solve_language(model, Fraction("0.9"), Target.parse(0))
    assert str(error.value) == (
        "language sparsity is a fraction in [0, 1], got 2.186: budget 0.9 with vision 0 asks for "
        "more zeros than language has weights"
    )
    with pytest.raises(InfeasibleAllocation, match="fewer zeros than none"):
        solve_language(model, Fraction("0.1"), Target.parse(1))


def test_a_pattern_counts_exactly_and_stays_fixed_in_a_budget():
    model = inventory([(3, 8), (5, 16)], [(7, 9)])
    target = Target.parse("1:4")
    assert tower_zeros(model.tower("vision"), target) == 3 * 6 + 5 * 12
    assert [set(z.tolist()) for z in zeros_per_row(model.tower("vision"), target)] == [{6}, {12}]
    solved = solve_language(model, Fraction("0.6"), target)
    assert 78 + tower_zeros(model.tower("language"), solved) == round_half_up(Fraction("0.6") * 167)


def test_a_pattern_that_does_not_divide_names_every_such_layer():
    layers = tower([(2, 8), (2, 6), (2, 7)])
    with pytest.raises(InfeasibleAllocation) as error:
        check_pattern(layers, Pattern(2, 4))
    assert "vision.1 (6 inputs), vision.2 (7 inputs)" in str(error.value)
    assert "vision.0" not in str(error.value)
    with pytest.raises(InfeasibleAllocation):
        tower_zeros(layers, Target.parse("2:4"))


@given(shares | st.fractions(-9, 9, max_denominator=10**39))
def test_a_fraction_reads_back_as_itself(share):
    assert exact_fraction(format_fraction(share)) == share


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("0.50", "0.5"),
        (Decimal("0.70"), "0.7"),
        ("98304/196608", "0.5"),
        ("1/3", "1/3"),
        ("2:4", "2:4"),
        ("5e-3", "0.005"),
        (1, "1"),
        ("0", "0"),
    ],
)
def test_a_target_is_written_in_its_shortest_exact_form(written, text):
    assert str(Target.parse(written)) == text


@pytest.mark.parametrize(
    ("written", "hint"),
    [
        ("50", "Did you mean 0.5?"),
        ("-0.1", "a fraction in [0, 1], got -0.1"),
        ("4:2", "1 ≤ N < M"),
        ("0:4", "write the sparsity 0 or 1"),
        ("half", "such as 0.5 or 1/3"),
        ("1/0", "such as 0.5 or 1/3"),
        (0.5, "exact decimal"),
        (True, "exact decimal"),
        ("9" * 5000, "such as 0.5 or 1/3"),
        ("1e-99", "such as 0.5 or 1/3"),
        ("nan", "such as 0.5 or 1/3"),
    ],
)
def test_what_is_no_target_is_refused_with_a_hint(written, hint):
    with pytest.raises(SpecError) as error:
        Target.parse(written)
    assert hint in str(error.value)
    assert len(str(error.value)) < 300


def test_an_inventory_survives_json_and_sums_up():
    model = inventory([(3, 8)], [(7, 9), (2, 2)])
    assert Inventory.from_json(model.to_json()) == model
    assert (model.prunable(), model.prunable("vision"), model.whole) == (91, 24, 1209)


def test_an_inventory_lists_vision_first_and_each_layer_once():
    layers = tower([(1, 1)]) + tower([(1, 1)], "language")
    with pytest.raises(ValueError, match="vision layers before"):
        Inventory(layers=layers[::-1], parameters={})
    with pytest.raises(ValueError, match="once"):
        Inventory(layers=(layers[0], layers[0]), parameters={})
