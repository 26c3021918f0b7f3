"""Whatever lies in a store's folders: what was committed is read, and the rest is named."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ressa.errors import RessaError
from ressa.landscape import results_table
from ressa.store import TABLES, SweepStore, open_store, query, rows
from ressa.store.parts import merged_name

from .conftest import SCALE, commit_trial, many

"""How many times the inputs of the CI tier: `make chaos` sets it."""

TRIALS = ("t000", "t001", "t002", "t003")
Files = dict[str, dict[str, bytes]]
"""Table → name → content."""


def write(sweep: SweepStore) -> None:
    """A few trials with rows in every table, the last two of them merged by hand."""
    sweep.event("started", {"planned": 4}, epoch=1)
    sweep.commit("data", [{"purpose": "repair", "image_ids": ["a", "b"]}], epoch=1)
    for number, trial in enumerate(TRIALS):
        row = {"number": number, "point": '{"vision_sparsity": "0.5"}', "seen": ["dense"]}
        sweep.commit("proposals", [row], trial=trial, epoch=1)
        sweep.event("trial_started", epoch=1, trial=trial)
        sweep.commit("rungs", [{"number": number, "step": 1}], trial=trial, epoch=1)
        sweep.commit("curves", [{"step": n, "loss": 1 / n} for n in (1, 2)], trial=trial, epoch=1)
        sweep.commit("layers", [{"name": "a"}, {"name": "b"}], trial=trial, epoch=1)
        answers = [{"example_id": f"e{n}", "answer": "red"} for n in range(3)]
        sweep.commit("answers", answers, trial=trial, epoch=1)
        commit_trial(sweep, trial, number / 8)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The files of a sweep in which all is well: of every table two commits and a merged file."""
    place = tmp_path_factory.mktemp("sound")
    sweep = open_store(place, create=True).create_sweep("s", "")
    write(sweep)
    found: Files = {}
    for table in TABLES:
        folder = Path(place, sweep.files[table].prefix)
        files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
        last = [name for name in files if name.startswith(TRIALS[2:])]
        if last:
            held = pa.concat_tables([rows.decode(table, files.pop(name)) for name in last])
            content = rows.encode_merged(table, held, last)
            files[merged_name(1, len(held), "0" * 12)] = content
        found[table] = files
    return found


class Planted:
    """What is done to the files of a table."""

    def __init__(self, sound: Files, seed: int) -> None:
        self.chance = random.Random(seed)
        self.sound = sound
        self.files = {table: dict(files) for table, files in sound.items()}
        self.harmed: dict[str, set[str]] = {table: set() for table in sound}
        """Sound files that are no longer as they were written."""
        self.bad: set[tuple[str, str]] = set()
        """Files that hold no rows, and have to be named."""

    def one(self) -> None:
        """Does one bad thing."""
        table = self.chance.choice(list(TABLES))
        deeds: list[Callable[[str], None]] = [
            *(self.cut, self.flip, self.noise, self.of_another_table, self.doubled),
            *(self.other_columns, self.lies, self.claims_much, self.renamed, self.nested_name),
        ]
        self.chance.choice(deeds)(table)

    def some_file(self, table: str) -> tuple[str, bytes]:
        return self.chance.choice(sorted(self.sound[table].items()))

    def some_name(self) -> str:
        digest = f"{self.chance.randrange(16**12):012x}"
        trial = self.chance.choice((*TRIALS, "t004", "dense", "sweep", "-", "é", "a-a1-e1"))
        attempt = self.chance.choice(("0", "1", "-1", "", "9" * 18, "9" * 40, "٣"))
        return self.chance.choice(
            (
                f"{trial}-a{attempt}-e{self.chance.choice('0129')}-{digest}.parquet",
                f"merged-{self.chance.choice((1, 2, 9**9))}-{self.chance.choice((0, 2, 9**18))}"
                f"-{digest}.parquet",
                f"mine{digest}.parquet",
            )
        )

    def cut(self, table: str) -> None:
        name, content = self.some_file(table)
        self.files[table][name] = content[: self.chance.randrange(len(content))]
        self.harmed[table].add(name)
        self.bad.add((table, name))

    def flip(self, table: str) -> None:
        name, content = self.some_file(table)
        flipped = bytearray(content)
        for _ in range(self.chance.randint(1, 8)):
            flipped[self.chance.randrange(len(flipped))] ^= 1 << self.chance.randrange(8)
        self.files[table][name] = bytes(flipped)
        self.harmed[table].add(name)
        self.bad.discard((table, name))

    def noise(self, table: str) -> None:
        ends = self.chance.choice(
            (b"", b"PAR1", b"\x80\x04cposix\nsystem\n", b"\x93NUMPY", b"PK\3\4")
        )
        content = ends + self.chance.randbytes(self.chance.randrange(300)) + ends
        self._add(table, self.some_name(), content, bad=True)

    def of_another_table(self, table: str) -> None:
        other = self.chance.choice([one for one in TABLES if one != table])
        self._add(table, self.some_name(), self.some_file(other)[1], bad=True)

    def doubled(self, table: str) -> None:
        """The same rows again, in a file of another name, which may be that of a merged one."""
        self._add(table, self.some_name(), self.some_file(table)[1])

    def other_columns(self, table: str) -> None:
        """A file that says it is of the table, whose columns are not the table's."""
        kinds = (
            *(pa.int8(), pa.float64(), pa.string(), pa.binary(), pa.list_(pa.int64()), pa.null()),
            *(pa.struct([("x", pa.int32())]), pa.decimal128(20, 2), pa.timestamp("ns"), pa.bool_()),
            *(pa.dictionary(pa.int8(), pa.string()), pa.map_(pa.string(), pa.string())),
        )
        names = [*rows.plain_schema(table).names, "new", "New", "", "x.y", "é", "at"]
        columns = self.chance.sample(names, self.chance.randint(1, 6))
        if self.chance.random() < 0.1:
            columns.append(columns[0])
        count = self.chance.choice((0, 1, 3))
        fields = [pa.field(name, self.chance.choice(kinds)) for name in columns]
        tells = {"ressa.table": table, "ressa.version": self.chance.choice(("1", "0", "-1", "x"))}
        if self.chance.random() < 0.3:
            tells["ressa.commits"] = json.dumps(["t004-a0-e1-0123456789ab.parquet"] * count)
        schema = pa.schema(fields, metadata=tells)
        made = pa.table([pa.nulls(count, field.type) for field in fields], schema=schema)
        sink = pa.BufferOutputStream()
        try:
            pq.write_table(made, sink)
        except (pa.ArrowException, ValueError):
            return  # no Parquet file has such columns
        self._add(table, self.some_name(), sink.getvalue().to_pybytes())

    def lies(self, table: str) -> None:
        """A merged file that does not hold what it says that it holds."""
        own, other = self.some_file(table)[0], self.some_file(table)[0]
        said = self.chance.choice(
            (
                *([], [own], [own, other], [own, own], ["x"], [""], [None], [1], [[own]], {own: 1}),
                *(own, 7, None, "\ud800", ["\ud800"], ["t000-a٣-e1-0123456789ab.parquet"]),
                *([f"t00{n}-a0-e1-{n:012x}.parquet" for n in range(5, 9)], ["é" * 30]),
                [f"t000-a{9**20}-e1-0123456789ab.parquet"],
            )
        )
        count = self.chance.choice((0, 1, 40))
        stranger = {"sweep": "s", "trial": "t900", "attempt": 0, "epoch": 1}
        text = self.chance.choice((*[json.dumps(said)] * 9, "", "{", "[" * 9999, '["\xff"]'))
        schema = rows.arrow_schema(table)
        schema = schema.with_metadata({**schema.metadata, "ressa.commits": text})
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist([stranger] * count, schema=schema), sink)
        name = merged_name(1, count, f"{self.chance.randrange(16**12):012x}")
        self._add(table, name, sink.getvalue().to_pybytes())

    def claims_much(self, table: str) -> None:
        """A small file of very many rows."""
        schema = rows.arrow_schema(table)
        made = pa.table([pa.nulls(20_000, field.type) for field in schema], schema=schema)
        content = rows.encode_merged(table, made, ["t000-a0-e1-0123456789ab.parquet"])
        self._add(table, self.some_name(), content, bad=True)

    def renamed(self, table: str) -> None:
        """A commit under another name: it counts for what its rows say."""
        name, content = self.some_file(table)
        if not name.startswith("merged-"):
            self.files[table].pop(name, None)
            self.bad.discard((table, name))
            self._add(table, f"mine{self.chance.randrange(99)}.parquet", content)

    def nested_name(self, table: str) -> None:
        name = self.chance.choice(("notes.txt", ".parquet", "x" * 200, "a b.parquet", "ü €", "-"))
        self._add(table, name, self.chance.randbytes(20), bad=True)

    def _add(self, table: str, name: str, content: bytes, *, bad: bool = False) -> None:
        self.files[table][name] = content
        self.bad.discard((table, name))
        if bad:
            self.bad.add((table, name))


