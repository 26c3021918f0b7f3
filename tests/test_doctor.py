"""`ressa doctor`: what it finds, with real processes, and that it says what to do."""

import itertools
import os
from pathlib import Path

import pytest

from ressa import doctor
from ressa.doctor import _all_reduce, _builds, _cuda, _python, _shared_memory, examine
from ressa.store import open_store
from ressa.sweep.checkup import examine_store


def test_a_python_that_is_not_supported_is_named() -> None:
    assert _python((3, 12)).ok
    finding = _python((3, 10))
    assert not finding.ok and finding.found == "3.10" and "3.11 or 3.12" in finding.advice


def test_two_processes_sum_over_loopback() -> None:
    finding = _all_reduce()
    assert finding.ok and not finding.advice, finding


def test_processes_that_cannot_meet_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nowhere0")
    finding = _all_reduce()
    assert not finding.ok
    assert "nowhere0" in finding.found
    assert "workers: 1 still run" in finding.advice


def break_library(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / f"{name}.py").write_text("raise RuntimeError('its own library is missing')\n")
    about = folder / f"{name}-1.5.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder) + os.pathsep + os.environ.get("PYTHONPATH", ""))


def test_a_torchvision_of_another_torch_is_found_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_library("torchvision", tmp_path, monkeypatch)
    python, found = itertools.islice(examine(()), 2)
    assert python.ok
    assert (found.what, found.ok) == ("torchvision", False)
    assert "that belongs to this torch" in found.advice


def test_a_library_that_is_missing_or_broken_is_named_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_library("brokenlib", tmp_path, monkeypatch)
    findings = {f.what: f for f in examine(("brokenlib", "no-such-lib", "torch"))}
    assert findings["no-such-lib"].found == "not installed"
    assert ".[run]" in findings["no-such-lib"].advice
    broken = findings["brokenlib"]
    assert broken.found == "1.5 does not import: RuntimeError: its own library is missing"
    assert "brokenlib==1.5" in broken.advice
    assert findings["torch"].ok and findings["all-reduce"].ok


def test_a_build_that_was_killed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert _builds().ok
    lock = tmp_path / "cpu_adam" / "lock"
    lock.parent.mkdir()
    lock.touch()
    assert _builds().ok, "it may be under way"
    os.utime(lock, (0, 0))
    finding = _builds()
    assert not finding.ok and f"rm {lock}" in finding.advice


def test_gpus_and_shared_memory_are_looked_at() -> None:
    assert _cuda().ok and "GPUs, torch sees all" in _cuda().found
    assert "/dev/shm" in _shared_memory().found


def test_a_torch_that_breaks_over_a_gpu_is_not_taken_for_one_that_sees_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "gpus", lambda: 1)
    (tmp_path / "torch.py").write_text("raise RuntimeError('the driver is too old')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert not _cuda().ok and "1 GPUs, RuntimeError: the driver is too old" in _cuda().found
    (tmp_path / "torch.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(doctor, "PATIENCE_SECONDS", 0.3)
    assert not _cuda().ok and "nothing for 0 s" in _cuda().found


def test_a_store_is_looked_at_and_none_is_made(tmp_path: Path) -> None:
    there, absent, file = tmp_path / "there", tmp_path / "a" / "b", tmp_path / "file"
    open_store(there, create=True)
    file.touch()
    finding = examine_store(str(there))
    assert finding.ok and "can be written to" in finding.found and "GiB" in finding.found
    assert not list(there.rglob(".doctor*"))
    finding = examine_store(str(absent))
    assert finding.ok and "does not exist yet" in finding.found and not absent.exists()
    finding = examine_store(str(file))
    assert not finding.ok and "is a file" in finding.found and finding.advice
