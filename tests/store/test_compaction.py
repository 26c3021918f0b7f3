"""Merging files changes no row, whenever it happens and however it ends."""

import itertools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ressa.errors import StoreError
from ressa.store import Store, SweepStore, compaction, open_store, query
from ressa.store.objects import Objects
from ressa.store.scan import scanned

from .conftest import SCALE, commit_trial

WRITTEN = ("events", "answers", "trials")
MUTATIONS = ("put", "put_new", "delete", "make_durable")


class Killed(BaseException):
    """The writer's end, at an operation on the file system."""


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three files make one, so that a few dozen commits are merged three times over."""
    monkeypatch.setattr(compaction, "FAN_IN", 3)


@contextmanager
def killed_at(operation: int, *, done: bool) -> Iterator[None]:
    """Ends whoever writes at its n-th operation: just before it, or just after."""
    numbers = itertools.count()
    real = {name: getattr(Objects, name) for name in MUTATIONS}

    def counted(name: str) -> Any:
        def call(self: Objects, *args: Any) -> Any:
            number = next(numbers)
            if number == operation and not done:
                raise Killed
            found = real[name](self, *args)
            if number == operation:
                raise Killed
            return found

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in MUTATIONS:
            patch.setattr(Objects, name, counted(name))
        yield


def work(sweep: SweepStore, trials: int, *, first: int = 0) -> None:
    """Commits trials as a driver does, one after the other."""
    for number in range(first, trials):
        trial = f"t{number:03d}"
        sweep.event("trial_started", epoch=1, trial=trial)
        answers = [{"example_id": f"e{i}", "answer": "red", "correct": i > 1} for i in range(3)]
        sweep.commit("answers", answers, trial=trial, epoch=1)
        row = {"role": "search", "number": number, "state": "succeeded", "score": number / 100}
        sweep.commit("trials", [row], trial=trial, epoch=1)


def rows(sweep: SweepStore) -> dict[str, list[dict[str, Any]]]:
    """Every row of every table, in order, but when it was committed."""
    found = {table: sweep.read(table, all_attempts=True) for table in WRITTEN}
    return {table: read.drop_columns(["committed"]).to_pylist() for table, read in found.items()}


def opened(sweep: SweepStore) -> SweepStore:
    """The same sweep, as another process sees it."""
    return open_store(sweep.store.location).sweep(sweep.name)


def files(sweep: SweepStore, table: str) -> list[str]:
    return sorted(path.name for path in Path(sweep.store.location, sweep.prefix, table).iterdir())


@pytest.fixture
def unmerged(store: Store, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[dict[str, Any]]]:
    """What a sweep of the same trials holds in which no file was merged."""
    with monkeypatch.context() as patch:
        patch.setattr(compaction, "FAN_IN", 10**9)
        same = open_store(Path(store.location).parent / "unmerged", create=True)
        sweep = same.create_sweep("quickstart", "")
        work(sweep, 12)
        assert len(files(sweep, "answers")) == 12
        return rows(sweep)


def test_a_table_keeps_few_files_and_all_rows_in_order(
    sweep: SweepStore, unmerged: dict[str, list[dict[str, Any]]]
) -> None:
    work(sweep, 12)
    for table in WRITTEN:
        assert 1 <= len(files(sweep, table)) <= 6  # of each level at most two
        assert any(name.startswith("merged-") for name in files(sweep, table))
    assert any(name.startswith("merged-2-") for name in files(sweep, "trials"))
    assert rows(sweep) == unmerged
    assert rows(opened(sweep)) == unmerged
    counted = query(sweep.store, "SELECT count(*) AS n, count(DISTINCT trial) AS t FROM answers")
    assert counted.to_dict("records") == [{"n": 36, "t": 12}]


@pytest.mark.timeout(1200)
def test_a_merge_killed_at_any_operation_loses_and_doubles_nothing(
    store: Store, unmerged: dict[str, list[dict[str, Any]]]
) -> None:
    # Every seventh here, every one by `make chaos`, which sets the scale.
    for operation in itertools.count(0, 1 if SCALE > 1 else 7):
        sweep = store.create_sweep(f"s{operation}", "")
        whole = {t: [row | {"sweep": sweep.name} for row in unmerged[t]] for t in WRITTEN}
        try:
            # Just before and just after the operation, in turns.
            with killed_at(operation, done=operation % 2 == 0):
                work(sweep, 12)
        except Killed:
            seen = rows(opened(sweep))
            assert seen == {table: whole[table][: len(seen[table])] for table in WRITTEN}
            work(opened(sweep), 12, first=len(seen["trials"]))
        else:
            break
        assert rows(opened(sweep)) == whole
        work(opened(sweep), 15, first=12)  # merging goes on, and nothing is left of the cut one
        assert all(len(files(sweep, table)) <= 6 for table in WRITTEN)
    assert operation > 60


def test_a_reader_with_an_old_listing_reads_each_row_once(sweep: SweepStore) -> None:
    work(sweep, 8)
    reader = opened(sweep)
    before = rows(reader)
    listed = []

    def list_then_merge() -> Any:
        scans = [reader.scan("answers")]
        if not listed:  # a merged file that is to be read is merged on
            assert scans[0].unread
            work(sweep, 20, first=8)
        listed.append(scans)
        return scans

    found = scanned(list_then_merge, lambda scans: scans[0].table())
    assert len(listed) == 2
    assert found.num_rows == 60
    assert rows(reader)["answers"][: len(before["answers"])] == before["answers"]


def test_a_file_that_goes_between_listing_and_reading_is_listed_again(
    sweep: SweepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    work(sweep, 2)
    reader = opened(sweep)
    names = Objects.names
    stale = [names(reader.store.objects, f"{reader.prefix}/answers")]
    work(sweep, 4, first=2)
    monkeypatch.setattr(
        Objects,
        "names",
        lambda self, prefix: (
            stale.pop() if prefix.endswith("answers") and stale else names(self, prefix)
        ),
    )
    assert len(reader.answers()) == 12


def test_two_drivers_that_merge_at_once_double_no_row(
    sweep: SweepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    work(sweep, 2)
    folder = Path(sweep.store.location, sweep.prefix)
    originals = {path: path.read_bytes() for path in folder.glob("*/*.parquet")}
    work(sweep, 4, first=2)
    stale = opened(sweep)
    for path, content in originals.items():  # as the other driver still sees them
        path.write_bytes(content)
    extra = [{"example_id": "e0", "answer": "red"}]
    with monkeypatch.context() as patch:
        patch.setattr(compaction.Compaction, "_remove_originals", lambda self, table: None)
        stale.commit("answers", extra, trial="t900", epoch=1)
        commit_trial(stale, "t900", 0.9)
        stale.commit("answers", extra, trial="t901", epoch=1)
        commit_trial(stale, "t901", 0.9)
    overlapping = [name for name in files(sweep, "answers") if name.startswith("merged-")]
    assert len(overlapping) >= 2
    reader = opened(sweep)
    assert len(reader.trials()) == 6
    assert len(reader.events()) == 4
    assert len(reader.answers()) == 14
    work(opened(sweep), 12, first=4)  # merged into one, they are clean again
    assert len(reader.answers()) == 38
    assert len(opened(sweep).trials()) == 14


def test_attempts_that_never_ended_are_left_out_file_by_file(sweep: SweepStore) -> None:
    for number in range(4):
        rows = [{"example_id": "e0", "answer": "red"}]
        sweep.commit("answers", rows, trial=f"x{number}", epoch=1)
    work(sweep, 9)
    assert len([name for name in files(sweep, "answers") if name.startswith("x")]) == 4
    scan = sweep.scan("answers")  # of the merged files not one row has to be looked at
    assert {part.name for part in scan.unread} == {
        name for name in files(sweep, "answers") if name.startswith("merged-")
    }
    assert len(sweep.answers()) == 27


def test_a_newer_attempt_of_a_merged_trial_replaces_it(sweep: SweepStore) -> None:
    work(sweep, 9)
    sweep.commit("answers", [{"example_id": "e9"}], trial="t004", attempt=1, epoch=2)
    commit_trial(sweep, "t004", 0.99, attempt=1, epoch=2)
    assert len(sweep.answers()) == 8 * 3 + 1
    assert list(sweep.answers()["trial"]) == sorted(sweep.answers()["trial"])
    assert len(sweep.read("answers", all_attempts=True)) == 28
    assert sweep.trials().set_index("trial").loc["t004", "score"] == 0.99
    assert query(sweep.store, "SELECT count(*) AS n FROM answers")["n"].tolist() == [25]


@pytest.mark.parametrize("damage", ["cut", "empty", "a page"])
def test_a_damaged_merged_file_is_named_and_the_others_are_read(
    sweep: SweepStore, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    work(sweep, 12)
    (merged, *_) = sorted(Path(sweep.store.location, sweep.prefix, "answers").glob("merged-1-*"))
    content = bytearray(merged.read_bytes())
    content[60] ^= 0xFF
    bytes_ = {"cut": content[:-1], "empty": b"", "a page": content}[damage]
    merged.write_bytes(bytes(bytes_))
    with caplog.at_level(logging.WARNING):
        for ask in (lambda s: len(s.answers()), lambda s: len(query(s.store, "FROM answers"))):
            assert ask(opened(sweep)) == 27
    assert merged.name in caplog.text


def test_a_merged_file_that_is_damaged_leaves_its_originals(sweep: SweepStore) -> None:
    folder = Path(sweep.store.location, sweep.prefix, "trials")
    work(sweep, 2)
    originals = {path: path.read_bytes() for path in folder.iterdir()}
    work(sweep, 3, first=2)
    (merged,) = folder.glob("merged-1-*")
    for path, content in originals.items():
        path.write_bytes(content)
    merged.write_bytes(merged.read_bytes()[:100])
    reader = opened(sweep)
    assert list(reader.trials()["trial"]) == ["t000", "t001"]
    work(reader, 8, first=2)
    assert list(opened(sweep).trials()["trial"]) == [f"t{n:03d}" for n in range(8)]


def test_a_merge_that_fails_is_said_and_the_sweep_goes_on(
    sweep: SweepStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(self: Objects, path: str, content: bytes) -> None:
        raise StoreError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Objects, "put", full)
        work(sweep, 5)
    assert "left unmerged for now: No space left" in caplog.text
    assert len(sweep.answers()) == 15
    work(sweep, 9, first=5)
    assert len(files(sweep, "answers")) <= 5
    assert len(opened(sweep).answers()) == 27


def test_files_of_other_programs_are_read_and_never_merged_away(sweep: SweepStore) -> None:
    folder = Path(sweep.store.location, sweep.prefix, "trials")
    commit_trial(sweep, "t000", 0.5)
    (original,) = folder.iterdir()
    (folder / "mine.parquet").write_bytes(original.read_bytes())
    (folder / "notes.txt").write_text("mine")
    work(sweep, 9, first=1)
    assert {"mine.parquet", "notes.txt"} < set(files(sweep, "trials"))
    assert len(sweep.trials()) == 9
