"""Constraints are read by hand, computed exactly, and exclude points before they run."""

import contextlib
import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ressa.errors import InfeasibleAllocation
from ressa.sparsity import Allocation, Target
from ressa.spec import apply_point, grid_points, spec_from_yaml
from ressa.spec.constraints import QUANTITIES, parse_constraint, quantities

COUNTED = {name: Fraction(index, 16) for index, name in enumerate(QUANTITIES, start=1)}
FREE = """\
ressa: 1
model: pocket-blip2
space:
  vision_sparsity: {low: 0, high: 0.8, step: 0.2}
  language_sparsity: {low: 0, high: 0.8, step: 0.2}
"""


def holds(text: str) -> bool:
    return parse_constraint(text).unmet(COUNTED) is None


def test_arithmetic_is_exact_and_binds_as_usual():
    assert holds("sparsity + density * 2 == 5/16")
    assert holds("(sparsity + density) * 2 == 3/8")
    assert holds("-sparsity < 0 - 1/32")
    assert holds("1 - density - .5 >= 3/8")
    assert not holds("sparsity * 16 > 1")
    assert holds("0.1 + 0.2 + 0*kept == 0.3")


names = st.sampled_from(sorted(QUANTITIES))
numbers = st.integers(0, 9).map(str)


@given(
    st.recursive(
        names | numbers,
        lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner).map(
            "({0[0]} {0[1]} {0[2]})".format
        ),
        max_leaves=6,
    ),
    names,
    st.sampled_from(("<", "<=", "==", ">", ">=")),
)
def test_what_is_read_means_what_python_means_by_it(left: str, right: str, sign: str) -> None:
    text = f"{left} + 0 {sign} {right} * 1"
    python = re.sub("([0-9])", r"Fraction(\1)", text)
    try:
        expected = bool(eval(python, {"Fraction": Fraction, **COUNTED}))
    except ZeroDivisionError:
        expected = False
    assert holds(text) == expected


@given(
    st.text(max_size=80)
    | st.lists(st.sampled_from((*QUANTITIES, *"()+-*/<>=.0123 ")), max_size=40).map("".join)
)
def test_any_other_text_is_refused_with_a_reason(text: str) -> None:
    with contextlib.suppress(ValueError):
        parse_constraint(text).unmet(COUNTED)


def test_a_constraint_excludes_points_and_says_by_what(load, inventory):
    spec = load(FREE + "constraints: [density >= 0.4, vision_sparsity <= language_sparsity]\n").spec
    points, skipped = grid_points(spec, inventory)
    assert len(points) + len(skipped) == 25
    assert spec.search.trials == len(points)
    for point in points:
        apply_point(spec, inventory, point)
        assert float(point["vision_sparsity"]) <= float(point["language_sparsity"])
    reasons = {reason.split(": ")[0] for _, reason in skipped}
    assert reasons == {
        "constraint density >= 0.4",
        "constraint vision_sparsity <= language_sparsity",
    }
    with pytest.raises(InfeasibleAllocation, match=r"density >= 0\.4: density is 0\.2"):
        apply_point(spec, inventory, {"vision_sparsity": "0.8", "language_sparsity": "0.8"})
    assert spec_from_yaml(spec.to_yaml()) == spec


def test_a_budget_and_a_constraint_go_together(load, inventory):
    text = FREE.replace("  language_sparsity: {low: 0, high: 0.8, step: 0.2}\n", "budget: 0.5\n")
    spec = load(text + "constraints: language_kept >= 80000\n").spec
    points, skipped = grid_points(spec, inventory)
    assert points and any("language_kept" in reason for _, reason in skipped)


def test_quantities_are_counted_weight_by_weight(inventory):
    half = Target.parse("0.5")
    found = quantities(inventory, Allocation(vision=half, language=Target.parse("0")))
    assert found["vision_kept"] * 2 == inventory.prunable("vision")
    assert found["kept"] == found["vision_kept"] + found["language_kept"]
    assert found["sparsity"] * inventory.prunable() == found["whole_sparsity"] * inventory.whole
    assert set(found) == set(QUANTITIES)


def test_of_a_shared_sparsity_only_the_whole_can_be_constrained(load, inventory):
    text = FREE.split("space:")[0] + "space: {sparsity: {choices: [0.3, 0.6]}}\n"
    spec = load(text + "prune: {group: all}\nconstraints: density > 0.5\n").spec
    assert [point["sparsity"] for point in grid_points(spec, inventory)[0]] == ["0.3"]
    axes = text.replace("{sparsity:", "{prune.group: {choices: [row, all]}, sparsity:")
    mixed = load(axes + "constraints: vision_density > 0.5\n").spec
    points, skipped = grid_points(mixed, inventory)
    assert [point["prune.group"] for point in points] == ["row"]
    assert any("vision_density is not known" in reason for _, reason in skipped)
