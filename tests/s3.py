"""The S3 server of the tests, in a process of its own, and how to reach it."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

SECRET = "never-to-be-seen-9f8e7d"


@contextmanager
def s3_server(address: str = "127.0.0.1", within: Sequence[str] = ()) -> Iterator[dict[str, str]]:
    """Runs the server; yields the environment variables that clients need.

    Args:
        address: where it listens.
        within: a command that runs another one, in a network of its own say.
    """
    command = [*within, sys.executable, "-W", "ignore", "-m", "tests.s3_server", address]
    root = Path(__file__).parents[1]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline())
            yield {
                "AWS_ENDPOINT_URL": f"http://{address}:{port}",
                "AWS_ALLOW_HTTP": "true",
                "AWS_REGION": "us-east-1",
                "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": SECRET,
                "NO_PROXY": address,
                **{name: value for name, value in os.environ.items() if name == "HOME"},
            }
        finally:
            server.kill()
