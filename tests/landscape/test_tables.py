"""A results table says what was asked, what was counted, and what scores stand beside."""

import math
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from ressa.errors import SpecError
from ressa.landscape import (
    chosen,
    heatmap,
    latex_table,
    plain_table,
    plot,
    render_table,
    results_table,
)
from ressa.landscape.render import percent
from ressa.landscape.tables import COLUMNS, asked_lines, recovery
from ressa.store import SweepStore

from .conftest import commit


def _printed(renderable: object, width: int = 100) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(renderable)
    console.file.close()
    return console.export_text()


def test_columns_are_as_documented(sweep: SweepStore, empty_sweep: SweepStore) -> None:
    assert list(results_table(sweep)) == list(COLUMNS)
    assert list(results_table(empty_sweep)) == list(COLUMNS)


def test_the_page_lists_the_columns() -> None:
    page = (Path(__file__).parents[2] / "docs" / "query.md").read_text()
    assert [row for row in page.splitlines() if row.startswith("| `")][: len(COLUMNS)] == [
        f"| `{name}` | {meaning} |" for name, meaning in COLUMNS.items()
    ]


def test_what_stays_and_what_goes_are_all(sweep: SweepStore) -> None:
    frame = results_table(sweep)
    assert (
        ((1 - frame["sparsity"]) * (147_456 + 196_608)).round().astype(int).eq(frame["kept"]).all()
    )


def test_rows_are_chosen_sorted_and_cut_to_columns(sweep: SweepStore) -> None:
    frame = results_table(sweep)
    found = chosen(
        frame, where="budget = 0.6 AND repaired > 0.9", sort=["-score"], columns=["trial", "score"]
    )
    assert list(found) == ["trial", "score"]
    assert found["score"].is_monotonic_decreasing
    wanted = frame.query("budget == 0.6 and repaired > 0.9")
    assert set(found["trial"]) == set(wanted["trial"])
    assert chosen(frame, sort=["repaired"])["repaired"].isna().iloc[-1]
    with pytest.raises(SpecError, match="Did you mean 'score'"):
        chosen(frame, sort=["-scor"])


def test_a_latex_table_escapes_what_latex_reads(sweep: SweepStore) -> None:
    frame = results_table(sweep)[["trial", "standard_error"]].head(1).assign(a="50 % & more_")
    text = latex_table(frame)
    assert text.startswith(r"\begin{tabular}{lrl}")
    assert r"trial & standard\_error & a \\" in text
    assert r"50 \% \& more\_ \\" in text
    assert "\n{[}2pt]{*} \\\\" in latex_table(frame[[]].assign(a="\x1b[2pt]*"))


def test_baselines_come_first(sweep: SweepStore) -> None:
    frame = results_table(sweep)
    assert list(frame["trial"][:3]) == ["dense", "dense-repaired", "t000"]


def test_a_budget_is_met_by_what_was_counted(sweep: SweepStore) -> None:
    frame = results_table(sweep)
    searched = frame[frame["role"] == "search"]
    assert (searched["sparsity"] - searched["budget"]).abs().max() < 2e-6
    assert searched["whole"].max() < searched["sparsity"].max()


def test_of_each_budget_one_trial_is_the_best_and_no_baseline_is(sweep: SweepStore) -> None:
    searched = results_table(sweep).query("role == 'search'")
    best = results_table(sweep).query("best").set_index("budget")["score"]
    assert best.to_dict() == searched.groupby("budget")["score"].max().to_dict()


def lost(*scores: tuple[float, float], error: float) -> list[float]:
    """Recovery to a dense score of 1, by scores before and after repair."""
    pruned, repaired = zip(*scores, strict=True)
    columns = {"role": "search", "score_pruned": pruned, "score_repaired": repaired}
    trials = pd.DataFrame({**columns, "score_pruned_se": math.nan})
    found: list[float] = recovery(trials, 1.0, error).tolist()
    return found


def test_recovery_is_the_share_of_the_loss_that_came_back() -> None:
    found = lost((0.5, 0.9), (0.5, 1.0), (0.5, 0.4), error=0.01)
    assert found == pytest.approx([0.8, 1, -0.2])


def test_recovery_of_nothing_lost_is_undefined() -> None:
    found = lost((0.985, 0.99), (0.5, math.nan), error=0.01)  # a loss within two standard errors
    assert all(map(math.isnan, [*found, *lost((1.0, 1.0), error=0.0)]))


def test_recovery_against_dense_repaired_is_smaller(sweep: SweepStore) -> None:
    searched = results_table(sweep).query("role == 'search' and recovery.notna()")
    assert (searched["recovery_repaired"] < searched["recovery"]).all()


