"""Whatever happens to the files, a reader opens, names the bad one, and loses nothing committed."""

import errno
import itertools
import logging
import os
import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import obstore
import pytest

from ressa.errors import RessaError, StoreError
from ressa.store import SweepStore, acquire, open_store, query, rows
from ressa.store.objects import Objects

from .conftest import commit_trial


def folder(sweep: SweepStore, table: str) -> Path:
    return Path(sweep.store.location, sweep.prefix, table)


def opened(sweep: SweepStore) -> SweepStore:
    """The same sweep, as another process sees it."""
    return open_store(sweep.store.location).sweep(sweep.name)


def test_a_writer_cut_after_any_operation_leaves_what_it_had_committed(
    sweep: SweepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = obstore.put

    class Cut(BaseException):
        pass

    for operation in range(12):
        numbers = itertools.count()

        def cut(*given: Any, at: int = operation, count: Any = numbers, **options: Any) -> Any:
            done = put(*given, **options)
            if next(count) == at:
                raise Cut
            return done

        trials = [f"t{operation:02d}{n}" for n in range(3)]

        def write(names: list[str] = trials, at: int = operation) -> None:
            for trial in names:
                commit_trial(sweep, trial, 0.5)
            for name in ("started", "interrupted", "resumed", "finished", "grown", "more"):
                sweep.event(name, {"operation": at}, epoch=1)

        with monkeypatch.context() as patch:
            patch.setattr(obstore, "put", cut)
            with pytest.raises(Cut):
                write()
        reader = opened(sweep)
        mine = [t for t in reader.trials()["trial"] if t in trials]
        assert mine == trials[: (operation + 1) // 2]  # scores, then the row that makes them count
        assert reader.scores()["trial"].isin(reader.trials()["trial"]).all()
        assert len(reader.scores()) == 2 * len(reader.trials())
        assert reader.skipped == {}


@pytest.mark.parametrize("table", ["trials", "scores", "events"])
def test_a_file_cut_anywhere_is_named_and_the_others_are_read(
    sweep: SweepStore, table: str, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(2):
        commit_trial(sweep, f"t{number:03d}", 0.5)
        sweep.event("trial_started", epoch=1, trial=f"t{number:03d}")
    (file,) = folder(sweep, table).glob("t001-*")
    content = file.read_bytes()
    file.unlink()
    lengths = (*range(0, len(content), 512), len(content) - 1)
    cut = {f"t001-a0-e1-{length:012x}.parquet": content[:length] for length in lengths}
    for name, part in cut.items():
        (file.parent / name).write_bytes(part)
    with caplog.at_level(logging.WARNING):
        reader = opened(sweep)
        assert reader.read(table)["trial"].unique().to_pylist() == ["t000"]
    assert set(reader.skipped) == {f"{sweep.prefix}/{table}/{name}" for name in cut}
    assert all(name in caplog.text for name in cut)
    assert len(query(sweep.store, f"SELECT * FROM {table} WHERE trial = 't000'"))
    file.write_bytes(content)  # done again, it counts
    assert opened(sweep).read(table)["trial"].unique().to_pylist() == ["t000", "t001"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
def test_a_store_that_takes_nothing_says_why_and_can_be_read(
    sweep: SweepStore, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    commit_trial(sweep, "t000", 0.5)

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(obstore, "put", refuse)
        for write in (
            lambda: commit_trial(sweep, "t001", 0.5),
            lambda: sweep.store.create_sweep("other", ""),
            lambda: sweep.store.stages.put("mask", "k", {"a": b"b"}),
            lambda: acquire(sweep),
        ):
            with pytest.raises(StoreError, match=os.strerror(code)):
                write()
        assert list(opened(sweep).trials()["trial"]) == ["t000"]
    commit_trial(sweep, "t001", 0.5)
    assert list(opened(sweep).trials()["trial"]) == ["t000", "t001"]


def test_a_slow_store_is_a_store(sweep: SweepStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly(work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **options: Any) -> Any:
            time.sleep(0.01)
            return work(*given, **options)

        return call

    for name in ("put", "get", "head", "list_with_delimiter"):
        monkeypatch.setattr(obstore, name, slowly(getattr(obstore, name)))
    with acquire(sweep) as lease:
        commit_trial(sweep, "t000", 0.5, epoch=lease.epoch)
        assert sweep.status().state == "running"
    assert len(opened(sweep).scores()) == 2


@pytest.mark.parametrize("table", ["trials", "events", "proposals"])
def test_foreign_files_in_a_tables_folder_are_named_and_left_alone(
    sweep: SweepStore, table: str
) -> None:
    commit_trial(sweep, "t000", 0.5)
    sweep.event("started", epoch=1)
    sweep.commit("proposals", [{"number": 0, "point": "{}"}], trial="t000", epoch=1)
    other = next(path for path in folder(sweep, "scores").iterdir())
    place = folder(sweep, table)
    foreign = {
        "core": b"\x7fELF",
        "trials.csv": b"trial,score\n",
        "merged-1-64-0123456789ab.parquet": other.read_bytes(),
        "t000-a0-e1-0123456789ab.parquet": other.read_bytes(),
        ".parquet": b"PAR1PAR1",
        "ü €.parquet": b"PAR1" * 9,
    }
    for name, content in foreign.items():
        (place / name).write_bytes(content)
    (place / "folder.parquet").mkdir()
    reader = opened(sweep)
    assert reader.read(table).num_rows == 1
    assert {path.rsplit("/", 1)[1] for path in reader.skipped} == set(foreign)
    assert reader.status().done == 1
    with acquire(reader):
        pass
    assert {name: (place / name).read_bytes() for name in foreign} == foreign


def test_a_clock_that_steps_back_changes_no_result(
    sweep: SweepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Earlier(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(UTC) - timedelta(days=3)

    with acquire(sweep) as lease:
        commit_trial(sweep, "t000", 0.5, epoch=lease.epoch)
        sweep.event("started", {"planned": 2}, epoch=lease.epoch)
    monkeypatch.setattr(rows, "datetime", Earlier)
    with acquire(sweep) as lease:
        assert lease.epoch == 2
        commit_trial(sweep, "t000", 0.9, attempt=1, epoch=lease.epoch)
        commit_trial(sweep, "t001", 0.7, epoch=lease.epoch)
        sweep.event("resumed", {"planned": 2}, epoch=lease.epoch)
    assert list(opened(sweep).trials()["score"]) == [0.9, 0.7]  # the newer attempt, not the hour
    assert list(opened(sweep).attempts()["score"]) == [0.5, 0.9, 0.7]
    assert opened(sweep).status().planned == 2


def test_what_a_killed_writer_had_begun_is_gone_with_the_next_lease(sweep: SweepStore) -> None:
    acquire(sweep).release()
    begun = [
        folder(sweep, place) / "x-a0-e1-0123456789ab.parquet#1" for place in ("trials", "lease")
    ]
    for path in begun:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"PAR1")
    assert opened(sweep).trials().empty
    acquire(sweep).release()
    assert not [path for path in begun if path.exists()]


def test_a_damaged_spec_or_lease_is_a_documented_error(sweep: SweepStore) -> None:
    acquire(sweep).release()
    place = Path(sweep.store.location, sweep.prefix)
    for path in (*(place / "lease").iterdir(), place / "spec.yaml"):
        path.write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(RessaError):
        opened(sweep).spec_text()
    assert opened(sweep).status().holder is not None


def test_a_store_holds_no_path_and_may_be_moved(sweep: SweepStore, tmp_path: Path) -> None:
    with acquire(sweep) as lease:
        commit_trial(sweep, "t000", 0.5, epoch=lease.epoch)
        sweep.event("started", {"planned": 1}, epoch=lease.epoch)
    sweep.store.stages.put("mask", "k", {"content": b"bits"})
    here = Path(sweep.store.location)
    tables = [sweep.read(table).to_pandas().to_csv() for table in sweep.files]
    texts = [*tables, *(path.read_text("latin-1") for path in here.rglob("*") if path.is_file())]
    assert not [text for text in texts if str(tmp_path) in text]
    shutil.move(here, tmp_path / "moved")
    moved = open_store(tmp_path / "moved")
    assert moved.stages.get("mask", "k") == {"content": b"bits"}
    assert len(moved.sweep(sweep.name).scores()) == 2
    with acquire(moved.sweep(sweep.name)) as lease:
        assert lease.epoch == 2


def test_an_object_is_never_outside_the_store(sweep: SweepStore, tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"private")
    objects: Objects = sweep.store.objects
    for path in ("../outside", "sweeps/../../outside"):
        for ask in (objects.get, objects.size, objects.names, objects.delete):
            with pytest.raises(StoreError):
                ask(path)
        with pytest.raises(StoreError):
            objects.put(path, b"changed")
    for path in (str(tmp_path / "outside"), "%2e%2e/outside"):  # names like others
        assert objects.get(path) is None
        objects.put(path, b"changed")
    assert (tmp_path / "outside").read_bytes() == b"private"
    assert {path.name for path in tmp_path.iterdir()} == {"outside", "results"}
