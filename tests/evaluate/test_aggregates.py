"""Means over tasks."""

import math

import pytest

from ressa.evaluate import aggregates

TASKS = {"questions": "vqa", "nocaps": "captioning", "flickr": "retrieval"}
DENSE = {"questions.accuracy": 0.6, "nocaps.cider": 1.2, "flickr.tr1": 0.9, "flickr.ir1": 0.8}
PRUNED = {"questions.accuracy": 0.3, "nocaps.cider": 0.9, "flickr.tr1": 0.9, "flickr.ir1": 0.4}


def rows(state: str, scores: dict[str, float], error: float | None = 0.01) -> list[dict]:
    return [
        {
            "task": name.split(".")[0],
            "split": "validation",
            "state": state,
            "image": "real",
            "metric": name.split(".")[1],
            "value": value,
            "standard_error": error,
            "items": 10,
        }
        for name, value in scores.items()
    ]


def means(*every: list[dict]) -> dict[tuple[str, str], dict]:
    made = aggregates([row for part in every for row in part], TASKS)
    assert {row["task"] for row in made} <= {"all"}
    return {(row["state"], row["metric"]): row for row in made}


def test_each_task_counts_once_and_retrieval_by_the_mean_of_both_directions():
    found = means(rows("dense", DENSE), rows("pruned", PRUNED))
    assert found["dense", "macro"]["value"] == pytest.approx((0.6 + 1.2 + 0.85) / 3)
    assert found["pruned", "macro"]["value"] == pytest.approx((0.3 + 0.9 + 0.65) / 3)
    assert found["dense", "mean_relative"]["value"] == pytest.approx(1)
    assert found["pruned", "mean_relative"]["value"] == pytest.approx((0.5 + 0.75 + 0.75) / 3)


def test_errors_of_independent_tasks_add_up_in_squares():
    found = means(rows("dense", DENSE), rows("pruned", PRUNED))
    assert found["pruned", "macro"]["standard_error"] == pytest.approx(0.01 * math.sqrt(3) / 3)
    unknown = means(rows("dense", DENSE, None))
    assert unknown["dense", "macro"]["standard_error"] is None


def test_a_state_that_lacks_a_task_has_no_mean_and_a_dense_zero_no_ratio():
    blank = {"questions.accuracy": 0.2}
    found = means(rows("dense", DENSE), rows("pruned", blank))
    assert {state for state, _ in found} == {"dense"}
    nothing = means(rows("dense", DENSE | {"nocaps.cider": 0.0}), rows("pruned", PRUNED))
    assert {metric for _, metric in nothing} == {"macro"}