def test_without_the_dense_baseline_recovery_reads_the_yardstick(empty_sweep: SweepStore) -> None:
    commit(empty_sweep, "t000", "0.7", "0.7")
    assert results_table(empty_sweep)["recovery"].isna().all()
    yardstick = {
        "task": "easy-vqa",
        "split": "validation",
        "state": "dense",
        "image": "real",
        "metric": "balanced_accuracy",
        "value": 0.986,
        "standard_error": 0.004,
    }
    empty_sweep.commit("scores", [yardstick], trial="t000", epoch=1)
    frame = results_table(empty_sweep)
    assert frame.attrs["about"].dense == 0.986
    assert 0.9 < frame["recovery"].item() < 1


def test_the_table_fits_100_columns_and_cuts_nothing(sweep: SweepStore) -> None:
    text = _printed(render_table(results_table(sweep)))
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text
    for word in ("dense-repaired ", "98304/196608", "before", "recovery", "t017"):
        assert (word in text) == (word != "98304/196608")  # a solved target is shown as a number
    assert "0.500" in text
    assert "2:4" in text


def test_without_room_for_its_least_columns_the_table_stands_upright(sweep: SweepStore) -> None:
    lines = _printed(render_table(results_table(sweep), width=30), width=30).splitlines()
    assert ["vision", "2:4"] in [line.split() for line in lines]
    assert max(map(len, lines)) <= 30


def test_columns_that_say_nothing_are_left_out(empty_sweep: SweepStore) -> None:
    commit(empty_sweep, "t000", "0.5", "0.5", repair=False)
    text = _printed(render_table(results_table(empty_sweep)))
    assert "after" not in text.splitlines()[2]
    assert "recovery" not in text
    assert "both = sparsity, before = pruned, ± = standard_error" in " ".join(text.split())


def test_the_table_says_of_what_and_against_which_floors(sweep: SweepStore) -> None:
    text = _printed(render_table(results_table(sweep)))
    assert "147,456 prunable weights of vision and 196,608 of language" in " ".join(text.split())
    assert "of all 471,000 parameters" in text
    assert "majority answer 41.0" in text
    assert "dense, blank image 38.5" in text


def test_what_else_the_search_chose_is_shown(empty_sweep: SweepStore) -> None:
    for at, method in enumerate(("random", "wanda")):
        point: dict[str, object] = {"vision_sparsity": "0.6", "prune.method": method}
        commit(empty_sweep, f"t{at:03d}", "0.6", "0.6", point=point)
    frame = results_table(empty_sweep)
    assert list(frame["options"]) == ["prune.method=random", "prune.method=wanda"]
    text = _printed(render_table(frame))
    assert "prune.method=wanda" in text
    assert max(map(len, text.splitlines())) <= 100


def test_a_failed_trial_keeps_its_place_and_says_so(sweep: SweepStore) -> None:
    row = {
        "role": "search",
        "number": 18,
        "state": "failed",
        "vision_target": "0.9",
        "vision_sparsity": 0.9,
        "failure_stage": "repair",
        "failure_class": "numeric",
        "error": "loss is NaN at step 3",
    }
    sweep.commit("trials", [row], trial="t018", epoch=1)
    assert "t018 failed" in _printed(render_table(results_table(sweep)))


def test_an_empty_sweep_has_an_empty_table(empty_sweep: SweepStore) -> None:
    assert "trial" in _printed(render_table(results_table(empty_sweep)))


def test_a_plain_table_shows_gaps_times_and_brackets(sweep: SweepStore) -> None:
    frame = sweep.trials()[["trial", "number", "committed", "error"]]
    frame.loc[0, "trial"] = "[red]x[/red]"
    text = _printed(plain_table(frame))
    assert "[red]x[/red]" in text
    assert "–" in text
    assert "UTC" in text
    assert "." not in text.splitlines()[-1]


def test_a_plain_table_without_room_breaks_headings_and_then_stands_upright() -> None:
    row = {"score_pruned": 0.123456, "score_repaired": 0.654321, "failure_stage": "repair"}
    frame = pd.DataFrame([row, row])
    assert "score_pruned" in _printed(plain_table(frame, width=80)).splitlines()[0]
    narrow = _printed(plain_table(frame, width=30)).splitlines()
    assert narrow[0].split() == ["score_", "score_", "failure_"]
    assert narrow[1].split() == ["pruned", "repaired", "stage"]
    upright = _printed(plain_table(frame, width=20)).splitlines()
    assert upright[0].split() == ["score_pruned", "0.123456"]
    assert [line.split() for line in upright if "stage" in line] == [
        ["failure_stage", "repair"]
    ] * 2


