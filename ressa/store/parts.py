"""The files of one table: which hold rows that count, told from the files' names where possible.

A commit is one small file, named after its trial, attempt, epoch and content. A merged file holds
the rows of many commits and says which. So a reader that meets a merged file beside its originals,
or two merged files that overlap, knows it before it reads a row, and it knows which attempts lie
where. Small files are held in memory; merged ones are scanned when something is asked, few columns
of a few row groups at a time.
"""

import contextlib
import logging
import re
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ressa.errors import StoreError
from ressa.store import rows as row_files
from ressa.store.objects import Objects

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.dataset

log = logging.getLogger(__name__)

HELD_BYTES = 64 * 1024**2
"""Of a table's small files kept in memory between reads; the others are scanned each time."""

_TRIES = 20
_COMMIT = re.compile(r"(?P<attempt>.+-a\d+-e\d+)-[0-9a-f]{12}\.parquet")
_MERGED = re.compile(r"merged-(?P<level>\d+)-(?P<rows>\d+)-[0-9a-f]{12}\.parquet")


def merged_name(level: int, rows: int, digest: str) -> str:
    """Names a merged file: `level` merges lie between it and the commits."""
    return f"merged-{level}-{rows}-{digest[:12]}.parquet"


def attempt_name(trial: str | None, attempt: int, epoch: int) -> str:
    """Names one driver's record of an attempt: what the names of its commits begin with."""
    return f"{trial or 'sweep'}-a{attempt}-e{epoch}"


def parquet() -> "pyarrow.dataset.ParquetFileFormat":
    """Returns how merged files are scanned: with the checksums of their pages."""
    import pyarrow.dataset as ds

    options = ds.ParquetFragmentScanOptions(page_checksum_verification=True)
    return ds.ParquetFileFormat(default_fragment_scan_options=options)


@dataclass(frozen=True, slots=True)
class Part:
    """One readable file of a table."""

    name: str
    commits: tuple[str, ...]
    schema: "pyarrow.Schema"
    rows: "pyarrow.Table | None"
    """Those of a small file, if they are held."""

    @property
    def is_commit(self) -> bool:
        """Whether it is as a driver wrote it: one commit, in a file of its name."""
        return self.commits == (self.name,)

    @property
    def is_ours(self) -> bool:
        """Whether ressa wrote it: no row is in it twice."""
        return self.is_commit or _MERGED.fullmatch(self.name) is not None

    @property
    def level(self) -> int:
        """How many merges lie between it and the commits."""
        merged = _MERGED.fullmatch(self.name)
        return int(merged["level"]) if merged else 0

    @property
    def merged_rows(self) -> int:
        """How many rows a merged file has."""
        merged = _MERGED.fullmatch(self.name)
        return int(merged["rows"]) if merged else 0


