"""How far a sweep is, and what failed, follows from its rows."""

from pathlib import Path

from ressa.landscape.standing import SWEEP_COLUMNS, failures, sweep_row
from ressa.store import SweepStore, acquire


def test_the_page_lists_what_ls_says_of_a_sweep(sweep: SweepStore) -> None:
    page = (Path(__file__).parents[2] / "docs" / "query.md").read_text()
    assert all(f"| `{name}` | {meaning} |" in page for name, meaning in SWEEP_COLUMNS.items())
    assert list(sweep_row(sweep)) == list(SWEEP_COLUMNS)


def test_what_failed_is_said_unless_it_is_tried_again_right_now(sweep: SweepStore) -> None:
    assert failures(sweep).empty
    row = {"role": "search", "number": 18, "state": "failed", "failure_stage": "repair"}
    row |= {"failure_class": "numeric", "error": "loss is NaN at step 3"}
    sweep.commit("trials", [row], trial="t018", epoch=1)
    (failed,) = failures(sweep).to_dict("records")
    assert (failed["trial"], failed["error"]) == ("t018", "loss is NaN at step 3")
    with acquire(sweep) as lease:
        sweep.event("trial_started", {"attempt": 1}, epoch=lease.epoch, trial="t018", attempt=1)
        assert failures(sweep).empty


def test_a_sweep_without_rows_has_no_failures(empty_sweep: SweepStore) -> None:
    assert failures(empty_sweep).empty
