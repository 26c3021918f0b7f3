"""One live driver per sweep; a dead one is taken over."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from ressa.errors import ConflictError
from ressa.store import Holder, SweepStore, acquire, ask, holder, lease, open_store
from tests.sweep.waiting import wait_for


@pytest.fixture
def driver(sweep: SweepStore) -> "Iterator[subprocess.Popen[str]]":
    """Another process that holds the sweep's lease."""
    code = f"""
import time
from ressa.store import acquire, open_store
lease = acquire(open_store({sweep.store.location!r}).sweep({sweep.name!r}), beat_seconds=0.2)
print(lease.epoch, flush=True)
time.sleep(600)
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "1"
        yield process
        process.kill()


def _stand_still(driver: "subprocess.Popen[str]") -> None:
    os.kill(driver.pid, signal.SIGSTOP)
    os.waitpid(driver.pid, os.WUNTRACED)


def _on_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_machine", lambda: "another machine")


def test_epochs_rise_from_one(sweep: SweepStore) -> None:
    assert holder(sweep) is None
    for epoch in (1, 2, 3):
        with acquire(sweep) as taken:
            assert taken.epoch == epoch
            current = holder(sweep)
            assert current is not None
            assert (current.epoch, current.state, current.pid) == (epoch, "live", os.getpid())
        current = holder(sweep)
        assert current is not None
        assert current.state == "released"


def test_a_second_driver_is_refused_and_told_who_holds(
    sweep: SweepStore, driver: "subprocess.Popen[str]"
) -> None:
    with pytest.raises(ConflictError, match=rf"process {driver.pid} on .*, since 20\d\d-"):
        acquire(sweep)


def test_a_killed_driver_on_this_machine_is_taken_over_at_once(
    sweep: SweepStore, driver: "subprocess.Popen[str]"
) -> None:
    os.kill(driver.pid, signal.SIGKILL)
    # Dead, and left as a zombie, which still has its process id.
    os.waitid(os.P_PID, driver.pid, os.WEXITED | os.WNOWAIT)
    with acquire(sweep, waiting=lambda _: pytest.fail("nothing to wait for")) as taken:
        assert taken.epoch == 2


def test_a_driver_that_stands_still_is_alive_if_it_goes_on_in_time(
    sweep: SweepStore, driver: "subprocess.Popen[str]"
) -> None:
    _stand_still(driver)
    with pytest.raises(ConflictError):
        acquire(sweep, patience_seconds=60, waiting=lambda _: os.kill(driver.pid, signal.SIGCONT))


def test_a_driver_that_stands_still_is_taken_over_after_patience(
    sweep: SweepStore, driver: "subprocess.Popen[str]"
) -> None:
    _stand_still(driver)
    with acquire(sweep, patience_seconds=0.2) as taken:
        assert taken.epoch == 2


def test_a_driver_that_stood_still_looks_before_it_acts(
    sweep: SweepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale = acquire(sweep, beat_seconds=60)  # its next beat is far away
    Path(sweep.store.location, sweep.prefix, "lease", "000002.json").write_text("{}")
    assert not stale.lost
    now = time.monotonic()
    monkeypatch.setattr(lease.time, "monotonic", lambda: now + 200)
    assert stale.lost
    stale.release()


def test_a_driver_hears_what_it_is_asked(sweep: SweepStore) -> None:
    with acquire(sweep, beat_seconds=0.05) as taken:
        for wish in ("stop", "cancel"):
            ask(sweep, wish, taken.epoch)
            wait_for(lambda wish=wish: holder(sweep).heard == wish)
            assert taken.asked == holder(sweep).heard == wish
    with acquire(sweep) as later:
        assert later.asked is None, "a wish is for one driver"


def test_another_process_with_a_reused_id_is_not_the_holder(sweep: SweepStore) -> None:
    acquire(sweep).release()
    folder = Path(sweep.store.location, sweep.prefix, "lease")
    claim = json.loads((folder / "000001.json").read_text()) | {"process_started": "1"}
    (folder / "000002.json").write_text(json.dumps(claim))
    current = holder(sweep)
    assert current is not None
    assert (current.epoch, current.state) == (2, "dead")


def test_a_beating_driver_elsewhere_is_alive(
    sweep: SweepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = acquire(sweep, beat_seconds=0.05)
    _on_another_machine(monkeypatch)
    current = holder(sweep)
    assert current is not None
    assert current.state == "unknown"
    with pytest.raises(ConflictError):
        acquire(sweep, patience_seconds=60)
    taken.release()


def test_a_silent_driver_elsewhere_is_taken_over_after_patience(
    sweep: SweepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale = acquire(sweep, beat_seconds=0.3)
    stale._stop.set()  # as if its machine had gone away
    stale._thread.join()
    _on_another_machine(monkeypatch)
    seen: list[Holder] = []
    with acquire(sweep, patience_seconds=0.5, waiting=seen.append) as taken:
        assert taken.epoch == 2
    assert [one.epoch for one in seen] == [1]


def test_a_driver_learns_that_it_was_taken_over(
    sweep: SweepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale = acquire(sweep, beat_seconds=0.05)
    Path(sweep.store.location, sweep.prefix, "lease", "000002.json").write_text("{}")
    wait_for(lambda: stale.lost)
    stale.release()


def test_of_two_drivers_that_start_together_one_wins(
    sweep: SweepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked = lease.holder, list[SweepStore]()

    def before_the_other(of: SweepStore) -> Holder | None:
        asked.append(of)
        return None if len(asked) == 1 else real(of)

    with acquire(sweep):
        monkeypatch.setattr(lease, "holder", before_the_other)
        with pytest.raises(ConflictError):
            acquire(sweep)
        assert len(asked) == 2, "or the race was not run"


def test_of_many_drivers_that_start_together_one_wins_and_the_others_are_told(
    tmp_path: Path,
) -> None:
    """The winner tidies up while the others' claims are half written."""
    store, at_once = open_store(tmp_path, create=True), Barrier(4)

    def outcome(name: str) -> str:
        sweep = store.sweep(name)
        at_once.wait()
        try:
            won.append(acquire(sweep, beat_seconds=60))
        except ConflictError:
            return "told"
        return "won"

    won: list[lease.Lease] = []
    with ThreadPoolExecutor(4) as drivers:
        for number in range(60):
            store.create_sweep(str(number), "ressa: 1")
            found = sorted(drivers.map(outcome, [str(number)] * 4))
            assert found == ["told", "told", "told", "won"]
            won.pop().release()


def test_a_counter_that_stands_still_is_silent_after_patience_and_one_that_moves_is_not(
    sweep: SweepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    pulse = lease.Pulse(patience_seconds=0.1)
    with acquire(sweep, beat_seconds=60):
        for _ in range(2):
            assert not pulse.is_silent(holder(sweep))  # on this machine it is seen to live
            time.sleep(0.11)
        _on_another_machine(monkeypatch)
        for count in (7, 8):
            sweep.store.objects.put(f"{sweep.prefix}/lease/000001.beat", b'{"beats": %d}' % count)
            assert not pulse.is_silent(holder(sweep))
            time.sleep(0.11)
        assert pulse.is_silent(holder(sweep))
