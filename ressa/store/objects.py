"""Named bytes in a folder or a bucket, behind one small interface; errors a user can act on."""

import contextlib
import errno
import os
import re
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, cast
from urllib.parse import unquote, urlparse

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, from_url

from ressa.errors import NotFoundError, StoreError

_STAGED = re.compile(r"#\d+$")
"""How obstore names a file that it has not finished."""


class Objects:
    """One folder or bucket prefix: `sweeps/x/spec.yaml` is an object's path in it.

    Args:
        location: a folder (relative to the working directory) or a URL such as s3://bucket/prefix.
        create: make the folder if it is missing, and prove that it can be written to.
    """

    def __init__(self, location: str | os.PathLike[str], *, create: bool = False) -> None:
        self.folder = _local_folder(os.fspath(location))
        self.location = str(self.folder) if self.folder else os.fspath(location).rstrip("/")
        with _explained(f"cannot open store {self.location}"):
            if self.folder is None:
                self._store = from_url(self.location)
            else:
                _check_folder(self.folder, create=create)
                self._store = LocalStore(self.folder, mkdir=create)
        if create:
            self.check_writable()

    def check_writable(self) -> None:
        """Writes and deletes a probe: a store that takes no rows is found before any work."""
        name = f".probe-{os.getpid()}"
        if self.folder is None:
            self.put(name, b"ressa can write here")
            self.delete(name)
            return
        # Not through obstore, which tries for ever in a folder such as /proc that has no new files.
        try:
            (self.folder / name).write_bytes(b"ressa can write here")
            (self.folder / name).unlink()
        except OSError as error:
            raise StoreError(f"cannot write to store {self.location}: {_reason(error)}") from error

    def put_new(self, path: str, content: bytes) -> bool:
        """Creates an object, all of it or nothing; False, and no change, if it exists already."""
        try:
            with self._writing(path):
                obstore.put(self._store, path, content, mode="create")
        except AlreadyExistsError:
            return False
        return True

    def put(self, path: str, content: bytes) -> None:
        """Creates or replaces an object in one step: a reader sees the old or the new bytes."""
        with self._writing(path):
            obstore.put(self._store, path, content, mode="overwrite")

    def get(self, path: str) -> bytes | None:
        """Returns an object's bytes, or None if there is no such object."""
        try:
            with _explained(f"store {self.location}: cannot read {path}"):
                return bytes(obstore.get(self._store, path).bytes())
        except FileNotFoundError:
            return None

    def open(self, path: str) -> BinaryIO:
        """Opens an object to read parts of it.

        Raises:
            FileNotFoundError: there is no such object.
        """
        with _explained(f"store {self.location}: cannot read {path}"):
            if self.folder is not None:
                return (self.folder / path).open("rb")
            return cast("BinaryIO", obstore.open_reader(self._store, path))

    def make_durable(self, path: str) -> None:
        """Returns once an object outlives a power cut; a bucket's does when it is written."""
        if self.folder is None:
            return
        with self._writing(path):
            for place in (self.folder / path, (self.folder / path).parent):
                number = os.open(place, os.O_RDONLY)
                try:
                    os.fsync(number)
                finally:
                    os.close(number)

    def exists(self, path: str) -> bool:
        """Returns whether there is such an object, without reading it."""
        return self.size(path) is not None

    def size(self, path: str) -> int | None:
        """Returns how many bytes an object has, or None if there is no such object."""
        try:
            with _explained(f"store {self.location}: cannot read {path}"):
                return int(obstore.head(self._store, path)["size"])
        except FileNotFoundError:
            return None

    def delete(self, path: str) -> None:
        """Removes an object; none to remove is fine."""
        with contextlib.suppress(FileNotFoundError), self._writing(path):
            obstore.delete(self._store, path)

    def delete_folder(self, prefix: str) -> None:
        """Removes all objects directly below a prefix; on a file system the folder too."""
        for name in self.names(prefix):
            self.delete(f"{prefix}/{name}")
        if self.folder is not None:
            self.remove_staged(prefix)
            with contextlib.suppress(OSError):  # gone already, or another writer is at work in it
                (self.folder / prefix).rmdir()

    def remove_staged(self, prefix: str, *, older_than_seconds: float = 0.0) -> None:
        """Removes what a writer that was killed has left below a prefix: half an object, `x#1`.

        Readers never see it. On a file system alone: elsewhere an upload that broke off is nothing.
        """
        if self.folder is None:
            return
        limit = time.time() - older_than_seconds
        for path in (self.folder / prefix).rglob("*#*"):
            with contextlib.suppress(FileNotFoundError):
                if _STAGED.search(path.name) and path.stat().st_mtime <= limit:
                    path.unlink()

    def names(self, prefix: str) -> list[str]:
        """Returns the names, without the prefix, of the objects directly below it, sorted."""
        with _explained(f"store {self.location}: cannot list {prefix}"):
            found = obstore.list_with_delimiter(self._store, prefix)["objects"]
        return sorted(entry["path"].rsplit("/", 1)[-1] for entry in found)

    def folders(self, prefix: str) -> list[str]:
        """Returns the names, without the prefix, of the folders directly below it, sorted."""
        with _explained(f"store {self.location}: cannot list {prefix}"):
            found = obstore.list_with_delimiter(self._store, prefix)["common_prefixes"]
        return sorted(path.rstrip("/").rsplit("/", 1)[-1] for path in found)

    def below(self, prefix: str) -> list[tuple[str, int, datetime]]:
        """Returns path, size in bytes and time of writing of every object below a prefix."""
        with _explained(f"store {self.location}: cannot list {prefix}"):
            batches = obstore.list(self._store, prefix)
            found = [entry for batch in batches for entry in batch]
        return sorted((entry["path"], entry["size"], entry["last_modified"]) for entry in found)

    def _writing(self, path: str) -> contextlib.AbstractContextManager[None]:
        return _explained(f"store {self.location}: cannot write {path}")


def _local_folder(location: str) -> Path | None:
    if not location.strip():
        raise StoreError("the store is a folder or a URL such as s3://bucket/prefix, got ''.")
    if "://" not in location:
        return Path(location).expanduser().absolute()
    parts = urlparse(location)
    return Path(unquote(parts.path)).absolute() if parts.scheme == "file" else None


def _check_folder(folder: Path, *, create: bool) -> None:
    if folder.is_dir():
        return
    if folder.exists():
        raise StoreError(f"store {folder} is a file, not a folder. Name another folder.")
    if not create:
        raise NotFoundError(f"no store at {folder}. `ressa run` makes one; --store names another.")


@contextlib.contextmanager
def _explained(doing: str) -> Iterator[None]:
    """Turns the storage layer's errors into one line; existing and missing stay for the caller."""
    try:
        yield
    except (AlreadyExistsError, FileNotFoundError):
        raise
    except (BaseError, OSError, ValueError) as error:
        raise StoreError(f"{doing}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Returns an error's first line, or the operating system's words if it has them."""
    line = str(error).strip().split("\n")[0].strip() or type(error).__name__
    code = re.search(r"\(os error (\d+)\)", line)
    number = int(code[1]) if code else getattr(error, "errno", None)
    if number is None:
        return line if line.endswith(".") else f"{line}."
    hints = {
        "ENOSPC": " Free some space or name another store.",
        "EDQUOT": " Free some space or name another store.",
        "EACCES": " Check its permissions or name another store.",
        "EPERM": " Check its permissions or name another store.",
        "EROFS": " Name another store.",
        "ENOTDIR": " A file stands where a folder should; name another store.",
    }
    return f"{os.strerror(number)}.{hints.get(errno.errorcode.get(number, ''), '')}"
