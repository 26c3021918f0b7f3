"""`ressa query`: one SELECT statement over the store's tables, and nothing else.

The statement sees Arrow datasets handed to an in-memory DuckDB, which asks them for the columns and
rows that it needs: no file, no network, no extension, no setting can be reached from it.
"""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import count
from typing import TYPE_CHECKING

from ressa.errors import SpecError
from ressa.store import rows as row_files
from ressa.store.scan import Scan, datasets, full_schema, scanned
from ressa.store.schema import TABLES
from ressa.store.store import Store

if TYPE_CHECKING:
    import duckdb
    import numpy as np
    import pandas
    import pyarrow
    from numpy.typing import NDArray

_RUN = r'"(replicate|[^"]*seed)": "?\d+"?'
"""What in a point tells runs of one allocation apart: their number, and any seed."""

JOINED = {
    "trial_scores": """
        SELECT sweep, trial, t.role, t.budget, t.vision_target, t.language_target, t.sparsity,
            s.task, s.split, s.state, s.image, s.metric, s.value, s.standard_error, s.items
        FROM scores s JOIN trials t USING (sweep, trial)""",
    "allocations": rf"""
        SELECT sweep, role, budget, vision_target, language_target,
            nullif(regexp_replace(point, '{_RUN}, |(, )?{_RUN}', '', 'g'), '{{}}') AS point,
            any_value(sparsity) AS sparsity, count(score) AS runs,
            avg(score_pruned) AS pruned, avg(score_repaired) AS repaired, avg(score) AS score,
            stddev_samp(score) AS spread, list(trial ORDER BY trial) AS trials
        FROM trials WHERE state = 'succeeded' GROUP BY ALL""",
}
"""Views made of tables: each score beside its trial's allocation; and each allocation with the
mean and the standard deviation over its runs (`replicates`, and seeds that were searched)."""

_READ = (*TABLES, "attempts")
VIEWS = (*_READ, *JOINED)
"""The tables, over all sweeps; `attempts`, which is `trials` with the attempts that were replaced;
and `JOINED`."""

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
        asked = "\n".join([sql, *(text for view, text in JOINED.items() if _names(sql, view))])
        mentioned = [view for view in _READ if _names(asked, view)]
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


def matching(frame: "pandas.DataFrame", where: str) -> "NDArray[np.int64]":
    """Returns the places of a frame's rows for which an SQL expression is true, in order.

    The expression sees the frame's columns and, like `query`, nothing else.

    Raises:
        SpecError: it is not one expression, or DuckDB refuses it; the message says why.
    """
    import duckdb
    import numpy as np
    import pyarrow as pa

    place = "place of the row"
    plain = frame.copy(deep=False)
    plain.attrs = {}  # not a table's business
    rows = pa.Table.from_pandas(plain, preserve_index=False)
    rows = rows.append_column(place, pa.array(np.arange(len(frame))))
    try:
        with duckdb.connect(":memory:", config=_CLOSED) as connection:
            connection.register("results", rows)
            connection.execute("SET lock_configuration = true")
            found = connection.table("results").filter(duckdb.SQLExpression(where))
            places = found.project(f'"{place}"').fetchnumpy()[place]
    except duckdb.Error as error:
        raise _refused(error, "--where") from error
    return np.sort(np.asarray(places, dtype=np.int64))


def parquet_bytes(frame: "pandas.DataFrame") -> bytes:
    """Writes any frame as one Parquet file; columns that Parquet has no type for become text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {}
    for at, name in enumerate(frame.columns):
        values = frame.iloc[:, at]
        try:
            column = pa.array(values, from_pandas=True)
            pq.write_table(pa.table({str(name): column.slice(0, 0)}), pa.BufferOutputStream())
            columns[str(name)] = column
        except pa.ArrowException:
            texts = [None if row_files.is_null(value) else str(value) for value in values]
            columns[str(name)] = pa.array(texts, pa.string())
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, compression="zstd")
    return bytes(sink.getvalue().to_pybytes())


def _ask(sql: str, scans: Sequence[tuple[str, Scan]]) -> "pyarrow.Table":
    import duckdb
    from pyarrow.dataset import dataset

    with duckdb.connect(":memory:", config=_CLOSED) as connection:
        for view in _READ:
            of_view = [scan for name, scan in scans if name == view]
            schema = full_schema(_table(view), [scan.schema for scan in of_view])
            connection.register(view, dataset(datasets(schema, of_view)))
        for view, text in JOINED.items():
            connection.execute(f"CREATE TEMP VIEW {view} AS {text}")
        connection.execute("SET lock_configuration = true")
        refused = (duckdb.ParserException, duckdb.BinderException, duckdb.CatalogException)
        try:
            return _interruptible(connection, sql)
        except refused as error:  # whatever the files hold
            raise _refused(error) from error


def _names(sql: str, view: str) -> bool:
    return re.search(rf"\b{view}\b", sql, re.IGNORECASE) is not None


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
            while not running.done():  # once may be too early: a statement forgets it as it begins
                connection.interrupt()
                wait([running], timeout=0.1)
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


def _refused(error: Exception, what: str = "query") -> SpecError:
    """Returns DuckDB's message, its hint and its marked line included."""
    message = re.sub(r"\n{2,}", "\n", str(error).strip())
    return SpecError(f"{what}: {message}")
