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
    check_table,
    exact_fraction,
    format_fraction,
    listed_layers,
    packed_bytes,
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
HALF = Fraction(1, 2)
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


@pytest.mark.parametrize(
    ("kept", "pattern", "size"),
    [
        (32, None, 64),  # nothing went: the weights alone
        (8, None, 8 * 2 + 4),
        (16, "2:4", 16 * 2 + 4),  # two bits for each place in a group of four
        (15, "2:4", 16 * 2 + 4),  # a weight that was zero anyway has its place
        (8, "2:8", 8 * 2 + 3),
        (16, "4:8", 16 * 2 + 6),
    ],
)
def test_packed_bytes_are_what_stays_and_where_it_stands(kept, pattern, size):
    layer = LayerShape(name="x", tower="vision", block=0, rows=4, columns=8)
    wanted = None if pattern is None else Target.parse(pattern).pattern
    assert packed_bytes(layer, kept, wanted, 2) == size


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
    total = round_half_up(budget * model.prunable())
    zeros = tower_zeros(model.tower("language"), given)
    if 0 <= total - zeros <= model.prunable("vision"):
        solved = solve_vision(model, budget, given)
        assert zeros + tower_zeros(model.tower("vision"), solved) == total
    else:
        with pytest.raises(InfeasibleAllocation, match="vision sparsity is a fraction"):
            solve_vision(model, budget, given)


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


@given(shapes, st.data())
def test_layers_that_differ_meet_the_tower_to_the_weight(sizes, data):
    layers = tower(sizes)
    parts = [data.draw(shares) for _ in layers]
    whole = sum(share * layer.weights for share, layer in zip(parts, layers, strict=True))
    target = Target(Fraction(whole) / sum(layer.weights for layer in layers))
    rows = zeros_per_row(layers, target, shares=parts)
    assert sum(zeros.sum() for zeros in rows) == tower_zeros(layers, target)
    for layer, share, zeros in zip(layers, parts, rows, strict=True):
        exact = share * layer.columns
        assert set(zeros.tolist()) <= {exact.__floor__(), exact.__ceil__()}
    counts = zeros_per_matrix(layers, target, shares=parts)
    assert sum(counts) == tower_zeros(layers, target)
    for layer, share, count in zip(layers, parts, counts, strict=True):
        exact = share * layer.weights
        assert count in (exact.__floor__(), exact.__ceil__())


def test_shares_that_miss_the_target_are_no_allocation():
    with pytest.raises(ValueError, match="miss the tower"):
        zeros_per_row(tower([(4, 10)]), Target.parse("0.5"), shares=[Fraction(1, 4)])


@given(shapes, targets)
def test_reference_counting_takes_floors_and_loses_what_it_loses(sizes, target):
    layers = tower(sizes)
    for layer, zeros in zip(
        layers, zeros_per_row(layers, target, counting="reference"), strict=True
    ):
        assert set(zeros.tolist()) == {(target.sparsity * layer.columns).__floor__()}
    counts = zeros_per_matrix(layers, target, counting="reference")
    assert counts == [(target.sparsity * layer.weights).__floor__() for layer in layers]
    assert sum(counts) <= tower_zeros(layers, target)


def test_a_table_names_layers_by_patterns_and_each_once():
    layers = tower([(4, 10), (4, 10)]) + tower([(2, 5)], "language")
    table = {"vision.*": Decimal("0.25"), "language.0": Decimal("0.5")}
    found = listed_layers(layers, table)
    assert found == {"vision.0": Fraction(1, 4), "vision.1": Fraction(1, 4), "language.0": HALF}
    with pytest.raises(SpecError, match=r"vision.1 is listed by 'vision.\*' and by 'vision.1'"):
        listed_layers(layers, table | {"vision.1": Decimal(0)})


def test_layers_left_out_of_a_table_share_the_rest():
    layers = tower([(4, 10), (4, 10), (2, 10)])
    assert check_table(layers, Target(HALF), {"vision.0": Fraction(1, 4)}) == Fraction(40, 60)
    assert check_table(layers, Target(HALF), {layer.name: HALF for layer in layers}) == HALF
    with pytest.raises(InfeasibleAllocation, match=r"would have sparsity -0.500.*List lower"):
        check_table(layers, Target.parse("0.3"), {"vision.0": HALF, "vision.1": HALF})
    with pytest.raises(InfeasibleAllocation, match=r"would have sparsity 1.500.*List higher"):
        check_table(
            layers, Target.parse("0.9"), dict.fromkeys(("vision.0", "vision.1"), Fraction(3, 4))
        )
