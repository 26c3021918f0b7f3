"""`ressa query`: one SELECT statement over the store's tables, and nothing else.

The statement sees Arrow tables handed to an in-memory DuckDB: no file, no network, no extension, no
setting can be reached from it.
"""

import re
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import TYPE_CHECKING

from ressa.errors import SpecError
from ressa.store import rows as row_files
from ressa.store.schema import TABLES
from ressa.store.store import Store

if TYPE_CHECKING:
    import duckdb
    import pandas
    import pyarrow

VIEWS = (*TABLES, "attempts")
"""The tables, over all sweeps; `attempts` is `trials` with the attempts that were replaced."""

_CLOSED: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": False,
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "allow_community_extensions": False,
    "python_enable_replacements": False,
    "temp_directory": "",
    "threads": 2,
}


def query(store: Store, sql: str) -> "pandas.DataFrame":
    """Runs one SELECT statement over all sweeps of a store.

    Args:
        store: whose rows.
        sql: DuckDB's SQL; views are `VIEWS`, each with the columns of its table.

    Raises:
        SpecError: not exactly one SELECT statement, or DuckDB refuses it; the message says why.
    """
    import duckdb

    connection = duckdb.connect(":memory:", config=_CLOSED)
    try:
        _check_one_select(connection, sql)
        for view in VIEWS:
            # A view that the statement does not mention is there, for its columns, but not read.
            mentioned = re.search(rf"\b{view}\b", sql, re.IGNORECASE) is not None
            connection.register(view, _rows(store, view, store.sweeps() if mentioned else []))
        connection.execute("SET lock_configuration = true")
        found = _interruptible(connection, sql)
        return row_files.to_pandas(_plain_numbers(found.rename_columns(_distinct(found))))
    except duckdb.Error as error:
        raise SpecError(f"query: {_in_words(error)}") from error
    finally:
        connection.close()


def _check_one_select(connection: "duckdb.DuckDBPyConnection", sql: str) -> None:
    import duckdb

    statements = connection.extract_statements(sql)
    if len(statements) != 1:
        raise SpecError(f"query: exactly one SELECT statement, got {len(statements)} statements.")
    if statements[0].type != duckdb.StatementType.SELECT:
        kind = statements[0].type.name
        raise SpecError(f"query: exactly one SELECT statement, got {kind}. The store is read only.")


def _interruptible(connection: "duckdb.DuckDBPyConnection", sql: str) -> "pyarrow.Table":
    """Runs a statement in a thread: DuckDB may compute for minutes before it looks for Ctrl-C."""
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(lambda: connection.sql(sql).to_arrow_table())
        try:
            return running.result()
        except KeyboardInterrupt:
            connection.interrupt()
            raise


def _rows(store: Store, view: str, sweeps: list[str]) -> "pyarrow.Table":
    attempts = view == "attempts"
    table = "trials" if attempts else view
    found = [store.sweep(name).read(table, all_attempts=attempts) for name in sweeps]
    return row_files.joined(table, found)


def _distinct(table: "pyarrow.Table") -> list[str]:
    """Returns the columns' names, later ones of the same name numbered: score, score_1."""
    names: list[str] = []
    for name in table.column_names:
        numbered = (f"{name}_{at}" for at in count(1))
        names.append(name if name not in names else next(n for n in numbered if n not in names))
    return names


def _plain_numbers(table: "pyarrow.Table") -> "pyarrow.Table":
    """Returns decimals, which DuckDB's sums of whole numbers are, as whole numbers or floats."""
    import pyarrow as pa

    for at, column in enumerate(table.schema):
        if pa.types.is_decimal(column.type):
            plain = pa.int64() if column.type.scale == 0 else pa.float64()
            try:
                cast = table.column(at).cast(plain)
            except pa.ArrowInvalid:  # beyond 64 bits
                cast = table.column(at).cast(pa.float64())
            table = table.set_column(at, column.name, cast)
    return table


def _in_words(error: Exception) -> str:
    """Returns DuckDB's message, its hint and its marked line included."""
    return re.sub(r"\n{2,}", "\n", str(error).strip())