def held(table: str, files: dict[str, bytes]) -> set[tuple[str | None, int, int]]:
    """Whose rows lie in sound files."""
    found = set()
    for content in files.values():
        found |= whose(rows.decode(table, content))
    return found


def whose(read: pa.Table) -> set[tuple[str | None, int, int]]:
    return {tuple(row.values()) for row in read.select(["trial", "attempt", "epoch"]).to_pylist()}


@pytest.mark.timeout(300 * SCALE)
@many(100)
@given(seed=st.integers(0, 2**40), deeds=st.integers(1, 5))
def test_a_store_of_anything_is_read_and_named_and_nothing_sound_is_lost(
    tmp_path_factory: pytest.TempPathFactory, sound: Files, seed: int, deeds: int
) -> None:
    planted = Planted(sound, seed)
    for _ in range(deeds):
        planted.one()
    place = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "MAX_ROWS", 10_000)
        sweep = open_store(place, create=True).create_sweep("s", "")
        for table, files in planted.files.items():
            folder = Path(place, sweep.files[table].prefix)
            folder.mkdir()
            for name, content in files.items():
                (folder / name).write_bytes(content)
        check(sweep, planted)
    shutil.rmtree(place)


def check(sweep: SweepStore, planted: Planted) -> None:
    touched = [t for t in TABLES if planted.files[t] != planted.sound[t]] or ["trials"]
    whole = {
        table: {
            name: content
            for name, content in planted.sound[table].items()
            if name not in planted.harmed[table]
        }
        for table in touched
    }
    try:
        for table in touched:
            read = sweep.read(table, all_attempts=True)
            names = [column.name for column in TABLES[table].columns]
            assert read.schema.names[: len(names)] == names
            seen = whose(read)
            wanted = held(table, whole[table])
            if TABLES[table].of_attempts and "trials" in whole:
                wanted &= held("trials", whole["trials"])
            assert wanted <= seen, f"{table} lost {wanted - seen}"
        planted.chance.choice(
            (
                sweep.status,
                lambda: results_table(sweep),
                lambda: query(sweep.store, f"SELECT count(*) FROM {touched[0]}"),
            )
        )()
    except RessaError as error:
        said = str(error)
    else:
        named = {tuple(path.split("/")[-2:]) for path in sweep.skipped}
        assert {one for one in planted.bad if one[0] in touched} <= named
        return
    assert "Upgrade ressa" in said
