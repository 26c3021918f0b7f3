"""A sweep file in a folder of its own, and a small sweep that was run to its end once."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sweep.place import (
    PATIENCE,
    Place,
    drivers,
    make_place,
    running_sessions,
    session_folders,
)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """An empty folder with the small sweep's file in it."""
    return make_place(tmp_path)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The small sweep, run to its end once for all tests that only read it."""
    place = make_place(tmp_path_factory.mktemp("undisturbed"))
    done = place.ressa("run", "small.yaml")
    assert done.returncode == 0, done.stderr
    return place


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No process of a session outlives its sweep, and no folder."""
    yield
    for driver, _ in drivers.values():
        if driver.poll() is None:  # a test that failed half way: the next one starts afresh
            driver.terminate()
            driver.communicate(timeout=PATIENCE)
    assert not running_sessions()
    assert not session_folders()
    drivers.clear()  # their process ids may come again
