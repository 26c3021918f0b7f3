"""Orders of allocations: how alike two conditions rank them, and whether the best one holds."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ressa.errors import NotFoundError, SpecError
from ressa.landscape import compare, orders, results_table
from ressa.landscape.order import (
    _allocations,
    _means,
    _shown,
    _signs,
    _tau,
    kendall,
    rank_correlation,
)
from ressa.store import SweepStore, open_store

SPLITS = [(0.2, 0.8), (0.4, 0.6), (0.6, 0.4), (0.8, 0.2)]
PICTURES, QUESTIONS = 80, 5


def record(
    sweep: SweepStore,
    number: int,
    split: tuple[Any, Any],
    scores: tuple[float, float],
    *,
    run: int,
    **chosen: Any,
) -> None:
    """Commits a trial with answers, of which a share is right before and after repair."""
    trial = f"t{number:03d}"
    share = {"vision": split[0], "language": split[1]}
    names = {f"{tower}_sparsity": str(value) for tower, value in share.items()}
    row: dict[str, Any] = {"role": "search", "number": number, "state": "succeeded"}
    row |= {"metric": "easy-vqa.exact_match", "items": PICTURES * QUESTIONS, "score": scores[1]}
    row |= {"score_pruned": scores[0], "score_repaired": scores[1]}
    row |= {"point": json.dumps(names | {"replicate": run} | chosen)}
    for tower, value in share.items():
        sparsity = 1 - int(value[0]) / 8 if isinstance(value, str) else value
        row |= {f"{tower}_target": str(value), f"{tower}_sparsity": sparsity}
        row |= {f"{tower}_zeros": round(1000 * sparsity), f"{tower}_prunable": 1000}
    sweep.commit("trials", [row], trial=trial, epoch=1)
    draw = np.random.default_rng(1000 * run + number)
    answers = [
        {
            **{"task": "easy-vqa", "split": "validation", "state": state, "image": "real"},
            **{"example_id": f"q{at}", "image_id": f"p{at // QUESTIONS}", "true_answer": "yes"},
            "value": float(draw.random() < score),
        }
        for state, score in zip(("pruned", "repaired"), scores, strict=True)
        for at in range(PICTURES * QUESTIONS)
    ]
    sweep.commit("answers", answers, trial=trial, epoch=1)


@pytest.fixture
def recorded(tmp_path: Path) -> SweepStore:
    """Four splits, three runs each: repair turns the outer two round and leaves the inner ones."""
    sweep = open_store(tmp_path, create=True).create_sweep("recorded", "name: recorded\n")
    scores = [(0.3, 0.9), (0.7, 0.95), (0.8, 0.99), (0.6, 0.5)]
    for number in range(12):
        at = number % 4
        record(sweep, number, SPLITS[at], scores[at], run=number // 4)
    return sweep


def test_tau_is_scipys_and_the_same_by_pairs_and_by_counting() -> None:
    from itertools import combinations

    from scipy.stats import kendalltau

    draw = np.random.default_rng(0)
    pairs = np.array([*combinations(range(30), 2)])
    for values in (30, 6):  # few values: ties in one, in the other and in both
        one, other = draw.integers(values, size=(2, 30)).astype(float)
        expected = kendalltau(one, other).statistic
        assert kendall(one.tolist(), other.tolist()) == pytest.approx(expected)
        assert _tau(_signs(one, pairs), _signs(other, pairs)) == pytest.approx(expected)
    assert kendall([1, 2, 3], [3, 2, 1]) == -1
    assert np.isnan(kendall([1, 1, 1], [1, 2, 3]))


def test_the_rank_correlation_counts_each_trial_that_ran_once(empty_sweep: SweepStore) -> None:
    scores = [(0.1, 0.8), (0.2, 0.9), (0.3, 0.85), (0.4, 0.95), (0.1, 0.8)]
    for number, (pruned, repaired) in enumerate(scores):
        row = {
            "role": "search",
            "number": number,
            "state": "reused" if number == 4 else "succeeded",
            "score": repaired,
            "score_pruned": pruned,
            "score_repaired": repaired,
        }
        if number == 2:
            assert math.isnan(rank_correlation(results_table(empty_sweep))[0]), "of two trials"
        empty_sweep.commit("trials", [row], epoch=1, trial=f"t{number:03d}", attempt=0)
    correlation, count = rank_correlation(results_table(empty_sweep))
    assert (correlation, count) == (pytest.approx(2 / 3), 4)  # one of six pairs is swapped


def test_pairs_that_repair_swaps_are_counted_and_shown(recorded: SweepStore) -> None:
    (row,) = orders([recorded]).rows(confidence=0.95)
    assert (row["one"], row["other"]) == ("before repair", "after repair")
    assert (row["allocations"], row["runs"], row["pictures"]) == (4, 3, PICTURES)
    # Before 20:80 < 80:20 < 40:60 < 60:40; after 80:20 < 20:80 < 40:60 < 60:40.
    assert (row["pairs"], row["swapped"]) == (6, 1)
    assert row["tau"] == pytest.approx((5 - 1) / 6)
    assert row["low"] <= row["tau"] <= row["high"]
    assert (row["swapped_models"], row["swapped_allocations"]) == (1, 1)
    assert row["over"] == "runs and pictures"


def test_a_swap_within_noise_is_counted_and_not_shown(tmp_path: Path) -> None:
    sweep = open_store(tmp_path, create=True).create_sweep("level", "name: level\n")
    for number, split in enumerate(SPLITS):
        record(sweep, number, split, (0.7, 0.7), run=0)
    (row,) = orders([sweep]).rows(confidence=0.95)
    assert row["swapped_models"] == 0
    assert row["swapped_allocations"] is None, "one run says nothing of other seeds"
    assert row["high"] - row["low"] > 0.5


def said(draw: np.random.Generator, scores: list[float]) -> np.ndarray:
    """Five runs' answers to 100 pictures, right or wrong; runs scatter by half a point or so."""
    shares = np.array(scores)[:, None, None] + draw.normal(0, 0.005, (len(scores), 5, 1))
    return (draw.random((len(scores), 5, 100)) < shares).astype(float)