class TableFiles:
    """What lies in one table's folder of a sweep.

    Args:
        objects: the store.
        prefix: the table's folder.
        table: its name.
    """

    def __init__(self, objects: Objects, prefix: str, table: str) -> None:
        self.skipped: dict[str, str] = {}
        """Files that hold no readable rows → why."""
        self.prefix, self._objects, self._table = prefix, objects, table
        self._known: dict[str, Part] = {}
        self._held = 0
        self._lock = threading.Lock()

    def parts(self) -> list[Part]:
        """Returns the readable files as they lie there now; what is skipped is logged once."""
        with self._lock:
            for _ in range(_TRIES):
                listed = self._objects.names(self.prefix)
                self._forget(set(self._known) - set(listed))
                unknown = [name for name in listed if name not in self._known]
                unknown = [name for name in unknown if self.path(name) not in self.skipped]
                if all(self._each(self._learn, unknown)):
                    return [self._known[name] for name in listed if name in self._known]
                # A file was merged into another since it was listed.
        raise StoreError(f"{self._objects.location}/{self.prefix}: its files change all the time.")

    def changed(self, parts: Iterable[Part]) -> bool:
        """Returns whether parts that could not be scanned are gone or damaged: list them again."""
        changed = False
        for part in parts:
            try:
                self.read(part)
            except FileNotFoundError:
                changed = True
        return changed

    def read(self, part: Part) -> "pyarrow.Table":
        """Returns all rows of a part.

        Raises:
            FileNotFoundError: it was merged into another since it was listed, or is damaged and
                now skipped: list them again.
        """
        if part.rows is not None:
            return part.rows
        content = self._objects.get(self.path(part.name))
        try:
            if content is not None:
                return row_files.decode(self._table, content)
        except row_files.NotOurs as reason:
            with self._lock:
                self._skip(part.name, str(reason))
                self._forget({part.name} & set(self._known))
        raise FileNotFoundError(part.name)

    def fragment(self, part: Part) -> "pyarrow.dataset.ParquetFileFragment":
        """Returns a part that is not held in memory as what a scan reads it from."""
        import pyarrow as pa
        from pyarrow import fs

        if self._objects.folder is not None:
            path = str(self._objects.folder / self.path(part.name))
            return parquet().make_fragment(path, filesystem=fs.LocalFileSystem())
        file = pa.PythonFile(self._objects.open(self.path(part.name)), mode="r")
        return parquet().make_fragment(file)

    def path(self, name: str) -> str:
        """Returns where in the store a file of the table is."""
        return f"{self.prefix}/{name}"

    def reconsider(self, name: str) -> None:
        """Looks at a file anew that was written again."""
        with self._lock:
            self.skipped.pop(self.path(name), None)

    def _each(self, work: Any, names: Sequence[str]) -> list[Any]:
        if self._objects.folder is not None or len(names) < 2:
            return [work(name) for name in names]
        with ThreadPoolExecutor(16) as threads:  # each waits for the network
            return list(threads.map(work, names))

    def _learn(self, name: str) -> bool:
        """Takes a file into `_known` or `skipped`; False if it is not there any more."""
        path = self.path(name)
        try:
            if not name.endswith(".parquet"):
                raise row_files.NotOurs("not a Parquet file")
            part = self._merged(name) if _MERGED.fullmatch(name) else self._small(name)
        except row_files.NotOurs as reason:
            self._skip(name, str(reason))
            return True
        except FileNotFoundError:
            return False
        except StoreError as error:
            raise StoreError(f"{self._objects.location}/{path}: {error}") from error
        self._known[name] = part
        self._held += 0 if part.rows is None else part.rows.nbytes
        return True

    def _small(self, name: str) -> Part:
        content = self._objects.get(self.path(name))
        if content is None:
            raise FileNotFoundError(name)
        table = row_files.decode(self._table, content)
        attempts = row_files.attempt_names(table).unique().to_pylist()
        named = _COMMIT.fullmatch(name)
        # A file that another program put there is known by what its rows say that they are.
        ours = named is not None and attempts == [named["attempt"]]
        commits = (name,) if ours else tuple(sorted(f"{one}\n{name}" for one in attempts))
        held = table if self._held + table.nbytes <= HELD_BYTES else None
        return Part(name, commits, table.schema.remove_metadata(), held)

    def _merged(self, name: str) -> Part:
        with contextlib.closing(self._objects.open(self.path(name))) as file:
            commits, schema = row_files.peek(self._table, file)
        if not all(_COMMIT.fullmatch(commit) for commit in commits):
            raise row_files.NotOurs("it does not say which commits it holds")
        return Part(name, tuple(commits), schema, None)

    def _skip(self, name: str, reason: str) -> None:
        self.skipped[self.path(name)] = reason
        log.warning("skipped %s/%s: %s", self._objects.location, self.path(name), reason)

    def _forget(self, names: set[str]) -> None:
        for name in names:
            part = self._known.pop(name)
            self._held -= 0 if part.rows is None else part.rows.nbytes


def attempt_of(commit: str) -> str:
    """Returns which driver's record of which attempt a commit is part of: an `attempt_name`."""
    attempt, foreign, _ = commit.partition("\n")
    return attempt if foreign else commit[: -len("-0123456789ab.parquet")]


def once(parts: Iterable[Part]) -> tuple[list[Part], set[str]]:
    """Returns parts that together hold every commit, and the commits that two of them hold.

    Larger parts first: what a merged file holds is not read from its originals as well.
    """
    taken: set[str] = set()
    doubled: set[str] = set()
    chosen = []
    for part in sorted(parts, key=lambda part: (-len(part.commits), part.name)):
        seen = taken.intersection(part.commits)
        if len(seen) < len(part.commits):
            chosen.append(part)
            taken.update(part.commits)
            doubled |= seen
    return sorted(chosen, key=lambda part: part.commits[0]), doubled


def finished(parts: Iterable[Part], *, all_attempts: bool) -> set[str]:
    """Returns the attempts that count, from the parts of the table `trials`.

    Of one attempt that two drivers recorded, the later driver's; of one trial's attempts, the
    newest, or all.
    """
    newest: dict[str, tuple[int, int, str]] = {}
    for part in parts:
        for commit in part.commits:
            name = attempt_of(commit)
            trial, attempt, epoch = name.rsplit("-", 2)
            if not (attempt[1:].isdecimal() and epoch[1:].isdecimal()):
                continue
            rank = (int(attempt[1:]), int(epoch[1:]), name)
            key = f"{trial}-{attempt}" if all_attempts else trial
            newest[key] = max(rank, newest.get(key, rank))
    return {name for _, _, name in newest.values()}
