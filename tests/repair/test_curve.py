"""The learning rate of every step, and when a repair counts as lost."""

import math
from collections.abc import Sequence

import pytest
from pruned import repair_plan

from ressa.errors import RepairError
from ressa.repair.curve import RepairStep, check_divergence, learning_rate

PLAN = repair_plan(steps=60)


def curve(losses: Sequence[float], norm: float | None = 1.0) -> list[RepairStep]:
    return [
        RepairStep(
            step=number,
            loss=loss,
            ce=loss,
            kl=None,
            learning_rate=0.1,
            gradient_norm=norm,
            examples_per_second=1.0,
            peak_memory_gib=1.0,
            micro_batch=1,
        )
        for number, loss in enumerate(losses, 1)
    ]


def test_the_rate_warms_up_and_then_stays_or_falls_along_a_cosine() -> None:
    constant = repair_plan(schedule="constant", warmup_steps=2, learning_rate=0.3, steps=5)
    assert [learning_rate(constant, s) for s in range(5)] == pytest.approx([0.1, 0.2, *[0.3] * 3])
    cosine = repair_plan(schedule="cosine", warmup_steps=1, learning_rate=0.01, steps=4)
    rates = [learning_rate(cosine, step) for step in range(4)]
    assert rates == pytest.approx([0.005, 0.01, 0.0075, 0.0025])


@pytest.mark.parametrize("last", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_it_at_once(last: float) -> None:
    with pytest.raises(RepairError, match=r"diverged at step 3 of 60: loss (nan|inf)") as raised:
        check_divergence(curve([2, 2, last]), PLAN)
    assert raised.value.failure == "numeric"


def test_a_gradient_that_is_no_number_ends_it_but_a_skipped_step_does_not() -> None:
    with pytest.raises(RepairError, match="gradient norm inf"):
        check_divergence(curve([2, 2], norm=math.inf), PLAN)
    check_divergence(curve([2, 2], norm=None), PLAN)


def test_a_loss_that_has_run_away_for_ten_steps_ends_it() -> None:
    """Beyond three times the best ten steps' median, plus 1: here 7."""
    check_divergence(curve([2.0] * 10 + [7.1] * 9), PLAN)
    with pytest.raises(
        RepairError, match=r"step 20 of 60: loss 7\.1, for 10 steps above 7"
    ) as error:
        check_divergence(curve([2.0] * 10 + [7.1] * 10), PLAN)
    assert error.value.failure == "numeric"
    with pytest.raises(RepairError, match="for 10 steps above 7"):
        check_divergence(curve([50.0] * 20 + [2.0] * 10 + [9.0] * 10), PLAN)


def test_a_spike_and_a_hard_start_do_not_end_it() -> None:
    for losses in (
        [2.0] * 15 + [50.0] * 9 + [3.0],
        [50.0] * 10 + [20.0] * 40,
        [0.01] * 10 + [1.0] * 20,
    ):
        for steps in range(1, len(losses) + 1):
            check_divergence(curve(losses[:steps]), PLAN)
