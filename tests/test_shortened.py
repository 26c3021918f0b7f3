"""What tables in a terminal leave out because all rows share it, and say once."""

from ressa.cli.shortened import ordered

ROW = {
    **{"one": "prune.method=wanda, after repair", "other": "prune.method=dsnot, after repair"},
    **{"scope": "map", "tau": 0.5, "low": 0.25, "high": 0.75, "pairs": 10, "swapped": 2},
    **{"swapped_models": 1, "swapped_allocations": None},
    **{"allocations": 5, "runs": 1, "pictures": 99},
}


def test_what_two_conditions_share_and_counts_of_all_rows_are_said_once() -> None:
    other = ROW | {"other": "prune.method=random, after repair", "tau": -0.5}
    title, rows = ordered([ROW, other], by="prune.method")
    about = "prune.method, after repair"
    assert title == f"{about} · one: {ROW['one']} · allocations: 5 · runs: 1 · pictures: 99"
    assert [row["other"] for row in rows] == ["dsnot", "random"]
    assert list(rows[0]) == ["other", "scope", "tau", "low", "high", "swapped", "swapped_models"]
    assert rows[0]["swapped"] == "2 of 10"


def test_conditions_of_a_single_row_stand_above_it() -> None:
    title, (row,) = ordered([ROW], by="prune.method")
    assert f"one: {ROW['one']} · other: {ROW['other']}" in title
    assert "one" not in row
