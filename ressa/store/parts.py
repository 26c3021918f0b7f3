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
from collections.abc import Iterable, Iterator, Sequence
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
_CONTENT = "-0123456789ab.parquet"
"""How the name of a commit ends: with a digest of its content."""
_ATTEMPT = r".*-a[0-9]{1,18}-e[0-9]{1,18}"
_COMMIT = rf"{_ATTEMPT}-[0-9a-f]{{12}}\.parquet"
_MERGED = re.compile(r"merged-(?P<level>[0-9]{1,9})-(?P<rows>[0-9]{1,18})-[0-9a-f]{12}\.parquet")

_LIES = "it does not hold the commits that it says it holds"


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


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One readable file of a table."""

    name: str
    commits: "pyarrow.StringArray"
    """Names of the commits whose rows it holds."""
    attempts: "pyarrow.StringArray"
    """Of each of them, whose record of which attempt it is part of: an `attempt_name`."""
    schema: "pyarrow.Schema"
    rows: "pyarrow.Table | None"
    """Those of a small file, if they are held."""
    is_ours: bool
    """Whether ressa wrote it: no row is in it twice."""

    @property
    def first(self) -> str:
        """The commit that it begins with; '' if it has no row."""
        return self.commits[0].as_py() if len(self.commits) else ""

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
        self._finished: dict[bool, tuple[list[Part], pyarrow.StringArray]] = {}
        self._proven: set[str] = set()
        self._lock, self._counting = threading.Lock(), threading.Lock()

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

    def finished(self, *, all_attempts: bool) -> tuple[list[Part], "pyarrow.StringArray"]:
        """Returns the parts of the table `trials`, and `finished` of them, worked out once."""
        parts = self.parts()
        known, names = self._finished.get(all_attempts, ([], None))
        if names is None or known != parts:
            names = finished(parts, all_attempts=all_attempts)
            self._finished[all_attempts] = parts, names
        return parts, names

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

    def prove(self, chosen: Iterable[Part], others: Iterable[Part]) -> None:
        """Makes sure that merged files hold what others, which are not to be read, hold as well.

        Raises:
            FileNotFoundError: one does not, and is now skipped: list them again.
        """
        import pyarrow.compute as pc

        left_out = end_to_end(part.commits for part in others)
        for part in chosen if len(left_out) else ():
            said = part.attempts.filter(pc.is_in(part.commits, value_set=left_out))
            if not len(said) or part.name in self._proven:
                continue
            held = row_files.attempt_names(self.read(part))
            if not pc.all(pc.is_in(said, value_set=held)).as_py():
                with self._lock:
                    self._skip(part.name, _LIES)
                    self._forget({part.name} & set(self._known))
                raise FileNotFoundError(part.name)
            self._proven.add(part.name)

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
        return True

    def _small(self, name: str) -> Part:
        import pyarrow as pa

        content = self._objects.get(self.path(name))
        if content is None:
            raise FileNotFoundError(name)
        table = row_files.decode(self._table, content)
        attempts = row_files.attempt_names(table).unique()
        ours = re.fullmatch(_COMMIT, name) is not None and attempts.to_pylist() == [
            attempt_of(name)
        ]
        # A file that another program put there is known by what its rows say that they are.
        commits = [name] if ours else [f"{one}\n{name}" for one in attempts.to_pylist()]
        held = table if self._takes(table.nbytes) else None
        schema = table.schema.remove_metadata()
        return Part(name, pa.array(commits, pa.string()), attempts, schema, held, ours)

    def _takes(self, size: int) -> bool:
        """Counts a file as held if there is room; several threads ask."""
        with self._counting:
            has_room = self._held + size <= HELD_BYTES
            self._held += size if has_room else 0
        return has_room

    def _merged(self, name: str) -> Part:
        import pyarrow as pa
        import pyarrow.compute as pc

        with contextlib.closing(self._objects.open(self.path(name))) as file:
            commits, count, schema = row_files.peek(self._table, file)
        if not pc.all(pc.match_substring_regex(commits, rf"\A{_COMMIT}\z"), min_count=0).as_py():
            raise row_files.NotOurs("it does not say which commits it holds")
        # All ASCII at the end, so that bytes can be counted.
        attempts = pc.binary_slice(commits.cast(pa.binary()), 0, -len(_CONTENT)).cast(pa.string())
        if len(commits) > count and len(attempts.unique()) > count:
            raise row_files.NotOurs(_LIES)
        return Part(name, commits, attempts, schema, None, True)

    def _skip(self, name: str, reason: str) -> None:
        self.skipped[self.path(name)] = reason
        log.warning("skipped %s/%s: %s", self._objects.location, self.path(name), reason)

    def _forget(self, names: set[str]) -> None:
        for name in names:
            part = self._known.pop(name)
            self._held -= 0 if part.rows is None else part.rows.nbytes


def attempt_of(commit: str) -> str:
    """Returns whose record of which attempt a commit is part of: an `attempt_name`."""
    return commit[: -len(_CONTENT)]


def once(parts: Iterable[Part]) -> tuple[list[Part], set[str]]:
    """Returns parts that together hold every commit, and the names of those that share one.

    Larger parts first: what a merged file holds is not read from its originals as well.
    """
    import numpy as np

    largest_first = sorted(parts, key=lambda part: (-len(part.commits), part.name))
    numbers, count = numbered(end_to_end(part.commits for part in largest_first))
    taken, doubled = np.zeros(count, bool), np.zeros(count, bool)
    chosen = []
    for part, own in of_each(largest_first, numbers):
        seen = taken[own]
        if not seen.all():
            chosen.append((part, own))
            taken[own] = True
            doubled[own[seen]] = True
    sharing = {part.name for part, own in chosen if doubled[own].any()}
    return sorted((part for part, _ in chosen), key=lambda part: part.first), sharing


def end_to_end(names: Iterable["pyarrow.StringArray"]) -> "pyarrow.StringArray":
    """Returns the names of several arrays in one."""
    import pyarrow as pa

    return pa.concat_arrays([pa.array([], pa.string()), *names])


def of_each(parts: Sequence[Part], values: Any) -> Iterator[tuple[Part, Any]]:
    """Yields each part with its own of an array that has a value for each of their commits."""
    end = 0
    for part in parts:
        begin, end = end, end + len(part.commits)
        yield part, values[begin:end]


def numbered(names: "pyarrow.StringArray") -> tuple[Any, int]:
    """Returns a number for each name, equal where the names are, and how many there are."""
    encoded = names.dictionary_encode()
    return encoded.indices.to_numpy(), len(encoded.dictionary)


def known_by(attempts: "pyarrow.StringArray", key: Sequence[str]) -> "pyarrow.StringArray":
    """Returns as much of attempts' names as a key of their rows holds: t000-a0, or t000, or ''."""
    import pyarrow as pa
    import pyarrow.compute as pc

    held = [at for at, column in enumerate(("trial", "attempt", "epoch")) if column in key]
    if len(held) == 3:
        return attempts
    words = pc.split_pattern(attempts, "-", max_splits=2, reverse=True)
    empty = pa.repeat("", len(attempts))
    return pc.binary_join_element_wise(empty, *(pc.list_element(words, at) for at in held), "-")


