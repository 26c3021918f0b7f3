"""Which driver works on a sweep: `lease/<epoch>.json`, taken by exclusive creation.

A file system cannot stop a driver that lost its lease from writing, so a lease protects work, not
rows: rows carry the epoch, and readers keep the newest. Whether a holder lives is known at once on
the machine it runs on; from elsewhere, its counter is watched on the watcher's own clock, so that
clocks need not agree.
"""

import contextlib
import json
import logging
import os
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

from ressa.errors import ConflictError, StoreError
from ressa.store.store import SweepStore

log = logging.getLogger(__name__)

BEAT_SECONDS = 5.0
PATIENCE_SECONDS = 30.0

Wish = Literal["stop", "cancel"]
"""What a driver can be asked from elsewhere: to start nothing new, or to end its trials too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """The newest driver of a sweep; `unknown` is one on another machine, seen without waiting."""

    epoch: int
    host: str
    pid: int
    since: datetime
    state: Literal["live", "dead", "released", "unknown"]
    heard: Wish | None = None
    """What the driver was asked and has seen."""
    beats: int = 0
    """Its counter, which moves every few seconds as long as it lives."""


class Pulse:
    """Tells a driver that has gone silent from one that lives, on the watcher's own clock.

    Args:
        patience_seconds: how long the counter of a driver on another machine may stand still.
    """

    def __init__(self, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self._patience_seconds = patience_seconds
        self._seen: tuple[int, int] | None = None
        self._since = 0.0

    def is_silent(self, driver: Holder | None) -> bool:
        """Takes the newest look at a driver; returns whether it has shown no life for too long."""
        seen = None if driver is None or driver.state != "unknown" else (driver.epoch, driver.beats)
        if seen is None or seen != self._seen:
            self._seen, self._since = seen, time.monotonic()
            return False
        return time.monotonic() - self._since > self._patience_seconds


class Lease:
    """The right to drive a sweep, kept alive by a thread until `release`. Made by `acquire`."""

    def __init__(self, sweep: SweepStore, epoch: int, beat_seconds: float) -> None:
        self.epoch = epoch
        self._sweep, self._beat_seconds = sweep, beat_seconds
        self._stop = threading.Event()
        self._lost = threading.Event()
        self._seen = time.monotonic()
        self.asked: Wish | None = None
        """What somebody asked of this driver, seen within two beats."""
        self._thread = threading.Thread(target=self._beat, name="ressa-lease", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> bool:
        """Whether another driver took the sweep over, seen within two beats.

        A driver that stood still for long looks before it says no.
        """
        if time.monotonic() - self._seen > 3 * self._beat_seconds:
            with contextlib.suppress(StoreError):
                self._look()
        return self._lost.is_set()

    def release(self) -> None:
        """Gives the sweep up; the next driver need not wait. Again is fine."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._thread.join()
        self._write({"released": True})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _beat(self) -> None:
        count = 0
        while not self._stop.wait(self._beat_seconds):
            count += 1
            try:
                self._look()
                self._write({"beats": count, "heard": self.asked})
            except StoreError as error:  # a moment's network trouble must not end a sweep
                log.warning("lease of %s: %s", self._sweep.name, error)

    def _look(self) -> None:
        names = self._sweep.store.objects.names(f"{self._sweep.prefix}/lease")
        if _epochs_of(names)[-1:] != [self.epoch]:
            self._lost.set()
        for wish in ("stop", "cancel"):
            if f"{self.epoch:06d}.{wish}" in names:
                self.asked = wish
        self._seen = time.monotonic()

    def _write(self, beat: dict[str, Any]) -> None:
        path = f"{self._sweep.prefix}/lease/{self.epoch:06d}.beat"
        self._sweep.store.objects.put(path, json.dumps(beat).encode())


def acquire(
    sweep: SweepStore,
    *,
    beat_seconds: float = BEAT_SECONDS,
    patience_seconds: float = PATIENCE_SECONDS,
    waiting: Callable[[Holder], None] | None = None,
) -> Lease:
    """Takes a sweep's lease, from a dead holder if need be.

    Args:
        sweep: the sweep to drive.
        beat_seconds: how often the lease says that its holder lives.
        patience_seconds: how long a counter on another machine must stand still.
        waiting: called once if it has to be watched, to tell the user.

    Raises:
        ConflictError: a live driver holds it.
    """
    current = holder(sweep)
    if current is not None and current.state == "unknown":
        if waiting is not None:
            waiting(current)
        if _counts_on(sweep, current.epoch, patience_seconds):
            raise _conflict(sweep, current)
    elif current is not None and current.state == "live":
        raise _conflict(sweep, current)
    epoch = 1 if current is None else current.epoch + 1
    claim = {
        "host": socket.gethostname(),
        "machine": _machine(),
        "pid": os.getpid(),
        "process_started": _process_started(os.getpid()),
        "since": datetime.now(UTC).isoformat(),
        "claim": uuid.uuid4().hex,
    }
    path = f"{sweep.prefix}/lease/{epoch:06d}.json"
    made = sweep.store.objects.put_new(path, json.dumps(claim).encode())
    # Over a network the answer to a claim that was made may get lost, and asking again refuses.
    if not made and _read(sweep, f"{epoch:06d}.json") != claim:
        winner = holder(sweep)
        assert winner is not None
        raise _conflict(sweep, winner)
    sweep.remove_unfinished()
    return Lease(sweep, epoch, beat_seconds)


