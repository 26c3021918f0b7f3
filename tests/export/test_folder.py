"""A folder appears whole or not at all."""

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from ressa.errors import ConflictError, StoreError
from ressa.export import folder as export_folder
from ressa.export.folder import new_folder


def write(target: Path) -> None:
    with new_folder(target, needs=0) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_text("whole")


def test_it_appears_at_the_end_alone(tmp_path: Path) -> None:
    target = tmp_path / "made" / "too" / "model"
    with new_folder(target, needs=0) as folder:
        (folder / "file").write_text("whole")
        (folder / "file").chmod(0o600)
        assert not target.exists()
    assert [path.name for path in target.parent.iterdir()] == ["model"]
    assert (target / "file").read_text() == "whole"
    assert (target / "file").stat().st_mode & 0o777 == 0o644
    assert target.stat().st_mode & 0o777 == 0o755


def test_an_empty_folder_gives_way_and_any_other_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    write(target)
    with pytest.raises(ConflictError, match="is not empty"):
        write(target)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ConflictError, match="is not a folder"):
        write(file)
    late = tmp_path / "late"
    with pytest.raises(ConflictError, match="is not empty"), new_folder(late, needs=0):
        write(late)
    assert {path.name for path in tmp_path.iterdir()} == {"model", "file", "late"}


def write_half(target: Path, needs: int = 0) -> None:
    with new_folder(target, needs=needs) as folder:
        (folder / "file").write_text("half")
        raise RuntimeError


def test_nothing_is_left_of_one_that_failed_or_has_no_room(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        write_half(tmp_path / "model")
    with pytest.raises(StoreError, match=r"MiB free, and the export needs about 4,398,046,511,104"):
        write_half(tmp_path / "model", needs=2**62)
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be written"):
        write_half(tmp_path / "file" / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_two_writers_that_begin_together_take_nothing_from_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One begins just when the other has made its folder, and not yet locked it."""
    make, target, begun = export_folder.mkdtemp, tmp_path / "model", list[str]()

    def made(**how: Any) -> str:
        begun.append(make(**how))
        if len(begun) == 1:
            export_folder._remove_left_overs(target)
        return begun[-1]

    monkeypatch.setattr(export_folder, "mkdtemp", made)
    write(target)
    assert len(begun) == 2
    assert (target / "inner" / "file").read_text() == "whole"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_of_two_writers_that_end_together_one_is_told_of_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, target = os.rename, tmp_path / "model"

    def rename_later(partial: Path, to: Path) -> None:
        monkeypatch.setattr(os, "rename", rename)
        write(to)
        rename(partial, to)

    monkeypatch.setattr(os, "rename", rename_later)
    with pytest.raises(ConflictError, match="is not empty"):
        write(target)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def killed(target: Path) -> None:
    with new_folder(target, needs=0) as folder:
        (folder / "file").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_writer_left_does_not_look_whole_and_goes_with_the_next(
    tmp_path: Path,
) -> None:
    target = tmp_path / "model"
    process = multiprocessing.get_context("fork").Process(target=killed, args=(target,))
    process.start()
    process.join()
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".model.")
    assert left.name.endswith(".partial")
    with new_folder(target, needs=0) as other:  # that of a living one stays
        assert not left.exists()
        with new_folder(target, needs=0) as folder:
            (folder / "file").write_text("first")
        assert other.exists()
        (target / "file").unlink()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
