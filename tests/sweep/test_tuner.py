"""What the driver makes of an attempt that did not come to its end."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_ledger import CONTENT as SMALL

from ressa.errors import StoreError
from ressa.records import Failure, Outcome, Progress
from ressa.spec import spec_from_mapping
from ressa.store import SweepStore, acquire, open_store
from ressa.sweep.ledger import Ledger
from ressa.sweep.plan import make_plan

ray = pytest.importorskip("ray")

from ray.exceptions import RayTaskError  # noqa: E402

from ressa.sweep import tuner  # noqa: E402
from ressa.sweep.trainable import AttemptFailed  # noqa: E402

CONTENT = SMALL | {"resources": {"workers": 2}}
UNSEEN = Failure(kind="node", stage="store", message="on node-b: the store is not seen")
DIED = Failure(kind="node", stage="repair", message="ActorDiedError: it died")


class Quiet:
    """A watcher to whom nothing matters, and a Ray that is always there."""

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: None


class Driver:
    """A driver of a stored sweep to whom a test says how attempts end; nothing is run."""

    def __init__(self, rows: SweepStore, folder: Path, epoch: int = 1) -> None:
        self.rows, self.folder = rows, folder
        plan = make_plan(spec_from_mapping(CONTENT).spec)
        self.ledger = Ledger(rows, plan, epoch=epoch)
        self.lease = acquire(rows)
        quiet: Any = Quiet()
        self.searcher = tuner.StoreSearcher(
            self.ledger, plan, rows.store, self.lease, quiet, quiet, fresh=False
        )
        self.count = 0

    def begins(self) -> str:
        self.count += 1
        name = f"tune-{self.count}"
        assert isinstance(self.searcher.suggest(name), dict)
        return name

    def reports(self, name: str, *ran_on: tuple[str, int]) -> None:
        progress = Progress(stage="repair", step=5, steps=20, micro_batch=16)
        self.searcher.on_trial_result(name, {"progress": progress, "ran_on": ran_on})

    def fails(self, name: str, failure: Failure, *, went_away: bool = False) -> None:
        error = RayTaskError("step", "", AttemptFailed(failure, went_away))
        path = self.folder / f"{name}.pkl"
        path.write_bytes(ray.cloudpickle.dumps(error))
        trial: Any = SimpleNamespace(trial_id=name, pickled_error_file=str(path))
        self.searcher._trials = [trial]
        self.searcher.on_trial_complete(name, error=True)


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Driver]:
    store = open_store(tmp_path / "results", create=True)
    rows = store.create_sweep("small", spec_from_mapping(CONTENT).spec.to_yaml())
    made = Driver(rows, tmp_path)
    yield made
    made.lease.release()


def test_a_machine_that_never_sees_the_store_ends_the_sweep_and_loses_no_trial(
    driver: Driver,
) -> None:
    """One of two machines: the other is at work on t000 all the while."""
    driver.begins()
    for _ in range(2):
        driver.fails(driver.begins(), UNSEEN)
    third = driver.begins()
    with pytest.raises(tuner._GiveUp) as end:
        driver.fails(third, UNSEEN)
    assert isinstance(end.value.error, StoreError)
    assert end.value.error.exit_code == 5
    assert "node-b" in str(end.value.error)
    assert "t001 found no usable store at 3 attempts in a row" in str(end.value.error)
    assert not driver.ledger.failed
    driver.lease.release()
    again = Driver(driver.rows, driver.folder, epoch=2)
    assert [one.trial for one in again.ledger.left_over] == ["t000", "t001"]
    assert {one.tries for one in again.ledger.left_over} == {1}, "no try is spent"
    again.lease.release()


def test_trouble_with_the_store_that_passes_costs_no_try(driver: Driver) -> None:
    for _ in range(2):
        driver.fails(driver.begins(), UNSEEN)
        driver.fails(driver.begins(), UNSEEN)
        driver.fails(driver.begins(), DIED)
    assert driver.rows.proposals()["tries"].tolist() == [1, 1, 1, 2, 2, 2]
    driver.fails(driver.begins(), DIED)
    assert driver.ledger.failed == ["t000"]


@pytest.mark.parametrize("kills", [0, 1])
def test_a_gangs_worker_that_its_machine_killed_for_memory_is_tried_with_half(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, kills: int
) -> None:
    counted = {"head": 4, "other": 7 + kills}
    monkeypatch.setattr(tuner, "memory_kills_on", counted.__getitem__)
    name = driver.begins()
    driver.reports(name, ("head", 4), ("other", 7))
    driver.fails(name, DIED, went_away=True)
    (row,) = driver.rows.attempts().to_dict("records")
    assert (row["state"], row["failure_class"]) == ("lost", "oom" if kills else "node")
    size = driver.searcher.suggest("again")["trial"].repair.micro_batch
    assert size == (8 if kills else 16)
    driver.reports("again", ("head", 4), ("other", 7))
    driver.fails("again", DIED, went_away=True)
    newest = driver.rows.attempts().to_dict("records")[-1]
    assert newest["failure_class"] == "node", "that kill was another attempt's"


def test_a_trial_whose_objective_is_no_number_failed(driver: Driver) -> None:
    name = driver.begins()
    score = {"task": "easy-vqa", "split": "validation", "state": "pruned", "image": "real"}
    score |= {"metric": "balanced_accuracy", "value": float("nan"), "standard_error": None}
    key = driver.searcher._running[name].spec.key
    outcome = Outcome(summary={}, scores=[score | {"items": 10}])
    driver.rows.store.stages.put("outcome", key, {"content": outcome.to_json()})
    driver.searcher.on_trial_complete(name, {"done": True})
    (row,) = driver.rows.trials().to_dict("records")
    assert (row["state"], row["failure_class"]) == ("failed", "numeric")
    assert "easy-vqa.balanced_accuracy is no number (it is nan)" in row["error"]
    assert driver.ledger.failed == ["t000"]


def test_a_trial_that_waits_again_for_the_same_is_said_to_wait(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuner, "_LONG_SECONDS", -1.0)
    monkeypatch.setattr(tuner, "unplaced_groups", lambda: 1)
    monkeypatch.setattr(tuner, "free_places", list)
    state = SimpleNamespace(ray_actor=None)
    trial: Any = SimpleNamespace(trial_id=driver.begins(), temporary_state=state)
    driver.searcher._trials = [trial]
    for _ in range(2):
        state.ray_actor = None
        driver.searcher._note_what_waits()
        assert list(driver.rows.status().waiting) == ["t000"]
        state.ray_actor = object()
        driver.searcher._note_what_waits()
        assert not driver.rows.status().waiting
