"""Where a store may lie, and what is said where it may not."""

import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Event

import pytest

from ressa.errors import NotFoundError, StoreError
from ressa.store import open_store


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_reading_a_missing_store_makes_no_folder(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no store at .*nowhere"):
        open_store(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_a_relative_folder_is_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_store("a/b", create=True)
    assert store.folder == tmp_path / "a" / "b"
    assert open_store(f"file://{tmp_path}/a/b").folder == store.folder
    assert list(tmp_path.glob("a/b/.*")) == []  # the probe is gone


def test_workers_that_open_a_new_store_together_all_get_it(tmp_path: Path) -> None:
    at_once = Barrier(4)

    def opened(_worker: int, folder: Path) -> Path | None:
        at_once.wait()
        return open_store(folder, create=True).folder

    with ThreadPoolExecutor(4) as workers:
        for number in range(100):
            folder = tmp_path / str(number)
            assert list(workers.map(opened, range(4), [folder] * 4)) == [folder] * 4


def test_a_file_in_place_of_the_folder_is_one_clear_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreError, match="is a file, not a folder"):
        open_store(tmp_path / "file", create=True)
    with pytest.raises(StoreError, match=r"^cannot open store .*file/below: [^\n]+$"):
        open_store(tmp_path / "file" / "below", create=True)


def test_a_place_that_takes_no_files_is_one_clear_message() -> None:
    with pytest.raises(StoreError, match=r"^cannot open store /proc/ressa: [^\n]+$"):
        open_store("/proc/ressa", create=True)
    with pytest.raises(StoreError, match=r"^cannot write to store /proc: [^\n]+$"):
        open_store("/proc", create=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes into read-only folders")
def test_a_read_only_folder_is_one_clear_message(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match=r"Permission denied\. Check its permissions"):
        open_store(tmp_path, create=True)


def test_a_full_disk_is_one_clear_message_and_loses_nothing(tiny_disk: Path) -> None:
    store = open_store(tiny_disk, create=True)
    sweep = store.create_sweep("s", "name: s\n")
    sweep.event("started", epoch=1)
    (tiny_disk / "ballast").write_bytes(b"0" * (os.statvfs(tiny_disk).f_bavail * 4096))
    with pytest.raises(
        StoreError, match=r"^store .*cannot write .*: No space left on device\. Free some space"
    ):
        sweep.event("finished", epoch=1)
    assert list(sweep.events()["kind"]) == ["started"]
    with pytest.raises(StoreError, match="No space left"):
        open_store(tiny_disk, create=True)
    (tiny_disk / "ballast").unlink()
    assert sweep.event("finished", epoch=1)
    assert list(open_store(tiny_disk).sweep("s").events()["kind"]) == ["started", "finished"]


def test_a_bucket_is_a_url_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    store = open_store("s3://bucket/prefix")
    assert store.location == "s3://bucket/prefix"
    assert store.folder is None


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(StoreError, match="cannot open store nonsense://x"):
        open_store("nonsense://x")


def test_what_a_killed_writer_left_goes_and_nothing_else(tmp_path: Path) -> None:
    objects = open_store(tmp_path, create=True).objects
    objects.put("stages/mask/key/whole", b"bytes")
    folder = tmp_path / "stages/mask/key"
    (folder / "whole#1").write_bytes(b"by")
    assert objects.names("stages/mask/key") == ["whole"], "no reader sees it"
    objects.remove_unfinished("stages", older_than_seconds=60)
    assert (folder / "whole#1").exists(), "somebody may be at it"
    objects.remove_unfinished("stages")
    assert [path.name for path in folder.iterdir()] == ["whole"]
    (folder / "whole#1").write_bytes(b"by")
    objects.delete_folder("stages/mask/key")
    assert not folder.exists()


def test_what_is_being_written_while_others_tidy_up_is_written(tmp_path: Path) -> None:
    objects, done = open_store(tmp_path, create=True).objects, Event()

    def tidy() -> None:
        while not done.is_set():
            objects.remove_unfinished("stages")

    with ThreadPoolExecutor(1) as other:
        tidying = other.submit(tidy)
        try:
            for number in range(300):
                assert objects.put_new(f"stages/mask/key/{number}", b"bytes" * 1000)
                objects.put(f"stages/mask/key/{number}", b"other" * 1000)
        finally:
            done.set()
        tidying.result()
    assert len(objects.names("stages/mask/key")) == 300


def test_what_cannot_be_tidied_away_harms_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = open_store(tmp_path, create=True).objects
    objects.put("stages/mask/key/whole", b"bytes")
    folder = tmp_path / "stages/mask/key"
    for name in ("theirs#1", "ours#1"):
        (folder / name).write_bytes(b"by")

    def unlink(path: Path) -> None:
        if path.name == "theirs#1":
            raise PermissionError(1, "Operation not permitted")
        os.unlink(path)

    monkeypatch.setattr(Path, "unlink", unlink)
    objects.remove_unfinished("stages")
    assert {path.name for path in folder.iterdir()} == {"theirs#1", "whole"}


def test_containers_of_one_process_id_may_open_a_store_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_bytes
    inner = []

    def write_bytes(path: Path, content: bytes) -> int:
        written = write(path, content)
        if not inner:
            inner.append(path)
            open_store(tmp_path, create=True)  # another one, in the middle of ours
        return written

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    open_store(tmp_path, create=True)
    assert len(inner) == 1
    assert not list(tmp_path.iterdir())
