"""Replay lets another sampler search what a sweep has recorded, and runs nothing."""

import json
from typing import Any

import pytest

from ressa.errors import NotFoundError, SpecError
from ressa.spec import spec_from_mapping
from ressa.sweep.plan import SweepPlan, make_plan
from ressa.sweep.replay import replay, told

SPACE = {
    "vision_sparsity": {"low": 0.0, "high": 0.8, "step": 0.1},
    "language_sparsity": {"low": 0.0, "high": 0.8, "step": 0.2},
}


def plan_of(space: dict[str, Any] = SPACE) -> SweepPlan:
    content = {"ressa": 1, "model": "pocket-blip2", "space": space, "search": {"seed": 1}}
    return make_plan(spec_from_mapping(content, "hill").spec)


def row(number: int, vision: float, language: float, **more: Any) -> dict[str, Any]:
    score = 1 - (vision - 0.3) ** 2 - (language - 0.6) ** 2
    return {
        "trial": f"t{number:03d}",
        "role": "search",
        "state": "succeeded",
        "point": json.dumps(
            {"vision_sparsity": f"{vision:.1g}", "language_sparsity": f"{language:.1g}"}
        ),
        "score": score,
        "objectives": json.dumps({"easy-vqa.balanced_accuracy": score}),
        "total_seconds": 36.0,
    } | more


ALL = [row(n, n // 5 / 10, n % 5 / 5) for n in range(45)]


@pytest.mark.parametrize("sampler", ["grid", "random", "qmc", "tpe", "nsga2"])
def test_every_sampler_comes_to_the_best_of_a_recorded_grid_in_the_end(sampler: str) -> None:
    found = replay(plan_of(), ALL, sampler=sampler)
    assert len(found) == 45 == len({one.trial for one in found})
    assert all(one.exact for one in found)
    assert found[-1].regret == 0
    bests = [one.best for one in found]
    assert bests == sorted(bests)
    assert found[-1].hours == pytest.approx(0.45)


def test_grid_is_the_sweep_itself() -> None:
    assert [one.trial for one in replay(plan_of(), ALL, sampler="grid")] == [
        row["trial"] for row in ALL
    ]


def test_a_gp_is_there_sooner_than_the_grid() -> None:
    best = {
        sampler: replay(plan_of(), ALL, sampler=sampler, count=14)[-1].regret
        for sampler in ("grid", "gp")
    }
    assert best["gp"] < best["grid"]


def test_missing_points_are_refused_unless_the_nearest_may_answer() -> None:
    most = [row for row in ALL if row["trial"] != "t018"]
    with pytest.raises(SpecError, match=r"1 of the 45 distinct trials .* --nearest"):
        replay(plan_of(), most, sampler="random")
    found = replay(plan_of(), most, sampler="random", nearest=True)
    assert sum(not one.exact for one in found) == 1
    assert "answered by the nearest" in told("random", found, most)


def test_a_continuous_space_needs_the_nearest_and_has_no_grid() -> None:
    plan = plan_of({name: {"low": 0.0, "high": 0.8} for name in SPACE})
    with pytest.raises(SpecError, match="continuous"):
        replay(plan, ALL, sampler="qmc")
    with pytest.raises(SpecError, match="grid needs a step"):
        replay(plan, ALL, sampler="grid", nearest=True)
    found = replay(plan, ALL, sampler="qmc", nearest=True, count=30)
    assert len({one.trial for one in found}) == 30, "no recorded trial answers twice"


def test_trials_without_a_result_are_no_record() -> None:
    with pytest.raises(NotFoundError, match="no trial with a result"):
        replay(plan_of(), [row(0, 0.1, 0.2, state="failed")], sampler="tpe")
