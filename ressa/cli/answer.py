"""The far end of `--address`: a Ray job, `python -m ressa.cli.answer REQUEST`, on a cluster's head.

It runs a verb as if it had been called here, in an empty folder, and writes what comes of it as
frames to the job's log, which is all that the client sees of it.
"""

import os
import sys
import tempfile
import threading
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ressa.sweep.jobs import Frame, FrameKind, Request
from ressa.sweep.versions import CODE, differences, installed

if TYPE_CHECKING:
    from collections.abc import Iterator

LONGEST_SECONDS = 3600
"""After so long a job that nobody may be waiting for any more ends by itself."""
FOLLOWING = ("watch", "logs", "stop", "cancel")
FOLLOWING_SECONDS = 7 * 24 * 3600
"""Verbs that may wait for the end of a sweep or trial, and end with it, have so long."""
_LAST_WORDS_SECONDS = 30.0  # of a machine that has much else to do


class _Frames:
    """Writes frames to what stdout was; several threads do."""

    def __init__(self) -> None:
        self._file = os.fdopen(os.dup(1), "w")
        self._lock = threading.Lock()

    def send(self, kind: FrameKind, content: bytes = b"", name: str = "") -> None:
        """Writes one frame."""
        with self._lock:
            self._file.write(Frame(kind, content, name).line())
            self._file.flush()


@contextmanager
def _caught(frames: _Frames) -> "Iterator[None]":
    """Sends what this process, and whatever it calls, writes to stdout and stderr."""
    threads = []
    for number, kind in ((1, "out"), (2, "err")):
        reader, writer = os.pipe()
        os.dup2(writer, number)
        os.close(writer)
        arguments = (reader, kind, frames)
        threads.append(threading.Thread(target=_send_all, args=arguments, daemon=True))
        threads[-1].start()
    # Python's own streams still think of the log as a file; the client reads UTF-8.
    sys.stdout, sys.stderr = (
        os.fdopen(number, "w", encoding="utf-8", closefd=False) for number in (1, 2)
    )
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for number in (1, 2):
            os.dup2(nowhere, number)
        for thread in threads:
            # Not for ever: a child that outlives us holds the pipe open.
            thread.join(timeout=_LAST_WORDS_SECONDS)


def _send_all(reader: int, kind: FrameKind, frames: _Frames) -> None:
    while content := os.read(reader, 1 << 16):
        frames.send(kind, content)


def answer(request: Request) -> int:
    """Does what is asked, and says how it ended."""
    frames = _Frames()
    for name in ("RESSA_ADDRESS", "RESSA_STORE", "COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR"):
        os.environ.pop(name, None)
    os.environ.update(request.variables)
    with tempfile.TemporaryDirectory(prefix="ressa-answer-") as folder:
        os.chdir(folder)
        with _caught(frames):
            code = _differ(request) or _run(request, frames)
        for path in sorted(Path(folder).glob("*")) if not request.drives else []:
            frames.send("file", path.read_bytes(), path.name)
        os.chdir("/")
    frames.send("exit", str(code).encode())
    return code


def _differ(request: Request) -> int:
    """Refuses to drive with other packages than the client checked its file with."""
    from ressa.errors import ClusterError
    from ressa.terminal import say

    found = differences(request.versions, installed())
    if not found:
        return 0
    if not request.drives:
        ours = [text for text in found if text.startswith(CODE)]
        for text in ours:
            say(f"{text}: what is asked may mean another thing there", "warning:", "yellow")
        return 0
    differing = "; ".join(found)
    say(
        f"client and cluster differ: {differing}. Install the same on both, through one "
        "constraints.txt; for ressa itself --ship-code sends this checkout.",
        "error:",
        "bold red",
    )
    return ClusterError.exit_code


def _run(request: Request, frames: _Frames) -> int:
    from ressa.cli import main
    from ressa.cli.app import client

    words = list(request.words)
    if request.drives:
        client.taken = lambda: frames.send("taken")
        words[1:1] = ["--address", os.environ["RAY_ADDRESS"]]
    else:
        ending = threading.Timer(longest_seconds(words[0]), os._exit, (130,))
        ending.daemon = True
        ending.start()
    client.address, client.ray = request.told_address, os.environ.get("RAY_ADDRESS")
    if request.spec is not None:
        Path("sweep.yaml").write_text(request.spec)
        words.insert(1, "sweep.yaml")
    sys.argv = ["ressa", *words]
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def longest_seconds(verb: str) -> int:
    """After how long a verb ends by itself, in case its client has gone."""
    return FOLLOWING_SECONDS if verb in FOLLOWING else LONGEST_SECONDS


if __name__ == "__main__":
    os._exit(answer(Request.decode(sys.argv[1])))  # whatever thread is left
