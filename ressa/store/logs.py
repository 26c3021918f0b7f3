"""What a trial's processes said: one text for each attempt and rank, `logs/<trial>/<a>-<r>.log`.

A log only grows, and each version of it is stored whole: a reader sees the old one or the new one.
"""

import re
from dataclasses import dataclass

from ressa.store.store import SweepStore, check_name

_NAME = re.compile(r"(\d+)-(\d+)\.log")


@dataclass(frozen=True, slots=True, order=True)
class LogName:
    """Which log of a trial."""

    attempt: int
    rank: int


def put_log(sweep: SweepStore, trial: str, name: LogName, content: bytes) -> None:
    """Stores what a rank has said so far."""
    sweep.store.objects.put(_path(sweep, trial, name), content)


def get_log(sweep: SweepStore, trial: str, name: LogName) -> bytes:
    """Returns what a rank has said so far, nothing if it said nothing."""
    return sweep.store.objects.get(_path(sweep, trial, name)) or b""


def logs_of(sweep: SweepStore, trial: str) -> list[LogName]:
    """Lists a trial's logs: by attempt, then by rank."""
    names = sweep.store.objects.names(f"{sweep.prefix}/logs/{check_name('trial', trial)}")
    found = [_NAME.fullmatch(name) for name in names]
    return sorted(LogName(int(match[1]), int(match[2])) for match in found if match)


def _path(sweep: SweepStore, trial: str, name: LogName) -> str:
    folder = f"{sweep.prefix}/logs/{check_name('trial', trial)}"
    return f"{folder}/{name.attempt:03d}-{name.rank:03d}.log"
