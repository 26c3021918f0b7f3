"""The terminal map reads without colour and keeps every trial in a cell of its own."""

import re

import pytest
from rich.console import Console

from ressa.landscape import heatmap, results_table
from ressa.store import SweepStore

from .conftest import commit


def _lines(sweep: SweepStore, width: int = 100, **options: object) -> list[str]:
    console = Console(width=width, color_system=None, **options)  # type: ignore[arg-type]
    with console.capture() as captured:
        console.print(heatmap(results_table(sweep)))
    return captured.get().splitlines()


def test_both_maps_stand_side_by_side_in_100_columns(sweep: SweepStore) -> None:
    lines = _lines(sweep)
    assert max(map(len, lines)) <= 100
    assert any("before repair" in line and "after repair" in line for line in lines)


def test_in_a_narrow_terminal_one_map_is_above_the_other(sweep: SweepStore) -> None:
    lines = _lines(sweep, width=60)
    assert max(map(len, lines)) <= 60
    assert not any("before repair" in line and "after repair" in line for line in lines)


def test_every_score_is_there_as_a_number(sweep: SweepStore) -> None:
    text = "\n".join(_lines(sweep))
    for score in results_table(sweep).query("role == 'search'")["repaired"]:
        assert f"{100 * score:.1f}" in text


def test_the_best_of_each_budget_is_starred_once_per_map_and_named(sweep: SweepStore) -> None:
    text = "\n".join(_lines(sweep))
    assert len(re.findall(r"★\d", text)) == 6
    assert re.search(
        r"★ budget 0.5: t001  vision 0.5 language 0.500  98.3 ± 0.7, the best of", text
    )


def test_without_budgets_one_best_is_starred_and_named(grid_sweep: SweepStore) -> None:
    text = "\n".join(_lines(grid_sweep))
    assert len(re.findall(r"★\d", text)) == 1
    assert re.search(r"★ t000  vision 0 language 0  98.6 ± 1.1, the best of 9", text)


def test_each_map_stars_its_own_best(sweep: SweepStore) -> None:
    frame = results_table(sweep)
    searched = frame[frame["role"] == "search"]
    text = "\n".join(_lines(sweep))
    starred = [float(number) for number in re.findall(r"★(\d+\.\d)", text)]
    bests = [
        round(100 * best, 1)
        for state in ("pruned", "repaired")
        for best in searched.groupby("budget")[state].max()
    ]
    assert sorted(starred) == sorted(bests)


def test_budgets_are_listed_with_their_best(sweep: SweepStore) -> None:
    text = "\n".join(_lines(sweep))
    assert re.findall(r"budget (\S+): (\S+)", text) == [
        ("0.5", "t001"),
        ("0.6", "t007"),
        ("0.7", "t015"),
    ]


def test_a_pattern_has_a_column_of_its_own(grid_sweep: SweepStore) -> None:
    lines = _lines(grid_sweep)
    assert lines[2].split() == ["2:4", "82.4", "81.0", "76.0"]
    assert lines[5].split() == ["0", "0.5", "2:4"]
    assert not any("after repair" in line for line in lines)


def test_ranges_of_vision_stand_apart(empty_sweep: SweepStore) -> None:
    for at in range(9):
        commit(empty_sweep, f"t{at:03d}", f"0.{at}5", "0.5", repair=False)
    low, high = _lines(empty_sweep)[3:5]
    assert low.split() == ["0", "0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8"]
    assert high.split() == [f"–0.{n}" for n in range(1, 10)]


@pytest.mark.parametrize("width", [80, 120])
def test_a_map_of_many_columns_fits_the_terminal(empty_sweep: SweepStore, width: int) -> None:
    for at in range(17):
        commit(empty_sweep, f"t{at:03d}", str((at + 0.5) / 20), "0.5", repair=False)
    lines = _lines(empty_sweep, width)
    assert max(map(len, lines)) <= width
    assert lines[3].split()[0] == "0", "the axis follows the row at once"


def test_language_rises_upwards(grid_sweep: SweepStore) -> None:
    assert [line.split()[0] for line in _lines(grid_sweep)[2:5]] == ["2:4", "0.5", "0"]


@pytest.mark.parametrize("language", ["1", "0.9999", "0.69999", "0.7", "0"])
def test_every_sparsity_has_a_row(empty_sweep: SweepStore, language: str) -> None:
    others = ["0.05", "0.15", "0.25", "0.35", "0.45", "0.55", "0.65", "0.75", "0.85", "0.95"]
    for at, one in enumerate([*others, language]):
        commit(empty_sweep, f"t{at:03d}", str(at / 20), one, repair=False)
    cells = [cell for line in _lines(empty_sweep)[2:12] for cell in line.split()[1:]]
    assert len(cells) - cells.count("·") == 11


def test_colour_goes_with_the_number(sweep: SweepStore) -> None:
    console = Console(width=100, force_terminal=True, color_system="truecolor")
    with console.capture() as captured:
        console.print(heatmap(results_table(sweep)))
    assert "48;2;68;1;84m" in captured.get()  # the dark end, for what fell below the floor


def test_there_is_no_map_of_nothing(empty_sweep: SweepStore) -> None:
    assert _lines(empty_sweep) == ["no map yet: no trial of the search has succeeded"]
