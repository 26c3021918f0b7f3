"""Who sees a token, and which ports are open, while a real Ray of ours runs."""

import os
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.chaos.kills import targets
from tests.sweep.place import PATIENCE, Place, contents, make_place, session_folders
from tests.sweep.waiting import wait_for

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def command_lines() -> Iterator[str]:
    for process in psutil.process_iter(["cmdline"]):
        yield " ".join(process.info["cmdline"] or [])


def files_with(token: str, folders: Iterable[Path]) -> list[Path]:
    return [path for folder in folders for path, held in contents(folder) if token.encode() in held]


def answer(url: str, token: str | None = None) -> int | None:
    """The status of an HTTP answer; None if nothing answers."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    try:
        request = urllib.request.Request(url, headers=headers)
        with urllib.request.urlopen(request, timeout=10) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        error.close()
        return int(error.code)
    except OSError:
        return None


def test_the_token_of_a_running_sweep_is_on_no_command_line_and_in_no_file(tmp_path: Path) -> None:
    place: Place = make_place(tmp_path)
    driver = place.start("run", "small.yaml")
    try:
        trial = wait_for(lambda: targets(driver, "trial"))[0]
        token = psutil.Process(trial).environ()["RAY_AUTH_TOKEN"]
        assert len(token) == 64
        assert not [line for line in command_lines() if token in line]
        folders = [folder for folder in session_folders() if f"-{driver.pid}-" in folder.name]
        assert folders
        assert not files_with(token, [*folders, tmp_path])
    finally:
        driver.terminate()
        _, stderr = driver.communicate(timeout=PATIENCE)
    assert token not in stderr


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder that Ray can keep its sockets in: their paths are at most 107 characters long."""
    with tempfile.TemporaryDirectory(prefix="ressa-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.mark.slow
def test_ray_on_one_node_is_open_to_its_token_on_loopback_alone(
    tmp_path: Path, short_path: Path
) -> None:
    with socket.socket() as free, socket.socket() as other:
        free.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        port, dashboard = free.getsockname()[1], other.getsockname()[1]
    venv = Path(sys.executable).parents[1]
    temporary = short_path / "ray"
    log = tmp_path / "log"
    with log.open("w") as out:
        script = subprocess.Popen(
            [
                ROOT / "cluster/one-node/ray.sh",
                "--num-cpus=1",
                f"--port={port}",
                f"--dashboard-port={dashboard}",
                f"--temp-dir={temporary}",
            ],
            env={**os.environ, "HOME": str(tmp_path), "RESSA_VENV": str(venv)},
            stdout=out,
            stderr=out,
        )
    try:
        file = tmp_path / ".ray" / "auth_token"
        url = f"http://127.0.0.1:{dashboard}/api/version"
        wait_for(lambda: answer(url) is not None or script.poll() is not None, 300)
        assert script.poll() is None, log.read_text()
        token = file.read_text()
        assert file.stat().st_mode & 0o077 == 0
        assert answer(url) == 401
        assert answer(url, "0" * 64) == 403
        assert answer(url, token) == 200
        assert not [line for line in command_lines() if token in line]
        wait_for(lambda: "Ray runtime started" in log.read_text(), 300)
        assert not files_with(token, [temporary])
        assert token not in log.read_text()
        ours = [psutil.Process(script.pid), *psutil.Process(script.pid).children(recursive=True)]
        listening = {
            connection.laddr.ip.removeprefix("::ffff:")
            for process in ours
            for connection in process.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
        }
        assert listening == {"127.0.0.1"}, log.read_text()

        reached = {"HOME": str(tmp_path), "RESSA_ADDRESS": f"http://127.0.0.1:{dashboard}"}
        place = Place(make_place(tmp_path).folder, reached | {"RAY_AUTH_MODE": "token"})
        store = str(tmp_path / "results")
        settings = ("--set", "search.parallel=1", "--store", store)
        done = place.ressa("submit", "small.yaml", "--wait", *settings)
        assert done.returncode == 0, done.stderr
        assert (place.sweep.trials()["state"] == "succeeded").all()
        assert token not in done.stdout + done.stderr
    finally:
        script.terminate()
        script.wait(timeout=PATIENCE)
    wait_for(lambda: not any(process.is_running() for process in ours), 60)
