"""Which rows count is decided file by file; it is what deciding row by row comes to."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ressa.store import TABLES, open_store, rows
from ressa.store.parts import attempt_name, merged_name

from .conftest import SCALE, many

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
Row = dict[str, Any]


@dataclass(frozen=True)
class Commit:
    """One commit to a table: whose, and which of three questions, steps or events it holds."""

    table: str
    trial: str | None
    attempt: int
    epoch: int
    holds: tuple[int, ...]
    salt: int
    """Makes two commits of the same attempt differ."""

    def rows(self, seconds: int) -> list[Row]:
        """Its rows, written so many seconds after the sweep began."""
        own = {
            "trials": [{"score": self.salt / 8, "state": "succeeded"}],
            "answers": [{"example_id": f"e{at}", "answer": str(self.salt)} for at in self.holds],
            "proposals": [{"number": self.salt, "reason": str(self.salt)}],
            "events": [{"kind": f"k{at}", "detail": "{}"} for at in self.holds],
            "rungs": [{"step": at, "value": self.salt / 8} for at in self.holds],
        }[self.table]
        whose = {"sweep": "s", "trial": self.trial, "attempt": self.attempt, "epoch": self.epoch}
        when = BEGAN + timedelta(seconds=seconds)
        return [row | whose | {"committed": when} for row in own]


MOST = 14
TABLES_TRIED = ("answers", "proposals", "events", "rungs")
commits = st.builds(
    Commit,
    table=st.sampled_from(("trials", *TABLES_TRIED)),
    trial=st.sampled_from(("t0", "t1", "t2", "dense", "dense-repaired", "sweep")),
    attempt=st.sampled_from((0, 0, 0, 1, 10)),
    epoch=st.integers(1, 2),
    holds=st.lists(st.integers(0, 2), min_size=1, max_size=3, unique=True).map(tuple),
    salt=st.integers(0, 7),
)
some = st.sets(st.integers(0, MOST - 1), min_size=1, max_size=6)


def newest(found: Iterable[Row], key: tuple[str, ...]) -> list[Row]:
    """Of rows with one key that of the newest attempt, epoch and hour."""
    best: dict[Any, Row] = {}
    for row in found:
        name = tuple(row.get(column) for column in key)
        rank = (row["attempt"], row["epoch"], row["committed"])
        if name not in best or rank >= tuple(
            best[name][c] for c in ("attempt", "epoch", "committed")
        ):
            best[name] = row
    return list(best.values())


def counting(table: str, written: list[Row], ended: list[Row], *, all_attempts: bool) -> list[Row]:
    """The rows that count, by the rules alone."""
    key = TABLES[table].key
    if not TABLES[table].of_attempts:
        return newest(written, key)
    whose = ("trial", "attempt") if all_attempts else ("trial",)
    last = {(row["trial"], row["attempt"], row["epoch"]) for row in newest(ended, whose)}
    mine = [row for row in written if (row["trial"], row["attempt"], row["epoch"]) in last]
    return newest(mine, tuple(dict.fromkeys((*key, "trial", "attempt"))))


def file_of(table: str, found: list[Row], names: list[str]) -> bytes:
    """A merged file, its rows in the order of the names of its commits."""
    schema = rows.arrow_schema(table)
    return rows.encode_merged(table, pa.Table.from_pylist(found, schema=schema), names)


def plain(found: Iterable[Row]) -> list[str]:
    """Rows to be compared: in any order, without what they lack."""
    texts = [{key: str(value) for key, value in row.items() if value is not None} for row in found]
    return sorted(str(sorted(text.items())) for text in texts)


@pytest.mark.timeout(300 * SCALE)
@many(40)
@given(
    drawn=st.lists(commits, min_size=1, max_size=MOST, unique=True),
    alone=st.sets(st.integers(0, MOST - 1)),
    merges=st.lists(some, max_size=4),
    foreign=st.lists(some, max_size=2),
    nameless=st.booleans(),
)
def test_rows_count_as_if_each_was_looked_at(
    tmp_path_factory: pytest.TempPathFactory,
    drawn: list[Commit],
    alone: set[int],
    merges: list[set[int]],
    foreign: list[set[int]],
    nameless: bool,
) -> None:
    if nameless:  # rows of the sweep as a whole; a trial of that name would be another matter
        drawn = [replace(c, trial=None) if c.trial == "sweep" else c for c in drawn]
        drawn = [c for c in drawn if c.trial or not TABLES[c.table].of_attempts]
    place = tmp_path_factory.mktemp("store")
    sweep = open_store(place, create=True).create_sweep("s", "")
    written: dict[str, list[Row]] = {table: [] for table in TABLES}
    for table in TABLES:
        mine = [(at, c) for at, c in enumerate(drawn) if c.table == table]
        named = {
            f"{attempt_name(c.trial, c.attempt, c.epoch)}-{at:012x}.parquet": (at, c.rows(at))
            for at, c in mine
        }
        numbers = {at: name for name, (at, _) in named.items()}
        files: dict[str, bytes] = {}
        folder = Path(place, sweep.files[table].prefix)
        merged_into = set()
        for number, chosen in enumerate(merges):
            names = sorted(numbers[at] for at in chosen if at in numbers)
            names = sorted(set(names))
            if names:
                held = [row for name in names for row in named[name][1]]
                files[merged_name(number, len(held), f"{number:012x}")] = file_of(
                    table, held, names
                )
                merged_into.update(names)
        for name, (at, own) in named.items():
            if at in alone or name not in merged_into:
                files[name] = file_of(table, own, [name])
            written[table] += own
        for number, chosen in enumerate(foreign):
            names = [numbers[at] for at in chosen if at in numbers]
            later = [
                row | {"committed": row["committed"] + timedelta(hours=1 + number)}
                for name in dict.fromkeys(names)
                for row in named[name][1]
            ]
            if later:
                files[f"mine{number}.parquet"] = file_of(table, later, ["mine"])
                written[table] += later
        for name, content in files.items():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)

    for table in ("trials", *TABLES_TRIED):
        for all_attempts in (False, True):
            read = sweep.read(table, all_attempts=all_attempts)
            wanted = counting(table, written[table], written["trials"], all_attempts=all_attempts)
            assert plain(read.to_pylist()) == plain(wanted), table
            order = [(r["trial"] or "~", r["attempt"]) for r in read.to_pylist()]
            assert order == sorted(order) or table in ("events", "proposals", "rungs")
    assert sweep.skipped == {}
