"""Several sweeps are one map where they differ in nothing but sparsities and seeds."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ressa.errors import SpecError
from ressa.landscape import line_table, plot, results_of, results_table
from ressa.landscape.figures import layers_of
from ressa.landscape.observed import mapped_trials
from ressa.landscape.report import gather_map
from ressa.store import Store, SweepStore, open_store
from tests.landscape.conftest import begin, commit

QUESTIONS = 40


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store without sweeps."""
    return open_store(tmp_path / "results", create=True)


def lay_out(
    store: Store, name: str, places: list[tuple[str, str]], *, answers: bool = False, **fields: Any
) -> SweepStore:
    """Makes a sweep of some allocations, without repair unless its file says so."""
    repairs = "repair" in fields
    made = begin(store, name, **({"repair": {"method": "none"}} | fields))
    commit(made, "dense", "0", "0", repair=False)
    for number, (vision, language) in enumerate(places):
        trial = f"t{number:03d}"
        commit(made, trial, vision, language, repair=repairs)
        score = results_table(made).set_index("trial").loc[trial, "score"]
        rows = [
            {"task": "easy-vqa", "split": "validation", "state": "pruned", "image": "real"}
            | {"example_id": str(n), "image_id": str(n // 4), "true_answer": f"{n % 3}"}
            | {"value": float(n < score * QUESTIONS)}
            for n in range(QUESTIONS)
        ]
        if answers:
            made.commit("answers", rows, trial=trial, epoch=1)
    return made


LINE = [("0.3", "0.7"), ("0.5", "0.5"), ("0.7", "0.3")]
GRID = [("0.3", "0.3"), ("0.3", "0.6"), ("0.6", "0.3"), ("0.6", "0.6")]


def test_two_sweeps_are_one_table(store: Store) -> None:
    line, grid = lay_out(store, "line", LINE), lay_out(store, "grid", GRID)
    found = results_of([line, grid])
    names = [f"line/t{n:03d}" for n in range(3)] + [f"grid/t{n:03d}" for n in range(4)]
    assert found["trial"].tolist() == ["dense", *names]
    assert list(found) == list(results_table(line))
    best = found[found["best"]]
    assert best["trial"].tolist() == ["grid/t000"]
    assert best["score"].item() == found.loc[found["role"] == "search", "score"].max()
    assert found.attrs["about"].sweep == "line + grid"
    data = gather_map([line, grid])
    assert data["facts"][0][1] == "grid/t000, not confirmed"
    assert "ressa confirm grid " in data["headline"]


def test_one_sweep_is_its_own_table(store: Store) -> None:
    line = lay_out(store, "line", LINE)
    pd.testing.assert_frame_equal(results_of([line]), results_table(line))


def test_a_trial_that_two_sweeps_share_is_one_row(store: Store) -> None:
    made = [lay_out(store, name, LINE) for name in ("one", "other")]
    for sweep in made:
        row = next(iter(sweep.read("trials", where={"trial": "t001"}).to_pylist()))
        sweep.commit("trials", [{**row, "key": "same"}], trial="t001", epoch=1, attempt=1)
    assert len(results_of(made)) == 1 + 3 + 2
    assert sum(map(len, mapped_trials(made).values())) == 3 + 2


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model": "pocket-llava"}, "model is pocket-blip2 in line, but pocket-llava in other"),
        (
            {"evaluate": [{"task": "easy-vqa", "split": "validation", "samples": 500}]},
            r"evaluate is 2000 questions of easy-vqa/validation \(seed 0\) in line, but 500 ",
        ),
        (
            {"prune": {"method": "sparsegpt"}},
            r"prune\.method is wanda in line, but sparsegpt in other\. Draw them one by one, or a "
            r"map for each value: --by prune\.method\.",
        ),
        (
            {"prune": {"calibration": {"activations": "tower"}}},
            r"prune\.calibration\.activations is dense in line, but tower in other",
        ),
        ({"repair": {"steps": 7}}, r"repair\.method is none in line, but sparselora in other\. Dr"),
    ],
    ids=["model", "evaluation", "method", "activations", "repair"],
)
def test_what_differs_is_named(store: Store, fields: dict[str, Any], said: str) -> None:
    line = lay_out(store, "line", LINE)
    other = lay_out(store, "other", GRID, **fields)
    if "model" in fields:
        row = next(iter(other.read("trials", where={"trial": "t001"}).to_pylist()))
        row = {**row, "model": "pocket-llava"}
        other.commit("trials", [row], trial="t001", epoch=1, attempt=1)
    for refused in (results_of, mapped_trials):
        with pytest.raises(SpecError, match=said):
            refused([line, other])


