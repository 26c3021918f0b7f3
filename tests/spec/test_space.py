"""Axes hold exact values; a sampled float finds back to the value it stands for."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ressa.spec.space import Choices, Dimension, Range


def axis(low: str, high: str, step: str | None = None, *, integer: bool = False) -> Dimension:
    entry = Range(
        low=Decimal(low), high=Decimal(high), step=None if step is None else Decimal(step)
    )
    return Dimension.of("x", entry, integer=integer)


def test_a_range_holds_exact_decimals_and_both_ends():
    assert axis("0", "0.5", "0.1").values == ("0", "0.1", "0.2", "0.3", "0.4", "0.5")
    assert axis("0", "0.8", "0.3").values == ("0", "0.3", "0.6")
    assert axis("0.3", "0.3").values == ("0.3",)
    assert axis("1", "3", integer=True).values == ("1", "2", "3")
    assert axis("0", "1").values is None


def test_choices_are_text_and_equal_numbers_are_one_choice():
    entry = Choices(choices=(0, Decimal("0.50"), "2:4", True))
    assert Dimension.of("x", entry, integer=False).values == ("0", "0.5", "2:4", "true")
    with pytest.raises(ValueError, match=r"each choice once, got 0\.5"):
        Choices(choices=(Decimal("0.5"), Decimal("0.50")))


def test_a_fine_step_is_counted_without_being_listed():
    assert axis("0", "1", "1e-30").size == 10**30 + 1


@given(st.integers(0, 1000), st.integers(1, 50), st.integers(0, 30))
def test_a_sampled_float_snaps_to_the_value_it_stands_for(low, step, index):
    found = axis(f"{low}e-3", f"{low + 30 * step}e-3", f"{step}e-3")
    values = found.values
    assert values is not None
    assert found.snap(low / 1000 + index * (step / 1000)) == values[index]


@given(st.floats(0, 1))
def test_a_continuous_value_is_a_short_decimal_within_the_range(number):
    text = axis("0.1", "0.7").snap(number)
    assert Decimal("0.1") <= Decimal(text) <= Decimal("0.7")
    assert float(text) == pytest.approx(min(0.7, max(0.1, number)), rel=1e-5)
