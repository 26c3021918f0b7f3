"""Shows a report to browsers of this machine, and keeps it fresh while its sweep runs."""

import hashlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ressa.errors import RessaError
from ressa.landscape.report.page import page

EVERY = 5
"""Seconds between two looks of a page."""

_NAMES = ("127.0.0.1", "localhost")


@dataclass(frozen=True, slots=True)
class _Look:
    """The data as they were at one time."""

    data: Mapping[str, Any]
    version: str
    """Hash of the data."""


class _Latest:
    """The data as they were a moment ago: many pages cost no more than one."""

    def __init__(
        self,
        gather: Callable[[], Mapping[str, Any]],
        changed: Callable[[Mapping[str, Any]], None],
    ) -> None:
        self._gather, self._changed = gather, changed
        self._lock = threading.Lock()
        self._read_at = float("-inf")
        self._told = ""  # the version that `changed` took
        self._last = _Look({}, "")

    def look(self) -> _Look:
        """Reads the store again, unless somebody just did, and tells of what is new.

        What cannot be told, since a disk is full, say, is told at the next look.
        """
        with self._lock:
            if time.monotonic() - self._read_at >= EVERY / 2:
                self._last, self._read_at = self._read(), time.monotonic()
            if self._last.version != self._told:
                self._changed(self._last.data)
                self._told = self._last.version
            return self._last

    def _read(self) -> _Look:
        data = self._gather()
        # When it was read changes each time, and nothing else by itself.
        rest = [(name, value) for name, value in data["provenance"] if name != "read"]
        text = json.dumps({**data, "provenance": rest}, sort_keys=True)
        return _Look(data, hashlib.sha256(text.encode()).hexdigest())


def _why(error: Exception) -> str:
    """Says in one line why a look failed."""
    line = next(iter(str(error).strip().splitlines()), "")
    kind = "" if isinstance(error, RessaError) else f"{type(error).__name__}: "
    return f"not fresh: {kind}{line}"


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of a page that was closed before it had its answer."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def _handler(latest: _Latest) -> type[BaseHTTPRequestHandler]:
    """Makes what answers browsers: the page at /, and its data alone."""

    class Handler(BaseHTTPRequestHandler):
        server_version, sys_version = "ressa", ""

        def do_GET(self) -> None:
            # Another site's name that leads here is not ours: its page must not read the sweep.
            if (self.headers.get("Host") or "").partition(":")[0] not in _NAMES:
                self._answer(403, b"", "text/plain")
            elif self.path in ("/", "/data.json"):
                try:
                    look = latest.look()
                    answer = self._looked(look)
                except Exception as error:  # whatever it is, it may be over at the next look
                    self._answer(503, _why(error).encode(), "text/plain; charset=utf-8")
                else:
                    self._answer(*answer, version=look.version)
            else:
                self._answer(404, b"", "text/plain")

        def _looked(self, look: _Look) -> tuple[int, bytes, str]:
            if self.path == "/":
                text = page(look.data, watch=EVERY)
                return 200, text.encode(), "text/html; charset=utf-8"
            if self.headers.get("If-None-Match") == look.version:
                return 304, b"", "application/json"
            text = json.dumps({**look.data, "watch": EVERY}, allow_nan=False)
            return 200, text.encode(), "application/json"

        def _answer(self, code: int, content: bytes, kind: str, version: str = "") -> None:
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            if version:
                self.send_header("ETag", version)
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Says nothing: words are the verb's."""

    return Handler


def _keep_fresh(latest: _Latest, stop: threading.Event, failed: Callable[[str], None]) -> None:
    """Looks again and again though no page does, until it is told to stop."""
    last = ""
    while not stop.wait(EVERY):
        why = ""
        try:
            latest.look()
        except Exception as error:  # a store that cannot be reached may be again
            why = _why(error)
            if why != last:
                failed(why)
        last = why


@contextmanager
def serve(
    gather: Callable[[], Mapping[str, Any]],
    *,
    port: int = 0,
    changed: Callable[[Mapping[str, Any]], None] = lambda data: None,
    failed: Callable[[str], None] = lambda why: None,
) -> Iterator[str]:
    """Serves a report on the loopback interface alone, until the end of the block.

    The block is given its address. A look that fails is tried again at the next; until then pages
    are answered 503 and why.

    Args:
        gather: reads the data anew.
        port: where; 0 takes a free one.
        changed: is told the data whenever they have changed, and at the beginning.
        failed: is told why looks fail, once for as long as they fail alike.

    Raises:
        RessaError: the port is taken. Otherwise as `gather` and `changed` at the beginning.
    """
    latest = _Latest(gather, changed)
    latest.look()

    try:
        server = _Server(("127.0.0.1", port), _handler(latest))
    except OSError as error:
        raise RessaError(f"port {port} of 127.0.0.1 cannot be used: {error.strerror}.") from error
    serving = threading.Thread(target=server.serve_forever, daemon=True)
    serving.start()
    stop = threading.Event()

    keeping = threading.Thread(target=_keep_fresh, args=(latest, stop, failed), daemon=True)
    keeping.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        stop.set()
        server.shutdown()
        server.server_close()
        serving.join()
        keeping.join()
