"""The picture is drawn whatever the sweep holds; its text says what it shows."""

from pathlib import Path

import pytest

from ressa.errors import NotFoundError, SpecError, StoreError
from ressa.landscape import plot, results_table
from ressa.landscape.charted import charts
from ressa.landscape.picture import draw
from ressa.landscape.points import colour_range
from ressa.store import SweepStore

from .conftest import commit, quickstart

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> SweepStore:
    """The sweep, left as it is: its surrogate is fitted once for all tests."""
    return quickstart(tmp_path_factory.mktemp("kept"))


@pytest.mark.parametrize(
    ("name", "show"),
    [("map.png", "map"), ("map.svg", "map"), ("map.pdf", "map"), ("lines.png", "lines")],
)
def test_a_picture_is_written(kept: SweepStore, tmp_path: Path, name: str, show: str) -> None:
    path = tmp_path / "new" / name
    plot([kept], path, show=show)
    assert path.stat().st_size > 10_000


def test_layers_and_curves_of_the_best_are_drawn(sweep: SweepStore, tmp_path: Path) -> None:
    for show in ("layers", "curves"):
        with pytest.raises(NotFoundError, match=r"of .*t001"):
            plot([sweep], tmp_path / "none.png", show=show)
    layers = [
        {"name": f"{tower}.{n}", "tower": tower, "block": n // 2, "sparsity": 0.5}
        for tower in ("vision", "language")
        for n in range(4)
    ]
    sweep.commit("layers", layers, epoch=1, trial="t001")
    curve = [{"step": n, "loss": 1 / n, "ce": None} for n in range(1, 9)]
    sweep.commit("curves", curve, epoch=1, trial="t001")
    plot([sweep], tmp_path / "layers.svg", show="layers")
    plot([sweep], tmp_path / "curves.svg", show="curves")
    assert "sparsity, layer by layer" in (tmp_path / "layers.svg").read_text()
    assert "t001, 50:50" in (tmp_path / "curves.svg").read_text()


def test_a_name_with_dollars_is_no_formula(
    sweep: SweepStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "/data/$run^/{$1}"
    monkeypatch.setattr("ressa.landscape.picture.title_of", lambda frame: name)
    plot([sweep], tmp_path / "map.svg")
    assert name in (tmp_path / "map.svg").read_text()


def test_how_sure_the_map_is_stands_below_it(kept: SweepStore, tmp_path: Path) -> None:
    plot([kept], tmp_path / "map.svg")
    text = (tmp_path / "map.svg").read_text()
    assert "± of one more run, in points, after repair" in text
    assert "chance to lie within 1 of the best of its size, after repair" in text
    assert "contours: Gaussian process" in text


def test_each_value_of_an_option_has_a_map(empty_sweep: SweepStore, tmp_path: Path) -> None:
    for number in range(4):
        point = {"repair.steps": (50, 100)[number % 2]}
        commit(empty_sweep, f"t{number:03d}", f"0.{5 + number // 2}", "0.5", point=point)
    plot([empty_sweep], tmp_path / "map.svg", by="repair.steps")
    text = (tmp_path / "map.svg").read_text()
    titles = ["before repair", "repair.steps = 50", "repair.steps = 100"]
    assert [text.count(f"<!-- {title} -->") for title in titles] == [1, 1, 1]
    with pytest.raises(SpecError, match=r"--by prune.method: .* Fields: repair.steps, pattern"):
        plot([empty_sweep], tmp_path / "map.svg", by="prune.method")


def test_each_seed_has_a_map_if_asked(empty_sweep: SweepStore, tmp_path: Path) -> None:
    for number in range(4):
        point = {"repair.seed": number % 2, "replicate": number // 2}
        commit(empty_sweep, f"t{number:03d}", "0.5", "0.5", point=point)
    plot([empty_sweep], tmp_path / "map.svg", by="repair.seed")
    text = (tmp_path / "map.svg").read_text()
    assert [text.count(f"<!-- repair.seed = {seed} -->") for seed in (0, 1)] == [1, 1]


def test_a_map_is_written_as_rows(kept: SweepStore, tmp_path: Path) -> None:
    import pandas as pd

    plot([kept], tmp_path / "map.parquet")
    rows = pd.read_parquet(tmp_path / "map.parquet")
    trials, places = (rows[rows["kind"] == kind] for kind in ("trial", "place"))
    assert len(trials) == 2 * (18 + 1) + 1, "dense is scored once"
    assert set(places["state"]) == {"pruned", "repaired"}
    assert places["score"].between(0, 1).all()
    assert places["deviation"].gt(0).all()
    assert places["within_margin"].between(0, 1).all()


def test_it_names_model_metric_budgets_and_floors(kept: SweepStore, tmp_path: Path) -> None:
    plot([kept], tmp_path / "map.svg")
    text = (tmp_path / "map.svg").read_text()
    for said in (
        "pocket-blip2",
        "wanda per row",
        "easy-vqa.balanced_accuracy in %",
        "2,000 questions a point",
        "before repair",
        "after repair",
        "budget 0.6",
        "majority answer 41.0",
        "dense, blank image 38.5",
        "147,456 vision",
    ):
        assert said in text, said


def test_drawing_again_writes_the_same_bytes(kept: SweepStore, tmp_path: Path) -> None:
    plot([kept], tmp_path / "one.svg")
    plot([kept], tmp_path / "two.svg")
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_a_sweep_without_repair_has_one_panel(grid_sweep: SweepStore, tmp_path: Path) -> None:
    plot([grid_sweep], tmp_path / "map.svg")
    text = (tmp_path / "map.svg").read_text()
    assert "before repair" in text
    assert "after repair" not in text


def test_points_on_one_line_get_no_surface(empty_sweep: SweepStore) -> None:
    for at in range(8):
        commit(empty_sweep, f"t{at:03d}", str(at / 10), str(at / 10))
    assert [len(axes.images) for axes in draw(results_table(empty_sweep)).axes[:2]] == [0, 0]


def test_enough_points_get_a_surface(kept: SweepStore) -> None:
    assert [len(axes.images) for axes in draw(results_table(kept)).axes[:2]] == [1, 1]


def test_a_sweep_without_trials_is_drawn_as_such(empty_sweep: SweepStore, tmp_path: Path) -> None:
    plot([empty_sweep], tmp_path / "map.svg")
    assert "no trial has succeeded yet" in (tmp_path / "map.svg").read_text()


def test_a_name_that_is_no_picture_is_refused(kept: SweepStore, tmp_path: Path) -> None:
    with pytest.raises(
        SpecError, match=r"'map.txt' ends in none of .png, .svg, .pdf, .html, .parquet"
    ):
        plot([kept], tmp_path / "map.txt")


def test_of_numbers_that_would_overprint_the_better_one_stays(empty_sweep: SweepStore) -> None:
    for at in range(8):
        commit(empty_sweep, f"t{at:03d}", f"0.{at + 1}", "0.3", repair=False)
    commit(empty_sweep, "t008", "0.305", "0.31", repair=False)
    scores = results_table(empty_sweep).set_index("trial")["pruned"]
    shown = [text.get_text() for text in draw(results_table(empty_sweep)).axes[0].texts]
    assert scores["t002"] > scores["t008"]
    assert f"{100 * scores['t002']:.1f}" in shown
    assert f"{100 * scores['t008']:.1f}" not in shown


def test_lines_end_where_the_map_does(kept: SweepStore) -> None:
    found = charts([kept], margin=1.0)["repaired"]
    spans = found.chart.vision, found.chart.language
    rows = found.bests.to_dict("records")
    assert rows
    for row in rows:
        ends = found.ends(row["line"], row["equal"])
        assert len(ends) == 2
        for place in ends:
            for sparsity, span in zip(place, spans, strict=True):
                assert span[0] - 1e-9 <= sparsity <= span[-1] + 1e-9


def test_a_place_that_takes_no_file_is_one_clear_message(kept: SweepStore) -> None:
    with pytest.raises(StoreError, match=r"^cannot write /proc/map.png: "):
        plot([kept], "/proc/map.png")


@pytest.mark.parametrize(
    ("score", "scale"), [(0.0, (0.0, 0.01)), (1e-8, (0.0, 1e-8)), (1.0, (0.99, 1.0))]
)
def test_where_all_score_alike_colours_begin_at_0_or_above(
    empty_sweep: SweepStore, score: float, scale: tuple[float, float]
) -> None:
    commit(empty_sweep, "t000", "0.3", "0.5", repair=False)
    (row,) = empty_sweep.read("trials").to_pylist()
    row |= {"score": score, "score_pruned": score, "floor_majority": None}
    row |= {"floor_dense_blank": None}
    empty_sweep.commit("trials", [row], trial="t000", epoch=1, attempt=1)
    assert colour_range(results_table(empty_sweep)) == pytest.approx(scale)


@pytest.mark.parametrize(("low", "label"), [(0.995, "99.50"), (0.99, "99.2"), (0.6, "60")])
def test_a_scale_says_as_many_digits_as_tell_its_marks_apart(
    empty_sweep: SweepStore, low: float, label: str
) -> None:
    for number, (vision, score) in enumerate((("0.3", 1.0), ("0.5", low))):
        commit(empty_sweep, f"t{number:03d}", vision, "0.5", repair=False)
        (row,) = empty_sweep.read("trials", where={"trial": f"t{number:03d}"}).to_pylist()
        row |= {"score": score, "score_pruned": score}
        empty_sweep.commit("trials", [row], trial=row["trial"], epoch=1, attempt=1)
    figure = draw(results_table(empty_sweep))
    figure.canvas.draw()
    shown = [text.get_text() for text in figure.axes[-1].get_yticklabels() if text.get_text()]
    assert label in shown
    assert len(shown) == len(set(shown))