def holder(sweep: SweepStore) -> Holder | None:
    """Returns the newest driver of a sweep, without waiting; None if there was none yet."""
    epochs = _epochs(sweep)
    if not epochs:
        return None
    epoch = epochs[-1]
    claim = _read(sweep, f"{epoch:06d}.json")
    beat = _read(sweep, f"{epoch:06d}.beat")
    pid = int(claim.get("pid", 0))
    state: Literal["live", "dead", "released", "unknown"] = "unknown"
    if beat.get("released"):
        state = "released"
    elif claim.get("machine") == _machine():
        alive = _process_started(pid) == claim.get("process_started")
        # One that stands still may be continued: it is watched like one on another machine.
        state = ("unknown" if _is_stopped(pid) else "live") if alive else "dead"
    since = datetime.now(UTC)
    with contextlib.suppress(KeyError, ValueError):
        since = datetime.fromisoformat(claim["since"])
    return Holder(
        epoch=epoch,
        host=str(claim.get("host", "?")),
        pid=pid,
        since=since,
        state=state,
        heard=beat.get("heard"),
        beats=_count_of(beat),
    )


def ask(sweep: SweepStore, wish: Wish, epoch: int) -> None:
    """Asks a sweep's driver, wherever it is, to stop or cancel; it looks at every beat."""
    by = {"host": socket.gethostname(), "pid": os.getpid()}
    path = f"{sweep.prefix}/lease/{epoch:06d}.{wish}"
    sweep.store.objects.put(path, json.dumps(by).encode())


def _epochs(sweep: SweepStore) -> list[int]:
    return _epochs_of(sweep.store.objects.names(f"{sweep.prefix}/lease"))


def _epochs_of(names: list[str]) -> list[int]:
    stems = [name.removesuffix(".json") for name in names if name.endswith(".json")]
    return sorted(int(stem) for stem in stems if stem.isdecimal())


def _read(sweep: SweepStore, name: str) -> dict[str, Any]:
    content = sweep.store.objects.get(f"{sweep.prefix}/lease/{name}")
    try:
        return dict(json.loads(content or b"{}"))
    except (ValueError, TypeError):
        return {}  # says nothing about its holder: watched like one on another machine


def _count_of(beat: dict[str, Any]) -> int:
    count = beat.get("beats")
    return count if isinstance(count, int) else 0


def _counts_on(sweep: SweepStore, epoch: int, patience_seconds: float) -> bool:
    """Returns whether a holder's counter moves before patience ends, by our clock."""
    first = _read(sweep, f"{epoch:06d}.beat")
    deadline = time.monotonic() + patience_seconds
    while time.monotonic() < deadline:
        time.sleep(min(1.0, patience_seconds / 10))
        now = _read(sweep, f"{epoch:06d}.beat")
        if now != first:
            return not now.get("released")
    return False


def _conflict(sweep: SweepStore, current: Holder) -> ConflictError:
    return ConflictError(
        f"sweep {sweep.name!r} is being worked on by process {current.pid} on {current.host}, "
        f"since {current.since:%Y-%m-%d %H:%M} UTC. `ressa status {sweep.name}` shows how far it "
        "is; stop it there first, or wait."
    )


def _machine() -> str:
    """Returns what tells this boot of this machine, and this space of process ids, from others."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _fields_of(pid: int) -> list[str] | None:
    """Reads what Linux says of a process from its state on; None if it is gone, or not on Linux."""
    try:
        # The name in parentheses may hold spaces; state is the first field after it.
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return None


def _is_stopped(pid: int) -> bool:
    """Whether a process of this machine stands still, by SIGSTOP or under a debugger."""
    fields = _fields_of(pid)
    return fields is not None and fields[0] in "Tt"


def _process_started(pid: int) -> str | None:
    """Returns when a process of this machine began, which tells it from a later one of its id."""
    fields = _fields_of(pid)
    if fields is not None:
        return None if fields[0] in "ZX" else fields[19]
    if Path("/proc/self/stat").exists():
        return None
    listed = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return listed.stdout.strip() or None
