"""The picture is drawn whatever the sweep holds; its text says what it shows."""

from pathlib import Path

import pytest

from ressa.errors import SpecError, StoreError
from ressa.landscape import plot, results_table
from ressa.landscape.picture import draw
from ressa.store import SweepStore

from .conftest import commit

pytest.importorskip("matplotlib")


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_a_picture_is_written(sweep: SweepStore, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "new" / f"map{suffix}"
    plot(sweep, path)
    assert path.stat().st_size > 10_000


def test_it_names_model_metric_budgets_and_floors(sweep: SweepStore, tmp_path: Path) -> None:
    plot(sweep, tmp_path / "map.svg")
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


def test_drawing_again_writes_the_same_bytes(sweep: SweepStore, tmp_path: Path) -> None:
    plot(sweep, tmp_path / "one.svg")
    plot(sweep, tmp_path / "two.svg")
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_a_sweep_without_repair_has_one_panel(grid_sweep: SweepStore, tmp_path: Path) -> None:
    plot(grid_sweep, tmp_path / "map.svg")
    text = (tmp_path / "map.svg").read_text()
    assert "before repair" in text
    assert "after repair" not in text


def test_points_on_one_line_get_no_surface(empty_sweep: SweepStore) -> None:
    for at in range(8):
        commit(empty_sweep, f"t{at:03d}", str(at / 10), str(at / 10))
    assert [len(axes.images) for axes in draw(results_table(empty_sweep)).axes[:2]] == [0, 0]


def test_enough_points_get_a_surface(sweep: SweepStore) -> None:
    assert [len(axes.images) for axes in draw(results_table(sweep)).axes[:2]] == [1, 1]


def test_a_sweep_without_trials_is_drawn_as_such(empty_sweep: SweepStore, tmp_path: Path) -> None:
    plot(empty_sweep, tmp_path / "map.svg")
    assert "no trial has succeeded yet" in (tmp_path / "map.svg").read_text()


def test_a_name_that_is_no_picture_is_refused(sweep: SweepStore, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"'map.txt' ends in none of .png, .svg, .pdf"):
        plot(sweep, tmp_path / "map.txt")


def test_a_place_that_takes_no_file_is_one_clear_message(sweep: SweepStore) -> None:
    with pytest.raises(StoreError, match=r"^cannot write /proc/map.png: "):
        plot(sweep, "/proc/map.png")
