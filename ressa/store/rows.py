"""Rows of a table as Parquet bytes and back; which rows count when an attempt was made twice."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, BinaryIO

from ressa.errors import StoreError, did_you_mean, first_line
from ressa.store.schema import SCHEMA_VERSION, TABLES, Column, arrow_schema, plain_schema

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

MAX_ROWS, MAX_BYTES = 16_000_000, 4 * 1024**3
"""Of one file. Ours are far smaller; a small file that claims more would fill the memory."""

_NEWEST_LAST = [("attempt", "ascending"), ("epoch", "ascending"), ("committed", "ascending")]
_COMMITS = "ressa.commits"
_LARGE = 1024**2
"""Bytes of a file that several threads decode."""


class NotOurs(Exception):
    """A file in a table's folder that holds no rows of that table; the message says why."""


def encode(
    name: str, rows: Sequence[Mapping[str, Any]], identity: Mapping[str, Any]
) -> tuple[bytes, str]:
    """Returns the rows as one Parquet file, and a digest of their values.

    Args:
        name: the table.
        rows: column → value; what is left out is null. Values are brought to the column's type:
            NaN becomes null, a json column takes any JSON value, a text column anything printable.
        identity: sweep, trial, attempt and epoch, the same for every row.

    Raises:
        ValueError: a column that the table does not have, or a value that does not fit its column.
    """
    import pyarrow as pa

    columns = {column.name: column for column in TABLES[name].columns}
    full = []
    for row in rows:
        for unknown in row.keys() - columns.keys():
            raise ValueError(
                f"table {name} has no column {unknown!r}.{did_you_mean(unknown, columns)}"
            )
        full.append({key: _fit(name, columns[key], value) for key, value in row.items()})
    full = [row | dict(identity) for row in full]
    text = json.dumps(full, sort_keys=True, default=str)
    committed = {"committed": datetime.now(UTC)}
    table = pa.Table.from_pylist([row | committed for row in full], schema=arrow_schema(name))
    return _write(table), hashlib.sha256(text.encode()).hexdigest()


def encode_merged(name: str, table: "pyarrow.Table", commits: Sequence[str]) -> bytes:
    """Returns the rows of several commits as one Parquet file that says which they were."""
    schema = arrow_schema(name)
    fields = [table.schema.field(column) for column in table.column_names[len(schema) :]]
    for field in fields:  # those of a later ressa
        schema = schema.append(field)
    return _write(table.cast(schema), {_COMMITS: json.dumps(list(commits))})


def _write(table: "pyarrow.Table", metadata: Mapping[str, str] | None = None) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink, table.schema, compression="zstd", write_page_checksum=True
    ) as writer:
        # Small enough that what a reader asks of a few trials is found without reading the rest.
        writer.write_table(table, row_group_size=131_072)
        writer.add_key_value_metadata(dict(metadata or {}))
    return bytes(sink.getvalue().to_pybytes())


def _fit(table: str, column: Column, value: Any) -> Any:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    try:
        match column.kind:
            case "text":
                return str(value)
            case "texts":
                return [str(item) for item in value]
            case "float":
                number = float(value)  # also of Fraction, Decimal and numpy's
                return None if math.isnan(number) else number
            case "integer":
                if int(value) != value:
                    raise ValueError("not a whole number")
                return int(value)
            case "boolean":
                return bool(value)
            case "json":
                return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
            case "time":
                return value
    except (TypeError, ValueError) as error:
        raise ValueError(f"{table}.{column.name} ({column.kind}): {value!r}: {error}") from error


def decode(name: str, content: bytes) -> "pyarrow.Table":
    """Returns one file's rows with the table's columns first and in order, later ones after.

    Raises:
        NotOurs: the file is damaged, or is not of this table.
        StoreError: a newer ressa wrote it, and a column may mean something else.
    """
    import pyarrow as pa

    file, _ = _opened(name, pa.BufferReader(content))
    try:
        # Small, and many are read: threads would cost more than they bring.
        table = file.read(use_threads=len(content) > _LARGE)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(error) from error
    try:
        rows = conformed(table, plain_schema(name))
    except pa.ArrowException as error:
        raise NotOurs(f"a column has another type: {error}") from error
    known = set(rows.column_names)
    for column in (name for name in table.column_names if name not in known):
        rows = rows.append_column(column, table[column])
    return rows


