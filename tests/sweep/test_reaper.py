"""What a killed driver leaves is found and ended, on Linux and by what other systems have."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ressa.sweep import reaper

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.fixture
def nothing_of_linux(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A system without /proc and pidfd, as macOS is."""
    monkeypatch.delattr(os, "pidfd_open")
    monkeypatch.setattr(reaper, "_PROC", tmp_path / "proc")


def reap(folder: Path) -> None:
    """Ends a driver that a session's process outlives, and waits for its reaper."""
    session = folder.name
    driver, other = subprocess.Popen(SLEEP), subprocess.Popen(SLEEP)
    left = subprocess.Popen(SLEEP, env={**os.environ, "RESSA_SESSION": session})
    try:
        assert reaper.processes_of(session) == [left.pid]
        driver.kill()  # and it is not waited for: a zombie is gone, too
        reaper.main(driver.pid, session, str(folder))
        assert left.wait(timeout=60) < 0
        assert other.poll() is None
        assert not folder.exists()
        reaper.wait_for_end(left.pid)  # gone long ago
    finally:
        for process in (driver, other, left):
            process.kill()
            process.wait()


def test_a_sessions_processes_and_folder_go_with_its_driver(tmp_path: Path) -> None:
    folder = tmp_path / "ressa-1-x"
    folder.mkdir()
    reap(folder)


@pytest.mark.usefixtures("nothing_of_linux")
def test_so_they_do_where_there_is_neither_proc_nor_pidfd(tmp_path: Path) -> None:
    folder = tmp_path / "ressa-2-y"
    folder.mkdir()
    reap(folder)