def finished(parts: Iterable[Part], *, all_attempts: bool) -> "pyarrow.StringArray":
    """Returns the attempts that count, from the parts of the table `trials`.

    Of one attempt that two drivers recorded, the later driver's; of one trial's attempts, the
    newest, or all.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    names = end_to_end(part.attempts if part.is_ours else _named(part.attempts) for part in parts)
    words = pc.split_pattern(names, "-", max_splits=2, reverse=True)
    trials = pc.list_element(words, 0).dictionary_encode().indices.to_numpy()
    attempts, epochs = (_number(pc.list_element(words, at)) for at in (1, 2))
    order = np.lexsort([epochs, attempts, trials])
    keys = [trials[order], attempts[order]] if all_attempts else [trials[order]]
    newest = np.ones(len(order), bool)  # of its key
    newest[:-1] = np.any([key[1:] != key[:-1] for key in keys], axis=0)
    return names.take(pa.array(order[newest]))


def _named(attempts: "pyarrow.StringArray") -> "pyarrow.StringArray":
    """Returns those that are an `attempt_name`: rows of other programs may lack what it is of."""
    import pyarrow.compute as pc

    return attempts.filter(pc.match_substring_regex(attempts, rf"(?s)\A{_ATTEMPT}\z"))


def _number(words: "pyarrow.StringArray") -> Any:
    """Returns the numbers that words such as 'a12' end in."""
    import numpy as np

    encoded = words.dictionary_encode()
    distinct = [int(word[1:]) for word in encoded.dictionary.to_pylist()]
    return np.array(distinct, np.int64)[encoded.indices.to_numpy()]
