"""Work that trials share, by content: `stages/<stage>/<key>/` holds files and a manifest.

A stage exists once its manifest does, and the manifest is written last and by exclusive creation:
of two writers the first one counts. Files are stored under their hash: the second writer cannot mix
its bytes into the first one's stage, and a killed writer leaves nothing that is ever read.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ressa.errors import DamagedStage
from ressa.store.objects import Objects

log = logging.getLogger(__name__)


class StageStore:
    """The stages of one store."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def get(self, stage: str, key: str) -> dict[str, bytes] | None:
        """Returns a stage's files, or None if it does not exist, or no longer as it was written."""
        files = self.open(stage, key)
        try:
            return None if files is None else dict(files)
        except DamagedStage as error:
            log.warning("%s; doing it again", error)
            return None

    def open(self, stage: str, key: str) -> "StageFiles | None":
        """Returns a stage's files, to be read one by one, or None if it does not exist.

        A file that is gone or shorter than it was is noticed here.
        """
        files = self._manifest(stage, key)
        if files is None:
            return None
        for name, entry in files.items():
            if self._objects.size(_path(stage, key, entry["object"])) != entry["size"]:
                log.warning("stage %s %s: %s is damaged; doing it again", stage, key, name)
                self._objects.delete(_path(stage, key, "manifest.json"))
                return None
        return StageFiles(self._objects, stage, key, files)

    def put(self, stage: str, key: str, files: Mapping[str, bytes]) -> bool:
        """Stores a stage.

        Returns:
            False if another writer's stage was there first: that one stays, and `get` returns it.
        """
        writer = self.writer(stage, key)
        for name, content in files.items():
            writer.add(name, content)
        return writer.finish()

    def writer(self, stage: str, key: str) -> "StageWriter":
        """Begins a stage whose files come one after another."""
        return StageWriter(self._objects, stage, key)

    def keys(self, stage: str) -> list[str]:
        """Returns the keys under which a stage was made, or begun to be, sorted."""
        return self._objects.folders(f"stages/{stage}")

    def exists(self, stage: str, key: str) -> bool:
        """Returns whether a stage was made, without reading it."""
        return self._objects.exists(_path(stage, key, "manifest.json"))

    def inventory(self) -> list["StoredStage"]:
        """Lists every stage, and what was begun of one, by name and key."""
        found: dict[tuple[str, str], list[tuple[str, int, datetime]]] = {}
        for path, size, written in self._objects.below("stages"):
            parts = path.split("/")
            if len(parts) == 4:  # a stranger's file is not ours to count
                _, stage, key, name = parts
                found.setdefault((stage, key), []).append((name, size, written))
        return [
            StoredStage(
                stage=stage,
                key=key,
                size=sum(size for _, size, _ in files),
                written=max(written for *_, written in files),
                is_whole=any(name == "manifest.json" for name, *_ in files),
            )
            for (stage, key), files in sorted(found.items())
        ]

    def hide(self, stage: str, key: str) -> bytes | None:
        """Lets a stage exist no longer, its files staying; returns what `show` takes."""
        path = _path(stage, key, "manifest.json")
        manifest = self._objects.get(path)
        self._objects.delete(path)
        return manifest

    def show(self, stage: str, key: str, manifest: bytes) -> None:
        """Lets a hidden stage exist again, unless it was made anew meanwhile."""
        self._objects.put_new(_path(stage, key, "manifest.json"), manifest)

    def remove(self, stage: str, key: str) -> None:
        """Removes a stage; none to remove is fine."""
        # From then on it does not exist, whatever happens to the rest.
        self._objects.delete(_path(stage, key, "manifest.json"))
        self._objects.delete_folder(f"stages/{stage}/{key}")

    def _manifest(self, stage: str, key: str) -> dict[str, dict[str, Any]] | None:
        """Returns what a stage's manifest says of each file, or None if it does not exist."""
        path = _path(stage, key, "manifest.json")
        content = self._objects.get(path)
        if content is None:
            return None
        try:
            files: dict[str, dict[str, Any]] = dict(json.loads(content)["files"])
            for entry in files.values():
                entry["object"], entry["sha256"], entry["size"]
            return files
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
        log.warning("stage %s %s: its manifest is damaged; doing it again", stage, key)
        self._objects.delete(path)
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredStage:
    """A stage as it lies in the store."""

    stage: str
    key: str
    size: int
    """Bytes, files that no reader sees included."""
    written: datetime
    is_whole: bool
    """False for one whose writer was not done, or is at work."""

    @property
    def name(self) -> str:
        """As rows name it."""
        return f"{self.stage}/{self.key}"


class StageFiles(Mapping[str, bytes]):
    """A stage's files; each is read, and its bytes are checked, when it is asked for."""

    def __init__(
        self, objects: Objects, stage: str, key: str, entries: Mapping[str, dict[str, Any]]
    ) -> None:
        self._objects, self._stage, self._key, self._entries = objects, stage, key, entries

    def __getitem__(self, name: str) -> bytes:
        """Returns a file's bytes.

        Raises:
            DamagedStage: they are not those that were written; the stage then no longer exists.
        """
        entry = self._entries[name]
        content = self._objects.get(_path(self._stage, self._key, entry["object"]))
        if content is None or _digest(content) != entry["sha256"]:
            self._objects.delete(_path(self._stage, self._key, "manifest.json"))
            raise DamagedStage(f"stage {self._stage} {self._key}: {name} is damaged")
        return content

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


class StageWriter:
    """Writes a stage's files one by one; the stage exists once `finish` was called."""

    def __init__(self, objects: Objects, stage: str, key: str) -> None:
        self._objects, self._stage, self._key = objects, stage, key
        self._entries: dict[str, dict[str, Any]] = {}

    def add(self, name: str, content: bytes) -> None:
        """Writes one file."""
        digest = _digest(content)
        stored = f"{digest[:16]}-{name}"
        # Overwriting heals a damaged file; equal names hold equal bytes.
        self._objects.put(_path(self._stage, self._key, stored), content)
        self._entries[name] = {"object": stored, "size": len(content), "sha256": digest}

    def finish(self) -> bool:
        """Writes the manifest; False if another writer's stage was there first, and stays."""
        manifest = {"stage": self._stage, "key": self._key, "files": self._entries}
        text = json.dumps(manifest, indent=1, sort_keys=True)
        path = _path(self._stage, self._key, "manifest.json")
        return self._objects.put_new(path, text.encode())


def _path(stage: str, key: str, name: str) -> str:
    return f"stages/{stage}/{key}/{name}"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
