"""Replay lets another sampler search what a sweep has recorded, and runs nothing."""

import json
from typing import Any

import pytest

from ressa.errors import NotFoundError, SpecError
from ressa.spec import spec_from_mapping
from ressa.sweep.plan import SweepPlan, make_plan
from ressa.sweep.replay import itself, replay, summary, told

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
    regrets = [one.regret for one in found]
    assert regrets == sorted(regrets, reverse=True)
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


def of_lines() -> list[dict[str, Any]]:
    """Two lines of two splits with two runs each; the luckiest run is of the worse split."""
    scores = {(0.4, 0.2): (0.99, 0.5), (0.4, 0.6): (0.9, 0.9), (0.6, 0.2): (0.3, 0.3)}
    scores[0.6, 0.6] = (0.25, 0.45)
    runs = [(line, vision, run) for line, vision in scores for run in range(2)]
    return [
        row(n, vision, 0.4, budget=line, score=scores[line, vision][run])
        | {
            "vision_target": str(vision),
            "point": json.dumps({"budget": str(line), "vision_sparsity": str(vision)})[:-1]
            + f', "replicate": "{run}"}}',
        }
        for n, (line, vision, run) in enumerate(runs)
    ]


def test_regret_is_of_means_on_each_line() -> None:
    content = {"ressa": 1, "model": "pocket-blip2", "budget": [0.4, 0.6], "replicates": 2}
    content["space"] = {"vision_sparsity": {"choices": [0.2, 0.6]}}
    plan = make_plan(spec_from_mapping(content, "lines").spec)
    found = itself(plan, of_lines())
    assert [one.allocations for one in found] == [1, 1, 2, 2, 3, 3, 4, 4]
    first = [one.regrets[0.4] for one in found]
    # A lucky run names the worse split until its other one is seen.
    assert first == pytest.approx([0.155, 0.155, 0, 0, 0, 0, 0, 0])
    assert [one.regret for one in found[:4]] == [None] * 4, "of the other line nothing is named yet"
    assert [one.regret for one in found[4:]] == pytest.approx([0.025, 0.025, 0.025, 0])
    assert found[-1].to_row()["regret_0.6"] == pytest.approx(0)
    rows = summary("grid", found, found, margin=1.0)
    assert [one["line"] for one in rows] == ["0.4", "0.6", "all"]
    assert [one["grid"] for one in rows] == ["3 trials", "8 trials", "8 trials"]
    assert rows[-1]["grid time"] == "4.8 min"


def test_missing_points_are_refused_unless_the_nearest_may_answer() -> None:
    most = [row for row in ALL if row["trial"] != "t018"]
    with pytest.raises(SpecError, match=r"1 of the 45 distinct trials .* --nearest"):
        replay(plan_of(), most, sampler="random")
    found = replay(plan_of(), most, sampler="random", nearest=True)
    assert sum(not one.exact for one in found) == 1
    own = itself(plan_of(), most)
    assert "1 of them answered by the nearest" in told("random", found, own, 1.0)


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
