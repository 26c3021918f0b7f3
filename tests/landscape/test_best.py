"""The best allocations: by means over their runs, not by the luckiest one."""

import math

import pytest

from ressa.landscape import heatmap, results_table, short_row, sweep_row
from ressa.landscape.best import best_table, edge_of, over_runs, ranked
from ressa.spec import spec_from_mapping
from ressa.store import SweepStore
from tests.landscape.conftest import commit


@pytest.fixture
def repeated(empty_sweep: SweepStore) -> SweepStore:
    """Two allocations of three runs each; the luckiest run is of the worse one."""
    commit(empty_sweep, "dense", "0", "0", repair=False)
    scores = {("0.3", "0.5"): (0.5, 0.6, 0.9), ("0.5", "0.3"): (0.7, 0.8, 0.75)}
    trials = [(place, run) for place in scores for run in range(3)]
    for number, (place, run) in enumerate(trials):
        name, point = f"t{number:03d}", {"vision_sparsity": place[0], "replicate": str(run)}
        commit(empty_sweep, name, *place, repair=False, point=point)
        row = next(iter(empty_sweep.read("trials", where={"trial": name}).to_pylist()))
        row |= {"score": scores[place][run], "score_pruned": scores[place][run]}
        empty_sweep.commit("trials", [row], trial=name, epoch=1, attempt=1)
    return empty_sweep


def test_runs_of_an_allocation_are_one_row_with_their_means(repeated: SweepStore) -> None:
    found = over_runs(results_table(repeated)).set_index("trial")
    assert found.index.tolist() == ["dense", "t000", "t003"]
    assert found["runs"].tolist() == [1, 3, 3]
    assert found.loc["t000", "pruned"] == pytest.approx(2 / 3)
    assert found.loc["t003", "score"] == pytest.approx(0.75)
    assert found.loc["t003", "spread"] == pytest.approx(0.05)
    assert found.loc["t003", "standard_error"] == pytest.approx((0.011**2 + 0.05**2 / 3) ** 0.5)
    assert found["best"].tolist() == [False, False, True]


def test_the_best_is_the_best_on_average(repeated: SweepStore) -> None:
    assert best_table(repeated)["trial"].tolist() == ["t003"]
    assert heatmap(results_table(repeated))._points[1]["best"]


def test_the_best_is_the_same_wherever_it_is_named(repeated: SweepStore) -> None:
    frame = results_table(repeated)
    assert frame.loc[frame["best"], "trial"].tolist() == ["t003", "t004", "t005"]
    assert ranked(frame)[:2] == ["t003", "t002"], "a run of the best comes before the luckiest"
    row = sweep_row(repeated)
    assert (row["best"], row["best_trial"], row["best_runs"]) == (pytest.approx(0.75), "t003", 3)
    assert short_row(row)["best"] == "75.0 % (t003)"


def test_the_best_is_by_its_mean_over_seeds_that_were_searched(empty_sweep: SweepStore) -> None:
    runs = [("0.3", 1, 0.9), ("0.3", 2, 0.3), ("0.5", 1, 0.7), ("0.5", 2, 0.8)]
    for number, (place, seed, score) in enumerate(runs):
        row = {"role": "search", "number": number, "state": "succeeded", "score": score}
        row |= {"vision_target": place, "point": {"repair.seed": str(seed), "repair.steps": "9"}}
        empty_sweep.commit("trials", [row], trial=f"t{number:03d}", epoch=1)
    (best,) = best_table(empty_sweep).to_dict("records")
    assert (best["trial"], best["runs"], best["options"]) == ("t002", 2, "repair.steps=9")
    assert best["score"] == pytest.approx(0.75)
    row = sweep_row(empty_sweep)
    assert (row["best_trial"], row["best_runs"]) == ("t002", 2)


def test_each_line_has_its_own_best(sweep: SweepStore) -> None:
    frame = results_table(sweep)
    best = best_table(sweep)["trial"].tolist()
    assert frame.loc[frame["best"], "trial"].tolist() == best
    row = sweep_row(sweep)
    assert (row["best"], row["best_trial"], row["lines"]) == (None, None, 3)
    assert short_row(row)["best"] == "3 lines"


