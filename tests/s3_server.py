"""`python -m tests.s3_server [ADDRESS]`: an S3 server with one bucket; it prints its port.

It listens on loopback if no address is given.

It is moto's. A conditional write promises that of many one is done; moto looks first and writes
then, so requests are made to come one after the other.
"""

import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

from moto.moto_server.werkzeug_app import create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.test import Client

BUCKET = "sweeps"


class _Quiet(WSGIRequestHandler):
    def log(self, *_: Any, **__: Any) -> None:
        """Says nothing: a test's output is its own."""


def main() -> None:
    app, turn = create_backend_app("s3"), threading.Lock()

    def one_by_one(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        with turn:
            return list(app(environ, start))

    assert Client(app).put(f"/{BUCKET}").status_code == 200
    server = make_server(
        sys.argv[1] if sys.argv[1:] else "127.0.0.1",
        0,
        one_by_one,
        threaded=True,
        request_handler=_Quiet,
    )
    sys.stdout.write(f"{server.port}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
