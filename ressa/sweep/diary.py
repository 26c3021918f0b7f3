"""Keeps what a process of a trial says: its stdout and stderr, line by line, in the store.

The process writes into a file on its own machine; a thread stores that file now and then, so that
after a kill, or without the machine, all but the last seconds can be read.
"""

import contextlib
import os
import sys
import tempfile
import threading
import time
import traceback
from dataclasses import dataclass
from datetime import UTC, datetime

from ressa.errors import StoreError
from ressa.store import LogName, SweepStore, open_store, put_log

_EVERY_SECONDS = 3.0
_LONGEST = 4 << 20
"""Bytes of one log; what comes after is not kept."""
_CUT = b"\n[this log is cut here: it is longer than 4 MiB]\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Whose diary it is."""

    store: str
    sweep: str
    trial: str
    attempt: int


class Diary:
    """The diary of one process, which works on one trial after the other."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._subject: Subject | None = None
        self._sweep: SweepStore | None = None  # opened once an attempt
        self._file, path = tempfile.mkstemp(prefix="ressa-diary-")
        os.unlink(path)  # gone with this process
        self._lock = threading.Lock()
        self._stored = 0
        self._thread = threading.Thread(target=self._keep, name="ressa-diary", daemon=True)

    def begin(self, subject: Subject) -> None:
        """Starts the diary of an attempt."""
        self.store()
        with self._lock:
            first = self._subject is None
            self._subject, self._sweep = subject, None
            self._stored = 0
            sys.stdout.flush()
            sys.stderr.flush()
            os.lseek(self._file, 0, os.SEEK_SET)
            os.ftruncate(self._file, 0)
            if first:  # not before: what Ray says at the start of a process is its own
                for number in (1, 2):
                    os.dup2(self._file, number)
                self._thread.start()

    def note(self, words: str) -> None:
        """Writes one line with the time."""
        print(f"{datetime.now(UTC):%H:%M:%S}  {words}", file=sys.stderr, flush=True)  # noqa: T201

    def fail(self) -> None:
        """Writes the exception that is being handled, and stores all at once."""
        traceback.print_exc()
        sys.stderr.flush()
        self.store()

    def store(self) -> None:
        """Stores what is new."""
        with self._lock, contextlib.suppress(StoreError):  # a log must not end what it is of
            if self._subject is None:
                return
            size = os.fstat(self._file).st_size
            if size <= self._stored or self._stored >= _LONGEST:
                return
            content = os.pread(self._file, _LONGEST, 0)
            subject, name = self._subject, LogName(self._subject.attempt, self._rank)
            if self._sweep is None:
                self._sweep = open_store(subject.store).sweep(subject.sweep)
            put_log(self._sweep, subject.trial, name, content + _CUT * (size > _LONGEST))
            self._stored = min(size, _LONGEST)

    def _keep(self) -> None:
        while True:
            time.sleep(_EVERY_SECONDS)
            self.store()