def test_a_certain_swap_is_shown_among_hundreds_of_pairs() -> None:
    """25 allocations make 300 pairs: each has to be 600 times as sure as one would alone."""
    draw = np.random.default_rng(0)
    before, after = said(draw, [0.25, 0.85]), said(draw, [0.85, 0.25])
    swapped = np.array([[0, 1]])
    assert _shown(before, after, swapped, _allocations, count=300, alpha=0.05) == 1
    level = said(draw, [0.55, 0.55])
    assert _shown(before, level, swapped, _allocations, count=300, alpha=0.05) == 0


def test_no_swap_of_what_is_level_under_one_condition_is_shown() -> None:
    """All 15 pairs of six allocations, certain before and level after: at most 5 % may have one."""
    from itertools import combinations

    draw = np.random.default_rng(1)
    pairs = np.array([*combinations(range(6), 2)])
    wrong = 0
    for _ in range(5):
        before, after = said(draw, [0.1, 0.25, 0.4, 0.6, 0.75, 0.9]), said(draw, [0.6] * 6)
        swapped = pairs[[after[a].mean() > after[b].mean() for a, b in pairs]]
        wrong += _shown(before, after, swapped, _allocations, count=15, alpha=0.05) > 0
    assert wrong == 0


def test_the_best_before_repair_is_asked_for_after_it(recorded: SweepStore) -> None:
    ((one, other, verdict),) = orders([recorded]).winners(margin=1.0, confidence=0.95)
    assert (one, other) == ("before repair", "after repair")
    assert (verdict.line, verdict.subject, verdict.answer) == (1.0, "60:40", "yes")


def test_conditions_are_told_apart_by_what_trials_chose(tmp_path: Path) -> None:
    sweep = open_store(tmp_path, create=True).create_sweep("chosen", "name: chosen\n")
    numbers = iter(range(100))
    for split in SPLITS:
        for steps in (50, 100):
            record(sweep, next(numbers), split, (split[0], 1.0), run=0, **{"repair.steps": steps})
    compared = [(a.name, b.name) for a, b in orders([sweep], by="repair.steps").pairs]
    steps = ["repair.steps=50", "repair.steps=100"]
    assert compared == [("before repair", steps[0]), ("before repair", steps[1]), tuple(steps)]
    with pytest.raises(SpecError, match=r"--by prune.method: .* Fields: repair.steps, pattern"):
        orders([sweep], by="prune.method")


def test_patterns_are_compared_with_weights_one_by_one_of_the_same_sparsity(
    tmp_path: Path,
) -> None:
    sweep = open_store(tmp_path, create=True).create_sweep("regimes", "name: regimes\n")
    eighths = [("6:8", "2:8"), ("4:8", "4:8"), ("2:8", "6:8")]
    for number, split in enumerate(eighths):
        loose = tuple(1 - int(pattern[0]) / 8 for pattern in split)
        record(sweep, 2 * number, split, (0.5 + number / 10, 0.9), run=0)
        record(sweep, 2 * number + 1, loose, (0.5 + number / 10, 0.9), run=0)
    found = orders([sweep], by="pattern")
    assert [(a.name, b.name) for a, b in found.pairs] == [
        ("N:M, before repair", "unstructured, before repair"),
        ("N:M, after repair", "unstructured, after repair"),
    ]
    assert found.rows(confidence=0.95)[0]["tau"] == 1


def test_what_has_no_order_is_said(recorded: SweepStore, tmp_path: Path) -> None:
    other = recorded.store.create_sweep("other", "name: other\n")
    with pytest.raises(NotFoundError, match="no trial of other came to a result"):
        orders([recorded, other])
    record(other, 0, SPLITS[0], (0.5, 0.9), run=0)
    with pytest.raises(NotFoundError, match="1 allocations in common, 3 make an order"):
        orders([recorded, other])


