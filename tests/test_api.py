"""The same from Python: sweeps run and stores open with a line each, and frames come back."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas
import pytest

import ressa
from ressa.errors import NotFoundError, SpecError
from ressa.store import SweepStore, query
from tests.landscape.conftest import commit

QUICKSTART = Path(__file__).parents[1] / "sweeps" / "quickstart.yaml"


@pytest.fixture
def sweep(tmp_path: Path) -> SweepStore:
    """A sweep with a baseline and one trial."""
    made = ressa.open_store(tmp_path / "results", create=True).create_sweep("small", "")
    commit(made, "t000", "0.5", "2:4")
    commit(made, "dense", "0", "0", repair=False)
    return made


def test_importing_ressa_loads_nothing_else() -> None:
    program = (
        "import sys; before = set(sys.modules); import ressa; print(set(sys.modules) - before)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "ressa" in done.stdout
    for heavy in ("pandas", "pydantic", "rich", "torch", "ray"):
        assert f"'{heavy}'" not in done.stdout


def test_a_stored_sweep_is_a_frame(sweep: SweepStore, tmp_path: Path) -> None:
    trials = ressa.open_store(tmp_path / "results").sweep("small").trials()
    assert isinstance(trials, pandas.DataFrame)
    assert list(trials["trial"]) == ["dense", "t000"]
    assert trials["number"].dtype == "Int64"
    assert 0 < trials["sparsity"].iloc[1] < 1


def test_every_table_of_a_sweep_is_a_frame(sweep: SweepStore) -> None:
    for table in ("attempts", "scores", "curves", "layers", "answers", "proposals", "events"):
        assert isinstance(getattr(sweep, table)(), pandas.DataFrame)


def test_sql_over_a_store_is_a_frame(sweep: SweepStore) -> None:
    found = query(sweep.store, "SELECT max(score) AS best FROM trials WHERE role = 'search'")
    assert isinstance(found, pandas.DataFrame)
    assert found["best"].item() == sweep.trials()["score"].iloc[1]


def test_what_is_not_there_is_an_error_of_ressa(sweep: SweepStore, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="Did you mean 'small'"):
        sweep.store.sweep("smal")
    with pytest.raises(ressa.RessaError, match="no store at"):
        ressa.open_store(tmp_path / "nowhere")
    with pytest.raises(AttributeError, match="no attribute 'runn'"):
        ressa.runn  # noqa: B018


def test_run_takes_a_file_or_a_spec_and_returns_trials(
    sweep: SweepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ressa.sweep import driver

    started: list[ressa.SweepSpec] = []

    def start(spec: ressa.SweepSpec, watcher: Any) -> SweepStore:
        started.append(spec)
        return sweep

    monkeypatch.setattr(driver, "start", start)
    from_file = ressa.run(QUICKSTART, sets=["repair.steps=7"])
    ressa.run(ressa.load_spec(QUICKSTART, ["repair.steps=7"]).spec)
    assert started[0] == started[1]
    assert started[0].repair.steps == 7
    assert list(from_file["trial"]) == ["dense", "t000"]


def test_run_refuses_a_bad_file_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="Did you mean 'steps'"):
        ressa.run(QUICKSTART, sets=["repair.stpes=7", f"store={tmp_path / 'new'}"])
    assert not list(tmp_path.iterdir())


def test_the_public_functions_say_what_they_return() -> None:
    assert "Returns:" in (ressa.run.__doc__ or "")
    assert "Raises:" in (ressa.open_store.__doc__ or "")