def test_seeds_and_what_moves_no_score_do_not_tell_sweeps_apart(store: Store) -> None:
    line = lay_out(store, "line", LINE)
    fields = {"prune": {"calibration": {"seed": 3}}, "replicates": 2, "budget": 0.5}
    fields |= {"verdict": {"margin": 2}, "space": {"vision_sparsity": {"choices": [0.3, 0.6]}}}
    assert len(results_of([line, lay_out(store, "other", GRID, **fields)])) == 8


def test_an_axis_and_a_fixed_field_of_one_value_are_alike(store: Store) -> None:
    line = lay_out(store, "line", LINE, prune={"method": "magnitude"})
    other = begin(store, "other", repair={"method": "none"})
    point = {"vision_sparsity": "0.2", "prune.method": "magnitude"}
    commit(other, "t000", "0.2", "0.2", repair=False, point=point)
    assert len(results_of([line, other])) == 5
    commit(other, "t001", "0.4", "0.2", repair=False, point=point | {"prune.method": "random"})
    with pytest.raises(SpecError, match="magnitude in line, but random in other"):
        results_of([line, other])


def test_by_a_field_each_sweep_says_its_own_value(store: Store, tmp_path: Path) -> None:
    line = lay_out(store, "line", LINE)
    other = lay_out(store, "other", GRID, prune={"method": "random"})
    found = results_of([line, other], by="prune.method").set_index("trial")
    assert found.loc["line/t000", "options"] == "prune.method=wanda"
    assert found.loc["other/t000", "options"] == "prune.method=random"
    assert found.loc["dense", "options"] == ""
    plot([line, other], tmp_path / "map.svg", by="prune.method")
    text = (tmp_path / "map.svg").read_text()
    assert "random, before repair" in text
    assert "wanda, before repair" in text


def test_the_verb_says_what_the_library_says(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ressa.cli import main

    made = [
        lay_out(store, "line", LINE, answers=True),
        lay_out(store, "grid", GRID, answers=True),
    ]
    monkeypatch.chdir(tmp_path)
    for words in (["--show", "lines", "--out", "lines.parquet"], ["--out", "map.html"]):
        monkeypatch.setattr("sys.argv", ["ressa", "landscape", "line", "grid", "grid", *words])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == 0
    found = pd.read_parquet("lines.parquet")
    pd.testing.assert_frame_equal(found, line_table(made, margin=1.0), check_dtype=False)
    assert found["equal"].nunique() > 1
    assert "grid/t003" in Path("map.html").read_text()


def test_a_sweep_without_trials_adds_none(store: Store) -> None:
    line, empty = lay_out(store, "line", LINE), begin(store, "empty", repair={"method": "none"})
    assert len(results_of([line, empty], by="prune.method")) == len(results_of([line]))


def test_layers_are_those_of_the_best_whose_sweep_it_is(store: Store) -> None:
    line, grid = lay_out(store, "line", LINE), lay_out(store, "grid", GRID)
    layer = {"name": "vision.0", "tower": "vision", "block": 0, "sparsity": 0.3}
    grid.commit("layers", [layer], trial="t000", epoch=1)
    assert layers_of([line, grid], results_of([line, grid]))["trial"].tolist() == ["grid/t000"]
