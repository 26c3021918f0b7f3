"""Who sees a token while a real Ray of ours runs."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.chaos.kills import targets
from tests.sweep.place import Place, make_place, session_folders
from tests.sweep.waiting import wait_for

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def command_lines() -> Iterator[str]:
    for process in psutil.process_iter(["cmdline"]):
        yield " ".join(process.info["cmdline"] or [])


def files_with(token: str, folders: Iterable[Path]) -> list[Path]:
    found = []
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file() and token.encode() in path.read_bytes():
                found.append(path)
    return found


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
        _, stderr = driver.communicate(timeout=120)
    assert token not in stderr
