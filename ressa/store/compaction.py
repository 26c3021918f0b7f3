"""Merging small files into larger ones, as a driver commits: a log-structured merge.

Every `FAN_IN` commits to a table become one file, and every `FAN_IN` of those become one again, up
to `LARGEST_ROWS` rows: a row is written a handful of times however long a sweep is, and a reader
meets some dozens of files. A merge may be killed at any moment, or made by two drivers at once: the
merged file says which commits it holds, appears whole, and outlives a power cut and was read back
before an original goes; a reader that meets both reads each row once (`parts.once`).
"""

import hashlib
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ressa.errors import StoreError
from ressa.store import rows as row_files
from ressa.store.objects import Objects
from ressa.store.parts import (
    Part,
    TableFiles,
    attempt_of,
    end_to_end,
    finished,
    merged_name,
    once,
)
from ressa.store.scan import full_schema, joined
from ressa.store.schema import TABLES

if TYPE_CHECKING:
    import pyarrow

log = logging.getLogger(__name__)

FAN_IN = 16
LARGEST_ROWS = 1_000_000
"""Of a merged file; what has more than half of it is not merged again."""


class Compaction:
    """Keeps the files of one sweep few. Only whoever commits merges."""

    def __init__(self, objects: Objects, files: Mapping[str, TableFiles]) -> None:
        self._objects, self._files = objects, files
        self._waiting: dict[str, int] = {}
        """Table → small files that may be ready to be merged, from the first commit on."""
        self._tidy: set[str] = set()
        """Tables in which no original is left beside the file that it was merged into."""
        self._ended: set[str] | None = None

    def after_commit(self, table: str, attempt: str) -> None:
        """Merges files of a table if it is time to: at most one merge a level.

        What goes wrong is logged and tried again later: the rows are safe where they are.

        Args:
            table: to which was committed.
            attempt: whose rows, as `attempt_name` names it.
        """
        if table == "trials" and self._ended is not None:
            self._ended.add(attempt)
        try:
            if table not in self._waiting:  # what an earlier driver left counts too
                self._waiting[table] = len(self._objects.names(self._files[table].prefix))
            else:
                self._waiting[table] += 1
            if self._waiting[table] >= FAN_IN:
                self._waiting[table] = 0
                self._waiting[table] = self._merge(table)
        except (StoreError, FileNotFoundError) as error:
            self._tidy.discard(table)
            log.warning("files of %s are left unmerged for now: %s", table, error)

    def _merge(self, table: str) -> int:
        """Merges, and returns how many small files are left to be."""
        if table not in self._tidy:
            self._remove_originals(table)
            self._tidy.add(table)
        levels: dict[int, list[Part]] = defaultdict(list)
        for part in sorted(self._files[table].parts(), key=lambda part: part.first):
            # Full files and those of other programs stay as they are.
            if (
                part.is_ours
                and part.merged_rows <= LARGEST_ROWS // 2
                and self._has_ended(table, part)
            ):
                levels[part.level].append(part)
        left = len(levels[0])
        for level, found in sorted(levels.items()):
            if len(found) >= FAN_IN:
                merged = self._merge_into_one(table, found[:FAN_IN], level + 1)
                left -= merged if level == 0 else 0
        return left

    def _has_ended(self, table: str, part: Part) -> bool:
        """Whether a part's rows will count or not for good.

        Attempts that run, or never ended, keep files of their own: a reader leaves out whole files.
        """
        if part.level or not TABLES[table].of_attempts:
            return True
        if self._ended is None:
            ended = finished(self._files["trials"].parts(), all_attempts=True)
            self._ended = set(ended.to_pylist())
        return attempt_of(part.name) in self._ended

    def _remove_originals(self, table: str) -> None:
        """Ends merges that were cut short: removes what sound merged files hold."""
        import pyarrow.compute as pc

        files = self._files[table]
        parts = files.parts()
        chosen, _ = once(parts)
        kept = {part.name for part in chosen}
        originals = [part for part in parts if part.is_ours and part.name not in kept]
        held = end_to_end(part.commits for part in originals)
        files.prove(chosen, originals)
        for part in chosen:
            if part.level and pc.any(pc.is_in(held, value_set=part.commits)).as_py():
                files.read(part)  # raises if it is not whole
                self._objects.make_durable(files.path(part.name))
        for part in originals:
            self._objects.delete(files.path(part.name))

    def _merge_into_one(self, table: str, parts: Sequence[Part], level: int) -> int:
        """Merges as many of the parts as one file may hold, and returns how many these were."""
        files = self._files[table]
        tables: list[pyarrow.Table] = []
        for part in parts:
            found = files.read(part)
            if len(tables) > 1 and sum(map(len, tables)) + len(found) > LARGEST_ROWS:
                break
            tables.append(found)
        taken = parts[: len(tables)]
        held = [commit for part in taken for commit in part.commits.to_pylist()]
        commits = sorted(set(held))
        merged = joined(full_schema(table, [one.schema for one in tables]), tables)
        whose = ("trial", "attempt", "epoch")
        if held != commits:
            merged = merged.sort_by([(column, "ascending") for column in whose])
        if len(held) > len(commits):  # two drivers merged at once
            merged = row_files.newest(merged, tuple(dict.fromkeys((*TABLES[table].key, *whose))))
        content = row_files.encode_merged(table, merged, commits)
        name = merged_name(level, len(merged), hashlib.sha256(content).hexdigest())
        # Not `put_new`: a power cut may have left a file of that name, and nothing in it.
        self._objects.put(files.path(name), content)
        self._objects.make_durable(files.path(name))
        if self._objects.get(files.path(name)) != content:
            raise StoreError(f"{files.path(name)} is not what was written; its originals stay.")
        files.reconsider(name)
        for part in taken:
            self._objects.delete(files.path(part.name))
        return len(taken)
