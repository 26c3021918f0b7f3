"""The rows of a table that count, as an Arrow dataset that is read when it is asked something."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from operator import and_
from typing import TYPE_CHECKING, Any, TypeVar

from ressa.errors import RessaError, StoreError
from ressa.store import rows as row_files
from ressa.store.parts import Part, TableFiles, attempt_of, finished, once, parquet
from ressa.store.schema import TABLES, plain_schema

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.dataset

T = TypeVar("T")

_TRIES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """Rows of one sweep's table. Files may be merged away while it is used: see `scanned`."""

    schema: "pyarrow.Schema"
    files: TableFiles
    unread: tuple[Part, ...]
    """Parts that count as they are, to be read when something is asked."""
    in_memory: "pyarrow.Table"
    in_order: bool
    """Whether the rows of the unread parts, then those in memory, come by trial and attempt."""

    def table(
        self, columns: Sequence[str] | None = None, where: Mapping[str, Any] | None = None
    ) -> "pyarrow.Table":
        """Reads columns of the rows in which others have given values; by trial and attempt."""
        import pyarrow as pa
        import pyarrow.dataset as ds

        conditions = (ds.field(column) == value for column, value in (where or {}).items())
        condition = reduce(and_, conditions) if where else None
        wanted = list(columns or self.schema.names)
        order = ["trial", "attempt", "epoch"]
        read = list(dict.fromkeys([*wanted, *([] if self.in_order else order)]))
        # One after the other: a union of datasets keeps no order.
        found = pa.concat_tables(
            one.to_table(read, filter=condition) for one in datasets(self.schema, [self])
        )
        if not self.in_order:
            found = found.sort_by([(key, "ascending") for key in order])
        return found.select(wanted).combine_chunks()

    def changed(self) -> bool:
        """Returns whether one of its files is gone or turned out to be damaged."""
        return self.files.changed(self.unread)


def datasets(schema: "pyarrow.Schema", scans: Sequence[Scan]) -> "list[pyarrow.dataset.Dataset]":
    """Returns the rows of scans, in the given columns: those in files, if any, and in memory."""
    import pyarrow.dataset as ds

    in_memory = ds.dataset(joined(schema, [scan.in_memory for scan in scans]))
    fragments = [scan.files.fragment(part) for scan in scans for part in scan.unread]
    if not fragments:
        return [in_memory]
    return [ds.FileSystemDataset(fragments, schema, parquet()), in_memory]


def scanned(make: Callable[[], Sequence[Scan]], work: Callable[[Sequence[Scan]], T]) -> T:
    """Works on scans; on new ones if files were merged away, or turned out damaged, meanwhile."""
    for _ in range(_TRIES):
        scans: Sequence[Scan] = ()
        try:
            scans = make()
            return work(scans)
        except FileNotFoundError:
            continue
        except RessaError:
            raise
        except Exception:
            if not any(scan.changed() for scan in scans):
                raise
    raise StoreError("the store's files change faster than they can be read. Try again.")


def scan(table: str, files: TableFiles, trials: TableFiles, *, all_attempts: bool = False) -> Scan:
    """Finds the rows of a table that count.

    Args:
        table: its name.
        files: its files.
        trials: those of the table `trials`, which says which attempts are finished.
        all_attempts: also those of finished attempts that a newer one of their trial replaced.

    Raises:
        FileNotFoundError: a file was merged away or turned out damaged meanwhile: try again.
    """
    layout = TABLES[table]
    if not layout.of_attempts:
        # Few rows; what tells two of them apart is in them alone.
        chosen, _ = once(files.parts())
        schema = full_schema(table, [part.schema for part in chosen])
        found = joined(schema, [files.read(part) for part in chosen])
        return _put_together(files, schema, [], row_files.newest(found, layout.key), chosen)

    # First: of an attempt that is finished now, all other rows are there when they are listed.
    trial_parts = trials.parts()
    counted = finished(trial_parts, all_attempts=all_attempts)
    chosen, doubled = once(trial_parts if table == "trials" else files.parts())
    attempts = {part.name: [attempt_of(commit) for commit in part.commits] for part in chosen}
    times = Counter(name for part in chosen for name in attempts[part.name] if name in counted)
    clean, mixed = [], []
    for part in chosen:
        known = [times[name] for name in attempts[part.name]]
        if part.is_ours and doubled.isdisjoint(part.commits) and all(n == 1 for n in known):
            clean.append(part)
        elif any(known):
            mixed.append(part)
    schema = full_schema(table, [part.schema for part in (*clean, *mixed)])
    found = joined(schema, [files.read(part) for part in mixed])
    once_per_attempt = tuple(dict.fromkeys((*layout.key, "trial", "attempt")))
    patched = row_files.newest(row_files.of_attempts(found, sorted(counted)), once_per_attempt)
    return _put_together(files, schema, clean, patched, mixed)


def _put_together(
    files: TableFiles,
    schema: "pyarrow.Schema",
    clean: Sequence[Part],
    patched: "pyarrow.Table",
    mixed: Sequence[Part],
) -> Scan:
    """Unites the parts that count as they are, and the rows taken out of the others."""
    unread = [part for part in clean if part.rows is None]
    held = [part for part in clean if part.rows is not None]
    in_memory = joined(schema, [*(part.rows for part in held if part.rows is not None), patched])
    sequence = [attempt_of(commit) for part in (*unread, *held, *mixed) for commit in part.commits]
    return Scan(
        schema=schema,
        files=files,
        unread=tuple(unread),
        in_memory=in_memory,
        in_order=all(one <= other for one, other in pairwise(sequence)),
    )


def full_schema(table: str, schemas: Iterable["pyarrow.Schema"]) -> "pyarrow.Schema":
    """Returns the table's columns, then those that a later ressa wrote."""
    import pyarrow as pa

    known = plain_schema(table)
    later: dict[str, set[Any]] = {}
    for schema in schemas:
        for field in schema:
            if field.name not in known.names:
                later.setdefault(field.name, set()).add(field.type)
    # Of two types neither is right.
    agreed = [(name, *types) for name, types in sorted(later.items()) if len(types) == 1]
    return pa.schema([*known, *agreed])


def joined(schema: "pyarrow.Schema", tables: Sequence["pyarrow.Table"]) -> "pyarrow.Table":
    """Returns the tables one after the other; a column that only some have is null elsewhere."""
    import pyarrow as pa

    def conform(rows: "pyarrow.Table") -> "pyarrow.Table":
        if rows.schema.equals(schema):
            return rows
        columns = [
            rows[field.name].cast(field.type)
            if field.name in rows.column_names
            else pa.nulls(rows.num_rows, field.type)
            for field in schema
        ]
        return pa.table(columns, schema=schema)

    return pa.concat_tables([schema.empty_table(), *map(conform, tables)]).combine_chunks()
