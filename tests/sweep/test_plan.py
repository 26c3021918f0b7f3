"""What a sweep asks of each tower, before anything runs, and how it is written down."""

from datetime import UTC, datetime

import pytest

from ressa.records import Failure
from ressa.spec import spec_from_mapping
from ressa.sweep.ledger import Attempt
from ressa.sweep.plan import SweepPlan, make_plan
from ressa.sweep.preview import preview
from ressa.sweep.rows import unsuccessful


def plan_of(**prune: object) -> SweepPlan:
    content = {"ressa": 1, "model": "pocket-llava", "space": {"sparsity": {"choices": ["0.3"]}}}
    return make_plan(spec_from_mapping(content | {"prune": prune}).spec)


def row_of(plan: SweepPlan, trial: str) -> dict[str, object]:
    point = {} if trial == "dense" else {"sparsity": "0.3"}
    spec = plan.trial(point) if point else plan.baseline("dense")
    attempt = Attempt(
        trial=trial,
        number=0 if point else None,
        attempt=0,
        point=point,
        spec=spec,
    )
    failure = Failure(kind="code", stage="prune", message="no")
    (row,) = unsuccessful(attempt, failure, plan, started=datetime.now(UTC), state="failed")[
        "trials"
    ]
    return row


def test_one_sparsity_is_asked_of_each_tower() -> None:
    plan = plan_of(layers="owl", counting="reference")
    row = row_of(plan, "t000")
    for tower in ("vision", "language"):
        assert row[f"{tower}_target"] == "0.3"
        weights = plan.inventory.prunable(tower)
        assert row[f"{tower}_zeros_requested"] == round(0.3 * weights)
        assert (row[f"{tower}_layers"], row[f"{tower}_counting"]) == ("owl", "reference")
    assert row["budget"] is None


def test_of_a_shared_sparsity_each_towers_part_is_not_known_before() -> None:
    plan = plan_of(group="all")
    row = row_of(plan, "t000")
    for tower in ("vision", "language"):
        for column in ("target", "sparsity", "zeros_requested"):
            assert row[f"{tower}_{column}"] is None
        assert (row[f"{tower}_group"], row[f"{tower}_layers"]) == ("all", "uniform")
    assert row["budget"] == 0.3
    assert plan.all_zeros(plan.trial({"sparsity": "0.3"})) == round(0.3 * plan.inventory.prunable())


def test_of_a_baseline_it_is_known_that_nothing_goes() -> None:
    row = row_of(plan_of(group="all", counting="reference", layers="uniform"), "dense")
    assert (row["vision_target"], row["vision_zeros_requested"], row["budget"]) == ("0", 0, None)


@pytest.mark.parametrize("group", ["row", "all"])
def test_a_preview_counts_what_both_lose_together(group: str) -> None:
    points = preview(plan_of(group=group).spec).points
    assert points["sparsity"].item() == pytest.approx(0.3, abs=1e-5)
    assert (points["vision"].item() is None) == (group == "all")


def test_a_preview_says_when_a_sweep_ends_sooner() -> None:
    content = {
        "ressa": 1,
        "model": "pocket-llava",
        "budget": 0.5,
        "space": {"vision_sparsity": {"choices": [0.4, 0.5, 0.6]}},
        "search": {"stop_when": {"regret_points": 2, "confidence": 0.95}},
    }
    facts = preview(spec_from_mapping(content).spec).facts
    assert any(
        "95% sure to lie less than 2 points below the line's best" in one for _, one in facts
    )


def test_a_preview_says_what_is_skipped_once_for_each_reason() -> None:
    content = {
        "ressa": 1,
        "model": "pocket-llava",
        "space": {
            "vision_sparsity": {"low": 0.1, "high": 0.9, "step": 0.1},
            "language_sparsity": {"low": 0.1, "high": 0.9, "step": 0.1},
        },
        "constraints": ["sparsity <= 0.6", "vision_sparsity <= language_sparsity"],
    }
    facts = preview(spec_from_mapping(content).spec).facts
    skipped = [text for topic, text in facts if topic == "skipped"]
    assert len(skipped) == 2
    assert all(", such as vision_sparsity=" in text for text in skipped)
