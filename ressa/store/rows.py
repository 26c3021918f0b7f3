"""Rows of a table as Parquet bytes and back; which rows count when an attempt was made twice."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ressa.errors import StoreError, did_you_mean
from ressa.store.schema import SCHEMA_VERSION, TABLES, Column, arrow_schema

if TYPE_CHECKING:
    import pyarrow

_NEWEST_LAST = [("attempt", "ascending"), ("epoch", "ascending"), ("committed", "ascending")]


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
    import pyarrow.parquet as pq

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
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes(), hashlib.sha256(text.encode()).hexdigest()


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
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(content))
    except (pa.ArrowException, OSError) as error:
        raise NotOurs(f"not a whole Parquet file: {str(error).splitlines()[0]}") from error
    metadata = table.schema.metadata or {}
    written_as = metadata.get(b"ressa.table", b"?").decode(errors="replace")
    if written_as != name:
        raise NotOurs(f"it holds no rows of the table {name}")
    version = int(metadata.get(b"ressa.version", b"1"))
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"table {name}: rows of schema version {version}; this ressa reads up to "
            f"{SCHEMA_VERSION}. Upgrade ressa."
        )
    schema = arrow_schema(name)
    try:
        known = [
            table[field.name].cast(field.type)
            if field.name in table.column_names
            else pa.nulls(table.num_rows, field.type)
            for field in schema
        ]
    except pa.ArrowException as error:
        raise NotOurs(f"a column has another type: {error}") from error
    later = [column for column in table.column_names if column not in schema.names]
    return pa.table(
        dict(zip(schema.names, known, strict=True)) | {column: table[column] for column in later}
    )


def joined(name: str, tables: Sequence["pyarrow.Table"]) -> "pyarrow.Table":
    """Returns the tables one after the other; a column that only some have is null elsewhere."""
    import pyarrow as pa

    empty = arrow_schema(name).remove_metadata().empty_table()
    return pa.concat_tables([empty, *tables], promote_options="permissive").combine_chunks()


def newest(table: "pyarrow.Table", key: Sequence[str]) -> "pyarrow.Table":
    """Returns, of rows with equal key, that of the newest attempt, epoch and commit; in order."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if table.num_rows == 0:
        return table
    order = pc.sort_indices(table, sort_keys=_NEWEST_LAST)
    keyed = table.select(list(key)).take(order).append_column("at", pa.array(range(len(order))))
    last = keyed.group_by(list(key)).aggregate([("at", "max")])["at_max"]
    return table.take(pa.array(sorted(order.take(last).to_pylist())))


def of_attempts(table: "pyarrow.Table", trials: "pyarrow.Table") -> "pyarrow.Table":
    """Returns the rows whose (trial, attempt, epoch) is one of `trials`."""
    import pyarrow.compute as pc

    return table.filter(pc.is_in(_attempt_names(table), value_set=_attempt_names(trials)))


def _attempt_names(table: "pyarrow.Table") -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    parts = [table[c].cast(pa.string()) for c in ("trial", "attempt", "epoch")]
    names = pc.binary_join_element_wise(*parts, "/", null_handling="replace", null_replacement="")
    return names.combine_chunks()


def to_pandas(table: "pyarrow.Table") -> Any:
    """Returns a pandas frame in which whole numbers with gaps stay whole (Int64, boolean)."""
    import pandas as pd
    import pyarrow as pa

    nullable = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}
    return table.to_pandas(types_mapper=nullable.get)
