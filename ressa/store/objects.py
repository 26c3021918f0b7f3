"""Named bytes in a folder or a bucket, behind one small interface; errors a user can act on."""

import contextlib
import errno
import io
import os
import re
import time
import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, cast
from urllib.parse import unquote, urlparse

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, from_url

from ressa.errors import FullStore, NotFoundError, StoreError, first_line

if TYPE_CHECKING:
    from obstore.store import RetryConfig

_UNFINISHED = re.compile(r"#\d+$")
"""How obstore names a file that it has not finished."""
_TRIES = 10
"""To write a file that others remove unfinished."""


class Objects:
    """One folder or bucket prefix: `sweeps/x/spec.yaml` is an object's path in it.

    Args:
        location: a folder (relative to the working directory) or a URL such as s3://bucket/prefix.
        create: make the folder if it is missing, and prove that it can be written to.
    """

    def __init__(self, location: str | os.PathLike[str], *, create: bool = False) -> None:
        self.folder = _local_folder(os.fspath(location))
        _check_no_secrets(os.fspath(location))
        _check_no_page(os.fspath(location))
        self.location = str(self.folder) if self.folder else os.fspath(location).rstrip("/")
        with _explained(f"cannot open store {self.location}"):
            if self.folder is None:
                # Of a bucket that does not answer the user is told within the minute.
                retry: RetryConfig = {"max_retries": 5, "retry_timeout": timedelta(seconds=30)}
                self._store = from_url(self.location, retry_config=retry)
            else:
                _check_folder(self.folder, create=create)
                self._store = LocalStore(self.folder, mkdir=create)
        if create:
            self.check_writable()

    def check_writable(self) -> None:
        """Writes and deletes a probe: a store that takes no rows is found before any work."""
        name = f".probe-{uuid.uuid4().hex}"  # containers have equal process ids
        if self.folder is None:
            self.put(name, b"ressa can write here")
            self.delete(name)
            return
        # Not through obstore, which tries for ever in a folder such as /proc that has no new files.
        try:
            (self.folder / name).write_bytes(b"ressa can write here")
            (self.folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise _failed(f"cannot write to store {self.location}", error) from error

    def put_new(self, path: str, content: bytes) -> bool:
        """Creates an object, all of it or nothing; False, and no change, if it exists already."""
        try:
            self._put(path, content, "create")
        except AlreadyExistsError:
            return False
        return True

    def put(self, path: str, content: bytes) -> None:
        """Creates or replaces an object in one step: a reader sees the old or the new bytes."""
        self._put(path, content, "overwrite")

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
            size = int(obstore.head(self._store, path)["size"])
        return cast("BinaryIO", _Ranges(self, path, size))

    def range(self, path: str, start: int, length: int) -> bytes:
        """Returns some of an object's bytes.

        Raises:
            FileNotFoundError: there is no such object.
        """
        with _explained(f"store {self.location}: cannot read {path}"):
            return bytes(obstore.get_range(self._store, path, start=start, length=length))

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
        doing = f"store {self.location}: cannot delete {path}"
        with contextlib.suppress(FileNotFoundError), _explained(doing):
            obstore.delete(self._store, path)

    def delete_folder(self, prefix: str) -> None:
        """Removes all objects directly below a prefix; on a file system the folder too."""
        for name in self.names(prefix):
            self.delete(f"{prefix}/{name}")
        if self.folder is not None:
            self.remove_unfinished(prefix)
            with contextlib.suppress(OSError):  # gone already, or another writer is at work in it
                (self.folder / prefix).rmdir()

    def remove_unfinished(self, prefix: str, *, older_than_seconds: float = 0.0) -> None:
        """Removes what killed writers left of files that they had begun, anywhere below a prefix.

        No listing shows them. On a file system alone: elsewhere a broken upload leaves nothing.
        """
        if self.folder is None:
            return
        limit = time.time() - older_than_seconds
        # Not by `rglob`, which breaks off at a folder that another writer removes meanwhile.
        for folder, _, names in os.walk(self.folder / prefix):
            for path in (Path(folder, name) for name in names if _UNFINISHED.search(name)):
                # Removed meanwhile, or another user's: it takes room, and harms nobody.
                with contextlib.suppress(OSError):
                    if path.stat().st_mtime <= limit:
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

    def _put(self, path: str, content: bytes, mode: Literal["create", "overwrite"]) -> None:
        for tries_left in range(_TRIES - 1, -1, -1):
            try:
                with self._writing(path):
                    obstore.put(self._store, path, content, mode=mode)
                return
            except StoreError as error:
                # Whoever removes what killed writers left may take what we had begun for that.
                is_removed = self.folder is not None and _errno(error.__cause__) == errno.ENOENT
                if not (is_removed and tries_left):
                    raise

    @contextlib.contextmanager
    def _writing(self, path: str) -> Iterator[None]:
        doing = f"store {self.location}: cannot write {path}"
        with _explained(doing):
            try:
                yield
            except FileNotFoundError as error:  # no such bucket
                raise _failed(doing, error) from error


def _local_folder(location: str) -> Path | None:
    if not location.strip():
        raise StoreError("the store is a folder or a URL such as s3://bucket/prefix, got ''.")
    if "://" not in location:
        return Path(os.path.expanduser(location)).absolute()
    parts = urlparse(location)
    return Path(unquote(parts.path)).absolute() if parts.scheme == "file" else None


def _check_no_secrets(location: str) -> None:
    """Refuses a URL that brings a password: it would end up in specs, rows and logs."""
    if "://" in location and ("@" in location or "?" in location):
        raise StoreError(
            "the store's URL holds credentials or options. Write s3://bucket/prefix alone; "
            "credentials, region and endpoint come from the environment (AWS_ACCESS_KEY_ID, …)."
        )


def _check_no_page(location: str) -> None:
    """Refuses what can only be a dashboard's address."""
    if location.startswith(("http://", "https://")):
        raise StoreError(
            f"{location} is no store: that is a folder, or a bucket such as s3://bucket/prefix. "
            "A cluster's dashboard is an --address; --store then names the store as the cluster "
            "sees it. confirm and export work on the store itself: run them where it can be read, "
            "such as on a node of the cluster."
        )


class _Ranges(io.RawIOBase):
    """An object that is not on a file system, read a range at a time."""

    def __init__(self, objects: Objects, path: str, size: int) -> None:
        self._objects, self._path, self._size, self._at = objects, path, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        begin = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = begin + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        length = min(len(buffer), self._size - self._at)
        if length <= 0:
            return 0
        buffer[:length] = self._objects.range(self._path, self._at, length)
        self._at += length
        return length


def _check_folder(folder: Path, *, create: bool) -> None:
    # In this order: workers open a store together, and another may make it between two looks.
    if not folder.exists():
        if not create:
            raise NotFoundError(
                f"no store at {folder}. `ressa run` makes one; --store names another."
            )
    elif not folder.is_dir():
        raise StoreError(f"store {folder} is a file, not a folder. Name another folder.")


@contextlib.contextmanager
def _explained(doing: str) -> Iterator[None]:
    """Turns the storage layer's errors into one line; existing and missing stay for the caller."""
    try:
        yield
    except (AlreadyExistsError, FileNotFoundError):
        raise
    except (BaseError, OSError, ValueError, TypeError) as error:
        raise _failed(doing, error) from error


def _failed(doing: str, error: Exception) -> StoreError:
    is_full = _errno(error) in (errno.ENOSPC, errno.EDQUOT)
    return (FullStore if is_full else StoreError)(f"{doing}: {_reason(error)}")


def _errno(error: BaseException | None) -> int | None:
    """The operating system's number of an error, which obstore gives in words alone."""
    code = re.search(r"\(os error (\d+)\)", str(error))
    return int(code[1]) if code else getattr(error, "errno", None)


def _reason(error: Exception) -> str:
    """Returns an error's first line, or the operating system's words if it has them."""
    number = _errno(error)
    if number is None:
        line = first_line(error)
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
