"""A folder that appears whole or not at all, however its writer ends."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp

from ressa.errors import ConflictError, StoreError


def check_target(folder: Path) -> None:
    """Makes sure that a new folder can be there.

    Raises:
        ConflictError: it holds something, or is a file.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ConflictError(f"{folder} is not a folder. Name one that does not exist yet.")
    if folder.is_dir() and any(folder.iterdir()):
        raise ConflictError(
            f"{folder} is not empty, and nothing is overwritten. Name a folder that does not exist "
            "yet, or remove this one."
        )


@contextmanager
def new_folder(target: Path, *, needs: int) -> Iterator[Path]:
    """Gives a folder beside the target to write into, which becomes the target at the end.

    One that a killed writer left is removed by the next; it begins with a dot and ends in .partial.

    Args:
        target: must not exist, or be empty.
        needs: bytes that will be written.

    Raises:
        ConflictError: see `check_target`. StoreError: there is no room, or it cannot be written to.
    """
    check_target(target)
    target = target.absolute()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_left_overs(target)
        free = shutil.disk_usage(target.parent).free
        if free < needs:
            raise StoreError(
                f"{target.parent} has {free / 2**20:,.0f} MiB free, and the export needs about "
                f"{needs / 2**20:,.0f} MiB. Make room, or name a folder elsewhere."
            )
        partial, held = _held_folder(target)
    except OSError as error:
        raise _cannot(target, error) from error
    try:
        yield partial
        _finish(partial, target)
    except OSError as error:
        raise _cannot(target, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # none is left after `_finish`
        os.close(held)


def _held_folder(target: Path) -> tuple[Path, int]:
    """Makes a folder beside the target with a lock on it, which says that its writer lives."""
    while True:
        partial = Path(mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
        try:
            held = os.open(partial, os.O_RDONLY)
        except FileNotFoundError:
            continue  # another export took it for a left-over: no lock was on it yet
        try:
            fcntl.flock(held, fcntl.LOCK_EX)
            if partial.exists():  # or as above
                return partial, held
        except OSError:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        os.close(held)


def _finish(partial: Path, target: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    # On the disk before it has its name: a power cut leaves no name without content.
    for path in (*partial.rglob("*"), partial):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)  # some writers keep to themselves
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)
    check_target(target)
    try:
        os.rename(partial, target)  # an empty folder gives way, any other does not
    except OSError:
        check_target(target)  # another export may have come in between
        raise


def _remove_left_overs(target: Path) -> None:
    for path in target.parent.glob(f".{target.name}.*.partial"):
        with suppress(OSError):  # another export is at work there, or it is not ours
            held = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path)
            finally:
                os.close(held)


def _cannot(target: Path, error: OSError) -> StoreError:
    return StoreError(f"{target} cannot be written: {error.strerror or error}.")