def test_times_without_room_lose_year_and_seconds_and_utc_is_said_once() -> None:
    row = {"sweep": "map-lines", "updated": pd.Timestamp("2026-11-27 15:42:53", tz="UTC")}
    wide, narrow = (
        _printed(plain_table(pd.DataFrame([row]), width=width)).splitlines() for width in (40, 25)
    )
    assert wide[0].split() == narrow[0].split() == ["sweep", "updated", "(UTC)"]
    assert wide[-1].split() == ["map-lines", "2026-11-27", "15:42:53"]
    assert narrow[-1].split() == ["map-lines", "11-27", "15:42"]


def test_where_both_towers_were_asked_together_the_map_shows_what_came_of_it(
    empty_sweep: SweepStore, tmp_path: Path
) -> None:
    asked = ("0.3", "0.4", "0.5", "0.6", "0.7")
    for at, sparsity in enumerate(asked):
        point: dict[str, object] = {"sparsity": sparsity}
        vision = f"0.{at + 1}5"
        commit(empty_sweep, f"t{at:03d}", vision, sparsity, point=point, shared=float(sparsity))
    frame = results_table(empty_sweep)
    assert frame["vision"].isna().all()
    assert list(frame["vision_sparsity"].round(2)) == [0.15, 0.25, 0.35, 0.45, 0.55]
    assert list(frame["budget"]) == [float(text) for text in asked]
    assert frame.attrs["about"].methods == "wanda over both towers"
    printed = _printed(render_table(frame))
    assert "0.250" in printed
    assert "sparsity=" not in printed  # the column says so
    assert "vision 0.150 language 0.300" in _printed(heatmap(frame))
    plot([empty_sweep], tmp_path / "map.svg")
    assert (tmp_path / "map.svg").read_text().count("budget") >= len(asked)


def test_what_no_other_trial_beats_in_every_objective_is_the_best(empty_sweep: SweepStore) -> None:
    values = [(0.9, 0.4), (0.8, 0.5), (0.8, 0.4), (0.7, 0.6), (0.9, 0.4)]
    for number, (score, sparsity) in enumerate(values):
        row = {
            "role": "search",
            "number": number,
            "state": "succeeded",
            "score": score,
            "objectives": {"easy-vqa.exact_match": score, "sparsity": sparsity},
        }
        empty_sweep.commit("trials", [row], epoch=1, trial=f"t{number:03d}", attempt=0)
    assert list(results_table(empty_sweep)["best"]) == [True, True, False, True, False]


@pytest.mark.parametrize(
    ("point", "options"),
    [
        ('{"vision_sparsity": "1/3", "language_sparsity": 0.5}', ""),
        ('{"budget": 0.5, "prune.method": "wanda"}', "prune.method=wanda"),
        ('{"prune.method": "wanda", "sparsity": "2:4", "n": 3}', "prune.method=wanda n=3"),
        ('{"a": {"budget": 1, "b": 2}, "sparsity": 0.5}', "a={'budget': 1, 'b': 2}"),
        ('{"a": "\\", \\"budget\\": 1", "budget": 2}', 'a=", "budget": 1'),
        ('{"budget": [1, 2], "b": "{"}', "b={"),
        ("{}", ""),
        (None, ""),
        ("no JSON", "no JSON"),
    ],
)
def test_options_are_what_a_point_says_beside_the_sparsities(
    empty_sweep: SweepStore, point: str | None, options: str
) -> None:
    row = {"role": "search", "number": 0, "state": "succeeded", "point": point}
    empty_sweep.commit("trials", [row], trial="t000", epoch=1)
    assert list(results_table(empty_sweep)["options"]) == [options]


def test_what_lies_a_rounding_of_each_tower_apart_is_one_line() -> None:
    """172,049 and 172,050 of 344,064 weights lie on both sides of 0.50005."""
    zeros = {"vision_zeros_requested": [0, 86_024, 86_025, 86_025, 0, None]}
    zeros |= {"language_zeros_requested": [0, 86_025, 86_025, 86_075, 86_024, None]}
    prunable = {f"{tower}_prunable": 172_032 for tower in ("vision", "language")}
    trials = pd.DataFrame({**zeros, **prunable, "budget": [None, None, None, None, 0.25, 0.3]})
    lines = asked_lines(trials[::-1])[::-1].tolist()
    assert lines[0] == 0
    assert lines[1] == lines[2] == 0.5
    assert lines[3:] == [0.5002, 0.25, 0.3]


def test_scores_too_small_for_a_decimal_keep_two_digits() -> None:
    found = [percent(value) for value in (0.9517, 0.0, 0.0006, 0.00042, -1.2e-9, None)]
    assert found == ["95.2", "0.0", "0.1", "0.042", "-1.2e-07", "–"]
