"""The S3 server of the tests, in a process of its own, and how to reach it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SECRET = "never-to-be-seen-9f8e7d"


@contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """Runs the server; yields the environment variables that clients need."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.s3_server"]
    root = Path(__file__).parents[1]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline())
            yield {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
                "AWS_ALLOW_HTTP": "true",
                "AWS_REGION": "us-east-1",
                "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": SECRET,
                "NO_PROXY": "127.0.0.1",
                **{name: value for name, value in os.environ.items() if name == "HOME"},
            }
        finally:
            server.kill()
