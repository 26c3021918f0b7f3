"""Equal work in flight is done once: real Ray actors claim, wait, finish, and are killed."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ressa.stages import Stages
from ressa.store import open_store
from ressa.sweep import claims
from ressa.sweep.claims import RayClaims
from ressa.sweep.local_ray import local_ray

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


class Worker:
    """One trial's process: it makes stages that take until a file appears."""

    def __init__(self, store: str) -> None:
        self._stages = Stages(open_store(store), RayClaims())
        self._store = Path(store)

    def pid(self) -> int:
        return os.getpid()

    def make(self, key: str, content: bytes, fails: bool = False) -> tuple[bytes, list[str]]:
        """Returns the stage's content, and where it was meanwhile."""

        def work() -> bytes:
            (self._store / f"making-{key}-{content.decode()}").touch()
            if fails:
                raise ValueError("it cannot be made")
            while not (self._store / f"go-{key}").exists():
                time.sleep(0.02)
            return content

        steps, told = self._stages.once("calibration", key, work), []
        while True:
            try:
                told.append(next(steps).stage)
                (self._store / f"waiting-{key}-{content.decode()}").touch()
            except StopIteration as end:
                return end.value, told

    def counts(self) -> tuple[int, int]:
        return len(self._stages.computed), len(self._stages.reused)


@pytest.fixture(scope="module")
def coordinator() -> Iterator[Any]:
    with local_ray(cpus=2):
        # Workers cannot import this module.
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        yield claims.start()


@pytest.fixture
def workers(coordinator: Any, tmp_path: Path) -> Iterator[list[Any]]:
    remote = ray.remote(Worker)
    made = [remote.options(num_cpus=0).remote(str(tmp_path)) for _ in range(3)]
    yield made
    for worker in made:
        ray.kill(worker)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 280
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} did not come"
        time.sleep(0.02)


def test_a_stage_that_three_want_at_once_is_made_by_one(workers: list[Any], tmp_path: Path) -> None:
    first = workers[0].make.remote("k", b"first")
    wait_for(tmp_path / "making-k-first")
    names = ("second", "third")
    others = [
        worker.make.remote("k", name.encode())
        for worker, name in zip(workers[1:], names, strict=True)
    ]
    for name in names:
        wait_for(tmp_path / f"waiting-k-{name}")
    (tmp_path / "go-k").touch()
    assert ray.get(first) == (b"first", [])
    for content, told in ray.get(others):
        assert content == b"first"
        assert set(told) == {"wait for calibration"}, "it says what it waits for"
    assert [path.name for path in tmp_path.glob("making-*")] == ["making-k-first"]
    assert ray.get([worker.counts.remote() for worker in workers]) == [(1, 0), (0, 1), (0, 1)]


def test_the_claim_of_a_killed_trial_passes_to_one_that_waits(
    workers: list[Any], tmp_path: Path
) -> None:
    pid = ray.get(workers[0].pid.remote())
    workers[0].make.remote("k", b"first")
    wait_for(tmp_path / "making-k-first")
    second = workers[1].make.remote("k", b"second")
    wait_for(tmp_path / "waiting-k-second")
    os.kill(pid, signal.SIGKILL)
    wait_for(tmp_path / "making-k-second")
    (tmp_path / "go-k").touch()
    assert ray.get(second)[0] == b"second"


def test_a_stage_that_fails_is_tried_by_the_next(workers: list[Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be made"):
        ray.get(workers[0].make.remote("k", b"first", fails=True))
    (tmp_path / "go-k").touch()
    assert ray.get(workers[1].make.remote("k", b"second")) == (b"second", [])


def test_other_stages_are_not_waited_for(workers: list[Any], tmp_path: Path) -> None:
    workers[0].make.remote("one", b"first")
    wait_for(tmp_path / "making-one-first")
    (tmp_path / "go-other").touch()
    assert ray.get(workers[1].make.remote("other", b"second")) == (b"second", [])


def test_when_the_coordinator_is_gone_trials_work_alone(
    workers: list[Any], coordinator: Any, tmp_path: Path
) -> None:
    """The last test: there is none from here on."""
    ray.get([worker.counts.remote() for worker in workers])  # they know the one that goes
    ray.kill(coordinator)
    (tmp_path / "go-k").touch()
    assert ray.get(workers[0].make.remote("k", b"first")) == (b"first", [])
    late = ray.remote(Worker).options(num_cpus=0).remote(str(tmp_path))
    (tmp_path / "go-late").touch()
    assert ray.get(late.make.remote("late", b"late")) == (b"late", [])
    ray.kill(late)