def test_runs_of_two_sweeps_are_compared_over_seeds_and_pictures(tmp_path: Path) -> None:
    store = open_store(tmp_path, create=True)
    for name, score in (("one", 0.70), ("other", 0.66)):
        sweep = store.create_sweep(name, f"name: {name}\n")
        for number in range(9):
            seeded = number + 100 * (name == "one")
            record(sweep, seeded, SPLITS[number // 3], (score, score), run=number % 3)
    rows = compare(store, "one", "other", confidence=0.95)
    assert {row["test"] for row in rows} == {"seeds and pictures"}
    p = [row["p_value"] for row in rows]
    assert [row["p_holm"] for row in rows] != p
    for at, value in enumerate(p):
        touching = compare(store, "one", "other", confidence=1 - value)[at]
        low, high = touching["low_points"], touching["high_points"]
        assert min(abs(low), abs(high)) < 0.02 * (high - low)


def test_seeds_tell_runs_apart_as_replicates_do_in_compare_and_order(tmp_path: Path) -> None:
    store = open_store(tmp_path, create=True)
    for name, score in (("one", 0.70), ("other", 0.66)):
        sweep = store.create_sweep(name, f"name: {name}\n")
        for number in range(9):
            seeded = number + 100 * (name == "one")
            scores = score - 0.1 * (number // 3), score
            record(sweep, seeded, SPLITS[number // 3], scores, run=0, **{"repair.seed": number % 3})
    rows = compare(store, "one", "other", confidence=0.95)
    assert [(row["test"], row["runs"], row["options"]) for row in rows] == [
        ("seeds and pictures", 3, "")
    ] * 3
    both = orders([store.sweep("one"), store.sweep("other")]).rows(confidence=0.95)
    assert {(row["allocations"], row["runs"]) for row in both} == {(3, 3)}


def test_scores_that_are_all_equal_have_no_order(tmp_path: Path) -> None:
    sweep = open_store(tmp_path, create=True).create_sweep("equal", "name: equal\n")
    for number, split in enumerate(SPLITS):
        record(sweep, number, split, (1.0, 1.0), run=0)
    (row,) = orders([sweep]).rows(confidence=0.95)
    assert all(math.isnan(row[name]) for name in ("tau", "low", "high"))


def test_exact_matches_of_answers_kept_with_their_accuracy_are_not_paired(
    recorded: SweepStore,
) -> None:
    score = {"task": "easy-vqa", "metric": "accuracy", "value": 0.9, "state": "repaired"}
    recorded.commit("scores", [score], trial="t000", epoch=1)
    with pytest.raises(SpecError, match=r"Choose easy-vqa\.accuracy as the objective"):
        orders([recorded]).rows(confidence=0.95)


def test_sweeps_that_list_their_axes_in_another_order_are_compared(tmp_path: Path) -> None:
    store = open_store(tmp_path, create=True)
    axes = {"repair.steps": 50, "prune.method": "wanda"}
    for name, order in (("one", sorted(axes)), ("other", sorted(axes, reverse=True))):
        sweep = store.create_sweep(name, f"name: {name}\n")
        for number, split in enumerate(SPLITS):
            record(sweep, number, split, (0.5, 0.7), run=0, **{axis: axes[axis] for axis in order})
    rows = compare(store, "one", "other", confidence=0.95)
    assert [row["options"] for row in rows] == ["prune.method=wanda repair.steps=50"] * len(SPLITS)


@pytest.mark.parametrize(
    ("count", "p", "shown"), [(1, 0.03, 0), (1, 0.024, 1), (10, 0.003, 0), (10, 0.0024, 1)]
)
def test_a_swap_is_asked_both_ways_and_held_against_all_pairs(
    count: int, p: float, shown: int
) -> None:
    before = np.zeros((2, 3, 4))
    before[0] = 1
    pair = np.array([[0, 1]])
    assert _shown(before, 1 - before, pair, lambda *_: p, count=count, alpha=0.05) == shown


def test_resamples_draw_the_same_runs_under_both_conditions() -> None:
    drawn = np.random.default_rng(0).random((50, 4, 3))
    assert np.array_equal(_means(drawn, over_runs=True), _means(drawn, over_runs=True))


def test_lines_are_ranked_by_themselves(tmp_path: Path) -> None:
    sweep = open_store(tmp_path, create=True).create_sweep("lines", "name: lines\n")
    splits = [(0.2, 0.8), (0.4, 0.6), (0.6, 0.4), (0.3, 0.9), (0.5, 0.7), (0.7, 0.5)]
    for number, split in enumerate(splits):
        record(sweep, number, split, (0.3 + number / 10, 0.9 - (number % 3) / 10), run=0)
    whole, lines = orders([sweep]).rows(confidence=0.95)
    assert (whole["scope"], whole["pairs"]) == ("map", 15)
    assert (lines["scope"], lines["pairs"], lines["tau"]) == ("lines", 6, -1)
    median = orders([sweep]).rows(confidence=0.0)[0]
    assert median["low"] == median["high"]