def conformed(table: "pyarrow.Table", schema: "pyarrow.Schema") -> "pyarrow.Table":
    """Returns a table in the columns of a schema; one that it lacks is null.

    Raises:
        pyarrow.ArrowException: a column has another type, and values that do not fit.
    """
    import pyarrow as pa

    if table.schema.equals(schema):
        return table.replace_schema_metadata()
    own = dict(zip(table.column_names, table.columns, strict=True))
    columns = []
    for field in schema:
        column = own.get(field.name)
        if column is None:
            column = pa.nulls(table.num_rows, field.type)
        columns.append(column if column.type == field.type else column.cast(field.type))
    return pa.table(columns, schema=schema)


def peek(name: str, file: "BinaryIO") -> "tuple[pyarrow.StringArray, int, pyarrow.Schema]":
    """Returns which commits a merged file holds, how many rows and which columns, reading none.

    Raises:
        NotOurs, StoreError: as `decode`.
    """
    import pyarrow as pa

    found, schema = _opened(name, pa.PythonFile(file, mode="r"))
    try:
        said = json.loads(found.metadata.metadata[_COMMITS.encode()])
        commits = pa.array(said, pa.string())
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise NotOurs("it does not say which commits it holds") from error
    if not isinstance(said, list) or commits.null_count or not said:
        raise NotOurs("it does not say which commits it holds")
    schema, types = schema.remove_metadata(), plain_schema(name)
    if not schema.equals(types):
        own = dict(zip(schema.names, schema.types, strict=True))
        for field in types:
            if own.get(field.name, field.type) != field.type:
                raise NotOurs(f"a column has another type: {field.name}")
    return commits, found.metadata.num_rows, schema


def _opened(name: str, source: Any) -> "tuple[pyarrow.parquet.ParquetFile, pyarrow.Schema]":
    """Opens a file, and makes sure that it is of this table and that its rows may be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(source, page_checksum_verification=True)
        schema = file.schema_arrow
        metadata = schema.metadata or {}
        version = int(metadata.get(b"ressa.version", b"1"))
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _damaged(error) from error
    if metadata.get(b"ressa.table", b"").decode(errors="replace") != name:
        raise NotOurs(f"it holds no rows of the table {name}")
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"table {name}: rows of schema version {version}; this ressa reads up to "
            f"{SCHEMA_VERSION}. Upgrade ressa."
        )
    if len(set(schema.names)) < len(schema.names):
        raise NotOurs("two of its columns have one name")
    groups = (file.metadata.row_group(at) for at in range(file.metadata.num_row_groups))
    if file.metadata.num_rows > MAX_ROWS or sum(g.total_byte_size for g in groups) > MAX_BYTES:
        raise NotOurs(f"it claims {file.metadata.num_rows:,} rows: more than a file may hold")
    return file, schema


def _damaged(error: Exception) -> NotOurs:
    return NotOurs(f"not a whole Parquet file: {first_line(error)}")


def newest(table: "pyarrow.Table", key: Sequence[str]) -> "pyarrow.Table":
    """Returns, of rows with equal key, that of the newest attempt, epoch and commit; in order."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    if table.num_rows == 0:
        return table
    order = pc.sort_indices(table, sort_keys=_NEWEST_LAST)
    keyed = table.select(list(key)).take(order).append_column("at", pa.array(range(len(order))))
    last = keyed.group_by(list(key)).aggregate([("at", "max")])["at_max"]
    return table.take(pa.array(np.sort(order.take(last).to_numpy())))


def of_attempts(table: "pyarrow.Table", attempts: "pyarrow.StringArray") -> "pyarrow.Table":
    """Returns the rows of some attempts, named as `attempt_names` does."""
    import pyarrow.compute as pc

    return table.filter(pc.is_in(attempt_names(table), value_set=attempts))


def attempt_names(table: "pyarrow.Table") -> Any:
    """Returns each row's trial, attempt and epoch in the form of `parts.attempt_name`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    trial, attempt, epoch = (table[c].cast(pa.string()) for c in ("trial", "attempt", "epoch"))
    parts = [pc.fill_null(trial, "sweep"), "-a", attempt, "-e", epoch, ""]
    return pc.binary_join_element_wise(*parts, null_handling="replace").combine_chunks()


def is_null(value: object) -> bool:
    """Whether a value of a table's row is null, of which pandas has several kinds."""
    import pandas as pd

    return value is None or (pd.api.types.is_scalar(value) and bool(pd.isna(value)))


def to_pandas(table: "pyarrow.Table") -> Any:
    """Returns a pandas frame in which whole numbers with gaps stay whole (Int64, boolean)."""
    import pandas as pd
    import pyarrow as pa

    nullable = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}
    return table.to_pandas(types_mapper=nullable.get)
