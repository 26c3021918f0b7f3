"""Ends what a killed driver leaves behind: `python -m ressa.sweep.reaper PID SESSION FOLDER`.

Ray's raylet dies with its driver, but its agents and workers may outlive a SIGKILL. This small
process waits for the driver's end and then ends every process that carries the session's name in
its environment. A driver that shuts Ray down by itself ends the reaper first.
"""

import contextlib
import os
import select
import shutil
import signal
import sys
import time
from pathlib import Path

import psutil

SESSION_VARIABLE = "RESSA_SESSION"
"""Set for every process of one session, so that they all are found and no others."""

_PROC = Path("/proc")
_GLANCE_SECONDS = 0.2
_GRACE_SECONDS = 1.0
_TRIES = 5


def wait_for_end(pid: int) -> None:
    """Returns once a process is gone."""
    if not hasattr(os, "pidfd_open"):  # not Linux
        watch(pid)
        return
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    select.select([descriptor], [], [])


def watch(pid: int) -> None:
    """Does the same by looking again and again: where a system does not tell."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(_GLANCE_SECONDS)


def processes_of(session: str) -> list[int]:
    """Finds the processes whose environment names a session, other than this one."""
    if not _PROC.exists():  # not Linux
        return asked_one_by_one(session)
    wanted = f"{SESSION_VARIABLE}={session}".encode()
    found = []
    for entry in _PROC.iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            # Not by psutil, which stops where Ray's workers have written their names over it.
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue  # it ended meanwhile, or is another user's
    return found


def asked_one_by_one(session: str) -> list[int]:
    """Finds the same by asking the system of each process: where there is no /proc."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # as above
            if process.environ().get(SESSION_VARIABLE) == session and process.pid != os.getpid():
                found.append(process.pid)
    return found


def end_processes(session: str) -> None:
    """Ends a session's processes, gently first."""
    for kill in (signal.SIGTERM, signal.SIGKILL, signal.SIGKILL):
        left = processes_of(session)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, kill)
        if not left:
            return
        deadline = time.monotonic() + _GRACE_SECONDS
        while processes_of(session) and time.monotonic() < deadline:
            time.sleep(0.05)


def clear(session: str, folder: str | os.PathLike[str]) -> None:
    """Ends a session's processes and removes its folder, into which a dying one may yet write."""
    for _ in range(_TRIES):
        end_processes(session)
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.exists(folder):
            return
        time.sleep(_GRACE_SECONDS)


def main(pid: int, session: str, folder: str) -> None:
    """Waits for the driver's end, then clears its session away."""
    wait_for_end(pid)
    clear(session, folder)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
