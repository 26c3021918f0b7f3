"""Kills aimed at what a sweep is just doing, and whom: seen in its store's folder, not guessed.

A moment comes when the trial's own traces appear: an event, a stage's folder, a checkpoint, rows.
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ressa.sweep.reaper import processes_of
from tests.sweep.place import Place, running_sessions

MOMENTS: Mapping[str, tuple[str, ...]] = {
    "trial start": ("sweeps/small/events/t*", "sweeps/small/events/d*"),
    "calibration": ("stages/calibration/*/*",),
    "pruning": ("stages/vision-mask/*/*", "stages/language-mask/*/*"),
    "DeepSpeed step": ("stages/repair-deepspeed/*/*",),
    "checkpoint write": ("stages/repair-checkpoint/*/*",),
    "outcome": ("stages/outcome/*/*",),
    "row commit": tuple(
        f"sweeps/small/{table}/*" for table in ("scores", "curves", "layers", "answers")
    ),
}
"""What appears in the store, as patterns of paths, when the moment has come."""

_GLANCE_SECONDS = 0.004


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """One signal to one process at one moment."""

    target: str
    """driver, trial, worker or raylet; or working trial, which is in a step just then."""
    moment: str
    nth: int = 1
    """At which new trace of the moment, from 1."""
    delay: float = 0.0
    """Seconds after it."""
    number: int = signal.SIGKILL

    def __str__(self) -> str:
        name = signal.Signals(self.number).name
        return f"{name} of {self.target} at {self.moment} {self.nth} + {self.delay:.2f} s"


def traces(place: Place, moment: str) -> set[Path]:
    """What a moment has left in the store so far."""
    store = place.folder / "results"
    return {path for pattern in MOMENTS[moment] for path in _found(store, pattern)}


def _found(store: Path, pattern: str) -> Iterator[Path]:
    # A folder may go while it is being listed.
    try:
        yield from list(store.glob(pattern))
    except FileNotFoundError:
        return


def strike(place: Place, driver: "subprocess.Popen[str]", kill: Kill) -> int | None:
    """Waits for the moment and sends the signal.

    Returns:
        The process that got it; None if the driver ended before.
    """
    before = traces(place, kill.moment)
    while driver.poll() is None:
        if len(traces(place, kill.moment) - before) >= kill.nth:
            break
        time.sleep(_GLANCE_SECONDS)
    time.sleep(kill.delay)
    while driver.poll() is None:  # a trial whose start has been noted may have no process yet
        if (pid := _signal(driver, kill)) is not None:
            return pid
        time.sleep(_GLANCE_SECONDS)
    return None


def _signal(driver: "subprocess.Popen[str]", kill: Kill) -> int | None:
    for pid in targets(driver, kill.target):
        try:
            os.kill(pid, kill.number)
        except ProcessLookupError:
            continue
        return pid
    return None


def targets(driver: "subprocess.Popen[str]", target: str) -> list[int]:
    """Finds the processes of a driver's session that a kill may be aimed at."""
    if target == "driver":
        return [driver.pid] if driver.poll() is None else []
    names = {
        "trial": "Trainable",
        "working trial": "Trainable.train",
        "worker": "ray::Worker",
        "raylet": "raylet/raylet",
    }
    session = [name for name in running_sessions() if name.startswith(f"ressa-{driver.pid}-")]
    return [
        pid
        for name in session
        for pid in processes_of(name)
        if names[target] in _command(pid).split(" ")[0]
    ]


def _command(pid: int) -> str:
    try:
        return (
            Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        )
    except OSError:
        return ""
