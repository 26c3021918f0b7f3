"""`ressa query`: one SELECT statement over the store's tables, and nothing else.

The statement sees Arrow datasets handed to an in-memory DuckDB, which asks them for the columns and
rows that it needs: no file, no network, no extension, no setting can be reached from it.
"""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import TYPE_CHECKING

from ressa.errors import SpecError
from ressa.store import rows as row_files
from ressa.store.scan import Scan, datasets, full_schema, scanned
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

    try:
        with duckdb.connect(":memory:", config=_CLOSED) as connection:
            _check_one_select(connection, sql)
        # A view that the statement does not mention is there, for its columns, but not read.
        mentioned = [view for view in VIEWS if re.search(rf"\b{view}\b", sql, re.IGNORECASE)]
        sweeps = [store.sweep(name) for name in store.sweeps()] if mentioned else []
        wanted = [(view, sweep) for view in mentioned for sweep in sweeps]
        found = scanned(
            lambda: [
                sweep.scan(_table(view), all_attempts=view == "attempts") for view, sweep in wanted
            ],
            lambda scans: _ask(sql, list(zip((view for view, _ in wanted), scans, strict=True))),
        )
    except duckdb.Error as error:
        raise _refused(error) from error
    return row_files.to_pandas(_plain_numbers(found.rename_columns(_distinct(found))))


def _ask(sql: str, scans: Sequence[tuple[str, Scan]]) -> "pyarrow.Table":
    import duckdb
    from pyarrow.dataset import dataset

    with duckdb.connect(":memory:", config=_CLOSED) as connection:
        for view in VIEWS:
            of_view = [scan for name, scan in scans if name == view]
            schema = full_schema(_table(view), [scan.schema for scan in of_view])
            connection.register(view, dataset(datasets(schema, of_view)))
        connection.execute("SET lock_configuration = true")
        refused = (duckdb.ParserException, duckdb.BinderException, duckdb.CatalogException)
        try:
            return _interruptible(connection, sql)
        except refused as error:  # whatever the files hold
            raise _refused(error) from error


def _table(view: str) -> str:
    return "trials" if view == "attempts" else view


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


def _refused(error: Exception) -> SpecError:
    """Returns DuckDB's message, its hint and its marked line included."""
    message = re.sub(r"\n{2,}", "\n", str(error).strip())
    return SpecError(f"query: {message}")