def test_several_objectives_have_a_front_by_means(empty_sweep: SweepStore) -> None:
    runs = [("0.3", 0.9, 0.4), ("0.3", 0.5, 0.4), ("0.5", 0.6, 0.4), ("0.5", 0.6, 0.4)]
    for number, (place, score, other) in enumerate([*runs, ("0.6", 0.1, 0.9)]):
        row = {"role": "search", "number": number, "state": "succeeded", "score": score}
        row |= {"objectives": {"easy-vqa.accuracy": score, "sparsity": other}}
        row |= {"vision_target": place, "point": {"replicate": str(number % 2)}}
        empty_sweep.commit("trials", [row], trial=f"t{number:03d}", epoch=1)
    frame = results_table(empty_sweep)
    assert frame["best"].tolist() == [True, True, False, False, True]
    assert best_table(empty_sweep, pareto=True)["trial"].tolist() == ["t000", "t004"]
    row = sweep_row(empty_sweep)
    assert (row["best"], row["front"]) == (None, 2)
    assert short_row(row)["best"] == "front of 2"


def test_a_front_of_one_is_that_of_the_objectives(empty_sweep: SweepStore) -> None:
    for number, (size, score) in enumerate([(0.5, 0.9), (0.6, 0.8), (0.7, 0.7)]):
        row = {"role": "search", "number": number, "state": "succeeded", "score": score}
        row |= {"objectives": {"easy-vqa.accuracy": score, "speed": score}, "sparsity": size}
        empty_sweep.commit("trials", [row], trial=f"t{number:03d}", epoch=1)
    assert best_table(empty_sweep, pareto=True)["trial"].tolist() == ["t000"]


def test_what_a_larger_and_better_allocation_beats_is_on_no_front(empty_sweep: SweepStore) -> None:
    for number, (size, score) in enumerate([(0.5, 0.825), (0.6, 0.832), (0.6, 0.7), (0.7, 0.669)]):
        row = {"role": "search", "number": number, "state": "succeeded", "score": score}
        row |= {"sparsity": size, "budget": size, "vision_target": f"0.{number}"}
        row |= {"objectives": {"easy-vqa.accuracy": score}}
        empty_sweep.commit("trials", [row], trial=f"t{number:03d}", epoch=1)
    assert best_table(empty_sweep)["trial"].tolist() == ["t000", "t001", "t003"]
    assert best_table(empty_sweep, pareto=True)["trial"].tolist() == ["t001", "t003"]


def test_a_best_at_an_end_of_its_axis_is_at_the_edge() -> None:
    content = {"ressa": 1, "name": "edge", "model": "pocket-blip2", "budget": [0.5]}
    content |= {"space": {"vision_sparsity": {"choices": ["0.3", "0.4", "0.5", "2:4"]}}}
    spec = spec_from_mapping(content).spec
    row = {"budget": 0.5, "language": "1/2"}
    found = [edge_of(row | {"vision": v}, spec) for v in ("0.3", "0.4", "0.5", "2:4")]
    assert found == ["vision_low", None, "vision_high", None]
    assert edge_of(row | {"vision": "0.3", "budget": math.nan}, spec) is None, "no line"


def test_without_a_standard_error_the_best_alone_is_within_one(repeated: SweepStore) -> None:
    assert best_table(repeated, within="9se")["trial"].tolist() == ["t003", "t000"]
    rows = repeated.read("trials").to_pylist()
    for row in rows:
        row |= {"score_pruned_se": None}
        repeated.commit("trials", [row], trial=row["trial"], epoch=1, attempt=2)
    assert best_table(repeated, within="1se")["trial"].tolist() == ["t003"]


def test_without_runs_every_trial_is_a_row(sweep: SweepStore) -> None:
    frame = results_table(sweep)
    found = over_runs(frame)
    assert found["trial"].tolist() == frame["trial"].tolist()
    assert found["best"].tolist() == frame["best"].tolist()
