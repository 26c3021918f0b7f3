"""The rows of a table that count, as an Arrow dataset that is read when it is asked something."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import and_
from typing import TYPE_CHECKING, Any, TypeVar

from ressa.errors import RessaError, StoreError
from ressa.store import rows as row_files
from ressa.store.parts import (
    Part,
    TableFiles,
    end_to_end,
    known_by,
    numbered,
    of_each,
    once,
    parquet,
)
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
        self,
        columns: Sequence[str] | None = None,
        where: Mapping[str, Any] | None = None,
        *,
        in_order: bool = True,
    ) -> "pyarrow.Table":
        """Reads columns of the rows in which others have given values; by trial and attempt."""
        import pyarrow as pa
        import pyarrow.dataset as ds

        conditions = (ds.field(column) == value for column, value in (where or {}).items())
        condition = reduce(and_, conditions) if where else None
        wanted = list(columns or self.schema.names)
        order = ["trial", "attempt", "epoch"]
        to_sort = in_order and not self.in_order
        read = list(dict.fromkeys([*wanted, *(order if to_sort else [])]))
        # One after the other: a union of datasets keeps no order.
        found = pa.concat_tables(
            one.to_table(read, filter=condition) for one in datasets(self.schema, [self])
        )
        if to_sort:
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
    if layout.of_attempts:
        # First: of an attempt that is finished now, all other rows are there when they are listed.
        trial_parts, counted = trials.finished(all_attempts=all_attempts)
        parts = trial_parts if table == "trials" else files.parts()
        key = tuple(dict.fromkeys((*layout.key, "trial", "attempt")))
    else:
        counted, parts, key = None, files.parts(), layout.key
    chosen, sharing = once(parts)
    files.prove(chosen, [part for part in parts if part not in chosen])
    clean, mixed = _apart(chosen, sharing, counted, key)
    schema = full_schema(table, [part.schema for part in (*clean, *mixed)])
    found = joined(schema, [files.read(part) for part in mixed])
    if counted is not None and mixed:
        found = row_files.of_attempts(found, counted)
    return _put_together(files, schema, clean, row_files.newest(found, key), mixed)


def _apart(
    chosen: Sequence[Part],
    sharing: set[str],
    counted: "pyarrow.StringArray | None",
    key: Sequence[str],
) -> tuple[list[Part], list[Part]]:
    """Returns the parts of which all rows count, and those of which some may.

    Args:
        chosen: of one table, without what others hold.
        sharing: names of those that hold commits which another holds too.
        counted: attempts whose rows count; None: any row may.
        key: tells two rows that count apart.
    """
    import numpy as np
    import pyarrow.compute as pc

    names = end_to_end(part.attempts for part in chosen)
    if counted is None:
        # Two rows that are one by their key lie in commits of one name, as far as the key knows it.
        names, counts = known_by(names, key), np.ones(len(names), bool)
    else:
        counts = pc.is_in(names, value_set=counted).to_numpy(zero_copy_only=False)
    numbers, count = numbered(names)
    times = np.bincount(numbers[counts], minlength=count)[numbers] * counts
    clean, mixed = [], []
    for part, known in of_each(chosen, times):
        if part.is_ours and part.name not in sharing and (known == 1).all():
            clean.append(part)
        elif known.any():
            mixed.append(part)
    return clean, mixed


def _put_together(
    files: TableFiles,
    schema: "pyarrow.Schema",
    clean: Sequence[Part],
    patched: "pyarrow.Table",
    mixed: Sequence[Part],
) -> Scan:
    """Unites the parts that count as they are, and the rows taken out of the others."""
    import pyarrow.compute as pc

    unread = [part for part in clean if part.rows is None]
    held = [part for part in clean if part.rows is not None]
    in_memory = joined(schema, [*(part.rows for part in held if part.rows is not None), patched])
    names = end_to_end(part.attempts for part in (*unread, *held, *mixed))
    rising = pc.all(pc.less_equal(names[:-1], names[1:]), min_count=0)
    return Scan(
        schema=schema,
        files=files,
        unread=tuple(unread),
        in_memory=in_memory,
        in_order=rising.as_py(),
    )


def full_schema(table: str, schemas: Iterable["pyarrow.Schema"]) -> "pyarrow.Schema":
    """Returns the table's columns, then those that a later ressa wrote."""
    import pyarrow as pa

    known = plain_schema(table)
    names = set(known.names)
    later: dict[str, set[Any]] = {}
    for schema in schemas:
        for name in set(schema.names) - names:
            later.setdefault(name, set()).add(schema.field(name).type)
    # Of two types neither is right.
    agreed = [(name, *types) for name, types in sorted(later.items()) if len(types) == 1]
    return pa.schema([*known, *agreed])


def joined(schema: "pyarrow.Schema", tables: Iterable["pyarrow.Table"]) -> "pyarrow.Table":
    """Returns the tables one after the other; a column that only some have is null elsewhere."""
    import pyarrow as pa

    conformed = (row_files.conformed(rows, schema) for rows in tables)
    return pa.concat_tables([schema.empty_table(), *conformed]).combine_chunks()
