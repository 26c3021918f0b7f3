"""How far a sweep is follows from rows, events and the lease."""

from typing import Any

import pytest

from ressa.store import SweepStore, acquire

from .conftest import commit_trial


def _propose(sweep: SweepStore, number: int, *, epoch: int, attempt: int = 0) -> None:
    row = {"number": number, "point": {"vision_sparsity": 0.5}, "seen": []}
    sweep.commit("proposals", [row], trial=f"t{number:03d}", attempt=attempt, epoch=epoch)


def test_a_sweep_with_a_spec_alone_is_new(sweep: SweepStore) -> None:
    status = sweep.status()
    assert (status.state, status.planned, status.counts, status.done) == ("new", None, {}, 0)


def test_a_driven_sweep_tells_queued_running_and_done_apart(sweep: SweepStore) -> None:
    with acquire(sweep) as lease:
        sweep.event("started", {"planned": 4}, epoch=lease.epoch)
        commit_trial(sweep, "dense", 0.99)
        for number in range(3):
            _propose(sweep, number, epoch=lease.epoch)
        sweep.event("trial_started", epoch=lease.epoch, trial="t000")
        sweep.event("trial_started", epoch=lease.epoch, trial="t001")
        commit_trial(sweep, "t000", 0.8)
        status = sweep.status()
        assert status.state == "running"
        assert status.planned == 4
        assert status.counts == {"succeeded": 2, "queued": 1, "running": 1}
        assert (status.running, status.queued) == (("t001",), ("t002",))
        assert status.done == 2
    status = sweep.status()  # the driver left without finishing
    assert status.state == "interrupted"
    assert (status.running, status.queued) == ((), ("t001", "t002"))


def test_a_finished_sweep_is_finished(sweep: SweepStore) -> None:
    with acquire(sweep) as lease:
        sweep.event("started", {"planned": 1}, epoch=lease.epoch)
        commit_trial(sweep, "t000", 0.8)
        sweep.event("finished", epoch=lease.epoch)
    assert sweep.status().state == "finished"


def test_a_sweep_that_finishes_while_it_is_looked_at_is_not_interrupted(
    sweep: SweepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease, read = acquire(sweep), SweepStore.read
    sweep.event("started", {"planned": 0}, epoch=lease.epoch)

    def read_before_the_end(of: SweepStore, table: str, **how: Any) -> Any:
        found = read(of, table, **how)
        monkeypatch.setattr(SweepStore, "read", read)
        sweep.event("finished", epoch=lease.epoch)
        lease.release()
        return found

    monkeypatch.setattr(SweepStore, "read", read_before_the_end)
    assert sweep.status().state == "running"
    assert sweep.status().state == "finished"


def test_a_trial_proposed_again_waits_although_an_attempt_of_it_ended(sweep: SweepStore) -> None:
    _propose(sweep, 0, epoch=1)
    sweep.commit("trials", [{"role": "search", "state": "lost"}], trial="t000", epoch=1)
    assert sweep.status().counts == {"lost": 1}
    _propose(sweep, 0, epoch=2, attempt=1)
    assert sweep.status().counts == {"queued": 1}


def test_an_attempt_that_died_with_its_driver_is_not_waited_for(sweep: SweepStore) -> None:
    """It left no row; the next driver proposed it again, and that one ended."""
    _propose(sweep, 0, epoch=1)
    _propose(sweep, 0, epoch=2, attempt=1)
    assert sweep.status().counts == {"queued": 1}
    row = {"role": "search", "state": "succeeded", "score": 0.8}
    sweep.commit("trials", [row], trial="t000", epoch=2, attempt=1)
    assert sweep.status().counts == {"succeeded": 1}
    assert sweep.status().done == 1


def test_drivers_are_told_apart_by_their_epochs_whatever_their_clocks_say(
    sweep: SweepStore,
) -> None:
    """The first one stood still, was taken over, and said its last word after the second's."""
    sweep.event("started", {"planned": 1}, epoch=1)
    sweep.event("resumed", {"planned": 2}, epoch=2)
    sweep.event("finished", epoch=2)
    sweep.event("interrupted", epoch=1)
    status = sweep.status()
    assert (status.state, status.planned) == ("finished", 2)
    assert list(sweep.events()["kind"]) == ["started", "interrupted", "resumed", "finished"]
