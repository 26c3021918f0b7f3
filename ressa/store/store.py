"""A store and its sweeps: open, list, commit rows, read them back."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ressa.errors import ConflictError, NotFoundError, SpecError, StoreError, did_you_mean
from ressa.store import rows as row_files
from ressa.store.compaction import Compaction
from ressa.store.objects import Objects
from ressa.store.parts import TableFiles, attempt_name
from ressa.store.scan import Scan, scan, scanned
from ressa.store.schema import EVENTS_ORDER, TABLES
from ressa.store.stages import StageStore

if TYPE_CHECKING:
    import pandas
    import pyarrow

    from ressa.spec import SweepSpec
    from ressa.store.status import SweepStatus

_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def check_name(kind: str, name: str) -> str:
    """Returns a name that is safe as a folder.

    Raises:
        SpecError: it is not: a separator, a leading dot, too long, not ASCII.
    """
    if not _SAFE_NAME.fullmatch(name):
        raise SpecError(
            f"{kind} name {name!r}: up to 100 letters, digits, '.', '_' and '-', "
            "beginning with a letter or digit."
        )
    return name


def open_store(location: str | os.PathLike[str], *, create: bool = False) -> "Store":
    """Opens a store in a folder (relative to the working directory) or at a URL (s3://…).

    Args:
        location: folder or URL.
        create: make the folder if it is missing, and check that it can be written to.

    Raises:
        NotFoundError: no such folder, and `create` is false.
        StoreError: it is a file, cannot be reached, or cannot be written to.
    """
    return Store(Objects(location, create=create))


class Store:
    """Every sweep in one folder or bucket, and the stages they share. Made by `open_store`."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self.stages = StageStore(objects)

    def __repr__(self) -> str:
        return f"open_store({self.location!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return open_store, (self.location,)

    @property
    def location(self) -> str:
        """The absolute folder or the URL; `open_store` of it is this store again."""
        return self.objects.location

    @property
    def folder(self) -> Path | None:
        """The folder, or None if the store is not on a file system."""
        return self.objects.folder

    def sweeps(self) -> list[str]:
        """Returns the names of the sweeps, sorted."""
        return [name for name in self.objects.folders("sweeps") if self.has_sweep(name)]

    def has_sweep(self, name: str) -> bool:
        """Returns whether there is a sweep of that name."""
        return bool(_SAFE_NAME.fullmatch(name)) and self.objects.exists(f"sweeps/{name}/spec.yaml")

    def sweep(self, name: str) -> "SweepStore":
        """Opens a sweep.

        Raises:
            NotFoundError: there is none of that name.
        """
        if not self.has_sweep(name):
            known = self.sweeps()
            listed = f"Sweeps here: {', '.join(known)}." if known else "It holds no sweep."
            raise NotFoundError(
                f"no sweep {name!r} in {self.location}.{did_you_mean(name, known)} {listed}"
            )
        return SweepStore(self, name)

    def create_sweep(self, name: str, spec_text: str) -> "SweepStore":
        """Makes a sweep by storing its resolved spec, which never changes after.

        Raises:
            ConflictError: there is one of that name, with another spec.
        """
        check_name("sweep", name)
        path, content = f"sweeps/{name}/spec.yaml", spec_text.encode()
        # Over a network the answer to a write that was done may get lost, and be asked for again.
        if not self.objects.put_new(path, content) and self.objects.get(path) != content:
            raise ConflictError(f"there is a sweep {name!r} in {self.location} already.")
        return SweepStore(self, name)


class SweepStore:
    """One sweep's rows. Made by `Store.sweep` and `Store.create_sweep`.

    Readers may be as many as like, while a driver writes and merges: see `parts` and `compaction`.
    """

    def __init__(self, store: Store, name: str) -> None:
        self.store, self.name = store, name
        self.prefix = f"sweeps/{name}"
        self.files = {
            table: TableFiles(store.objects, f"{self.prefix}/{table}", table) for table in TABLES
        }
        self._compaction = Compaction(store.objects, self.files)

    @property
    def skipped(self) -> dict[str, str]:
        """Files in the tables' folders that hold no readable rows → why."""
        found = [files.skipped for files in self.files.values()]
        return {path: reason for skipped in found for path, reason in skipped.items()}

    def __reduce__(self) -> tuple[Any, ...]:
        return SweepStore, (self.store, self.name)

    def spec_text(self) -> str:
        """Returns the resolved spec, as it was stored."""
        content = self.store.objects.get(f"{self.prefix}/spec.yaml")
        if content is None:
            raise StoreError(f"sweep {self.name}: spec.yaml is gone from {self.store.location}.")
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            raise StoreError(f"sweep {self.name}: spec.yaml is damaged: {error}") from error

    def spec(self) -> "SweepSpec":
        """Returns the spec that the sweep began with.

        Raises:
            SpecError: what is stored is none.
        """
        from ressa.spec import spec_from_yaml

        return spec_from_yaml(self.spec_text())

    def commit(
        self,
        table: str,
        rows: Sequence[Mapping[str, Any]],
        *,
        epoch: int,
        trial: str | None = None,
        attempt: int = 0,
    ) -> bool:
        """Writes rows as one immutable file: all of them or none.

        An attempt's `trials` row is committed last; the attempt's other rows count from then on.

        Args:
            table: one of `TABLES`.
            rows: column → value, without the identity columns; what is left out is null.
            epoch: of the writer's lease.
            trial: whose rows; None for the sweep as a whole.
            attempt: which try of the trial.

        Returns:
            False if the same rows were committed already, which changes nothing.
        """
        if not rows:
            return False
        identity = {"sweep": self.name, "trial": trial, "attempt": attempt, "epoch": epoch}
        content, digest = row_files.encode(table, rows, identity)
        whose = attempt_name(trial and check_name("trial", trial), attempt, epoch)
        file = f"{whose}-{digest[:12]}.parquet"
        new = self.store.objects.put_new(self.files[table].path(file), content)
        self._compaction.after_commit(table, whose)
        return new

    def remove_unfinished(self) -> None:
        """Removes what killed drivers left of files that they had begun."""
        for folder in ("lease", "logs", *self.files):
            self.store.objects.remove_unfinished(f"{self.prefix}/{folder}")

    def event(
        self,
        kind: str,
        detail: Mapping[str, Any] | None = None,
        *,
        epoch: int,
        trial: str | None = None,
        attempt: int = 0,
    ) -> bool:
        """Commits one event; `committed` is when it happened."""
        row = {"kind": kind, "detail": dict(detail or {})}
        return self.commit("events", [row], epoch=epoch, trial=trial, attempt=attempt)

    def read(
        self,
        table: str,
        *,
        columns: Sequence[str] | None = None,
        where: Mapping[str, Any] | None = None,
        all_attempts: bool = False,
        in_order: bool = True,
    ) -> "pyarrow.Table":
        """Returns the rows that count, as an Arrow table.

        Args:
            table: one of `TABLES`.
            columns: those wanted; the others are not read.
            where: column → value that the rows must have.
            all_attempts: also those of finished attempts that a newer one of their trial replaced.
            in_order: by trial and attempt; False is faster, for whoever sorts them anyway.
        """
        return scanned(
            lambda: [self.scan(table, all_attempts=all_attempts)],
            lambda scans: scans[0].table(columns, where, in_order=in_order),
        )

    def scan(self, table: str, *, all_attempts: bool = False) -> Scan:
        """Finds the rows that count, to be read a part at a time: see `scanned`."""
        return scan(table, self.files[table], self.files["trials"], all_attempts=all_attempts)

    def trials(self, columns: Sequence[str] | None = None) -> "pandas.DataFrame":
        """Returns the newest finished attempt of each trial: baselines first, then by number."""
        return self._in_order(columns, all_attempts=False)

    def attempts(self) -> "pandas.DataFrame":
        """Returns every finished attempt of each trial."""
        return self._in_order(None, all_attempts=True)

    def scores(self) -> "pandas.DataFrame":
        """Returns every metric of every trial's states."""
        return row_files.to_pandas(self.read("scores"))

    def curves(self) -> "pandas.DataFrame":
        """Returns repair, step by step."""
        return row_files.to_pandas(self.read("curves"))

    def layers(self) -> "pandas.DataFrame":
        """Returns each prunable matrix of each trial."""
        return row_files.to_pandas(self.read("layers"))

    def answers(self) -> "pandas.DataFrame":
        """Returns each trial's answer to each example."""
        return row_files.to_pandas(self.read("answers"))

    def proposals(self) -> "pandas.DataFrame":
        """Returns what the search proposed, by number and attempt."""
        order = [("number", "ascending"), ("trial", "ascending"), ("attempt", "ascending")]
        return row_files.to_pandas(self.read("proposals").sort_by(order))

    def events(self) -> "pandas.DataFrame":
        """Returns what happened, in the order of drivers and of what each of them did."""
        return row_files.to_pandas(self.read("events").sort_by(EVENTS_ORDER))

    def data(self) -> "pandas.DataFrame":
        """Returns which examples each purpose used."""
        return row_files.to_pandas(self.read("data"))

    def status(self) -> "SweepStatus":
        """Returns how far the sweep is, from its rows and its lease."""
        from ressa.store.status import sweep_status

        return sweep_status(self)

    def _in_order(self, columns: Sequence[str] | None, *, all_attempts: bool) -> "pandas.DataFrame":
        order = ("role", "number", "trial", "attempt")
        wanted = None if columns is None else list(dict.fromkeys((*columns, *order)))
        found = self.read("trials", columns=wanted, all_attempts=all_attempts, in_order=False)
        found = found.sort_by([(column, "ascending") for column in order])
        return row_files.to_pandas(found if columns is None else found.select(columns))
