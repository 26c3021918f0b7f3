"""The store: what happened, as immutable Parquet files, and the only truth about it.

Two kinds of thing lie in it: `sweeps/<name>/` holds a sweep's spec and rows, `stages/` holds work
that trials share. This package is the only home of pyarrow, obstore and duckdb; pyarrow, duckdb and
pandas are imported when rows are first read or written.
"""

from ressa.store.lease import Holder, Lease, Wish, acquire, ask, holder
from ressa.store.logs import LogName, get_log, logs_of, put_log
from ressa.store.query import matching, parquet_bytes, query
from ressa.store.rows import is_null
from ressa.store.schema import (
    ENDED_WELL,
    PACKAGES,
    SCHEMA_VERSION,
    SUCCESSFUL,
    TABLES,
    Column,
    Table,
)
from ressa.store.stages import StageFiles, StageStore, StoredStage
from ressa.store.status import Ended, SweepStatus
from ressa.store.store import Store, SweepStore, open_store

__all__ = [
    "ENDED_WELL",
    "PACKAGES",
    "SCHEMA_VERSION",
    "SUCCESSFUL",
    "TABLES",
    "Column",
    "Ended",
    "Holder",
    "Lease",
    "LogName",
    "StageFiles",
    "StageStore",
    "Store",
    "StoredStage",
    "SweepStatus",
    "SweepStore",
    "Table",
    "Wish",
    "acquire",
    "ask",
    "get_log",
    "holder",
    "is_null",
    "logs_of",
    "matching",
    "open_store",
    "parquet_bytes",
    "put_log",
    "query",
]
