"""What two runs of one sweep must have in common: every table, but for how it came about."""

from pathlib import Path
from typing import TYPE_CHECKING

from ressa.store import SweepStore, holder

if TYPE_CHECKING:
    import pandas

_HOW = {
    "attempt",
    "epoch",
    "committed",
    "host",
    "cpu",
    "gpu",
    "started",
    "finished",
    "seconds",
    "cpu_seconds",
    "examples_per_second",
    "peak_memory_gib",
    "reason",
    "tries",
    "stages_computed",
    "stages_reused",
}
"""Columns that tell how a row came about, not what was found."""

_KEYS = {
    "trials": ["trial"],
    "scores": ["trial", "task", "split", "state", "image", "metric"],
    "curves": ["trial", "step"],
    "layers": ["trial", "name"],
    "answers": ["trial", "task", "split", "state", "image", "example_id"],
    "data": ["purpose", "task", "split"],
}


def differences(one: SweepStore, other: SweepStore) -> list[str]:
    """Says in which tables and columns two sweeps differ; none if they found the same."""
    found = []
    for table, key in _KEYS.items():
        found += _differences(table, _rows(one, table, key), _rows(other, table, key))
    return found + _differences("proposals", _proposals(one), _proposals(other))


def _rows(sweep: SweepStore, table: str, key: list[str]) -> "pandas.DataFrame":
    frame = sweep.read(table).to_pandas().sort_values(key).reset_index(drop=True)
    return _found(frame)


def _proposals(sweep: SweepStore) -> "pandas.DataFrame":
    """The first attempt's row of each trial: what the search knew when it proposed it."""
    frame = sweep.proposals().sort_values(["trial", "attempt", "epoch"]).drop_duplicates("trial")
    return _found(frame.reset_index(drop=True))


def _found(frame: "pandas.DataFrame") -> "pandas.DataFrame":
    how = [name for name in frame.columns if name in _HOW or name.endswith("_seconds")]
    found = frame.drop(columns=how).astype(object)
    return found.where(found.notna(), "null").astype(str)


def _differences(table: str, one: "pandas.DataFrame", other: "pandas.DataFrame") -> list[str]:
    if len(one) != len(other):
        return [f"{table}: {len(one)} rows instead of {len(other)}"]
    return [
        f"{table}.{column}: {one[column][row]} instead of {other[column][row]} in row {row}"
        for column in other.columns
        for row in range(len(other))
        if one[column][row] != other[column][row]
    ][:5]


def left_behind(sweep: SweepStore, temporary: Path) -> list[str]:
    """Names what should be gone once a sweep has ended: temporary files, folders, a held lease.

    Args:
        temporary: the folder that its drivers had for temporary files, and nobody else.
    """
    left = [str(path) for path in temporary.iterdir()]
    store = sweep.store.folder
    assert store is not None
    staged = [path for path in store.rglob("*#*") if path.is_file()]
    probes = list(store.glob(".probe-*"))
    checkpoints = list(store.glob("stages/repair-checkpoint/*"))
    left += [str(path.relative_to(store)) for path in (*staged, *probes, *checkpoints)]
    last = holder(sweep)
    if last is None or last.state != "released":
        left.append(f"the lease: {last}")
    return left
