"""Work that trials share, by content: `stages/<stage>/<key>/` holds files and a manifest.

A stage exists once its manifest does, and the manifest is written last and by exclusive creation:
of two writers the first one counts. Files are stored under their hash: the second writer cannot mix
its bytes into the first one's stage, and a killed writer leaves nothing that is ever read.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from typing import Any

from ressa.store.objects import Objects

log = logging.getLogger(__name__)


class StageStore:
    """The stages of one store."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def get(self, stage: str, key: str) -> dict[str, bytes] | None:
        """Returns a stage's files, or None if it does not exist, or no longer as it was written."""
        manifest = self._manifest(stage, key)
        if manifest is None:
            return None
        files = {}
        for name, entry in manifest["files"].items():
            content = self._objects.get(_path(stage, key, entry["object"]))
            if content is None or _digest(content) != entry["sha256"]:
                log.warning("stage %s %s: %s is damaged; doing it again", stage, key, name)
                self._objects.delete(_path(stage, key, "manifest.json"))
                return None
            files[name] = content
        return files

    def meta(self, stage: str, key: str) -> dict[str, Any] | None:
        """Returns what was noted when the stage was made, or None if it does not exist."""
        manifest = self._manifest(stage, key)
        return None if manifest is None else dict(manifest["meta"])

    def put(
        self,
        stage: str,
        key: str,
        files: Mapping[str, bytes],
        meta: Mapping[str, Any] | None = None,
    ) -> bool:
        """Stores a stage.

        Returns:
            False if another writer's stage was there first: that one stays, and `get` returns it.
        """
        entries = {}
        for name, content in files.items():
            digest = _digest(content)
            stored = f"{digest[:16]}-{name}"
            # Overwriting heals a damaged file; equal names hold equal bytes.
            self._objects.put(_path(stage, key, stored), content)
            entries[name] = {"object": stored, "size": len(content), "sha256": digest}
        manifest = {"stage": stage, "key": key, "files": entries, "meta": dict(meta or {})}
        text = json.dumps(manifest, indent=1, sort_keys=True)
        return self._objects.put_new(_path(stage, key, "manifest.json"), text.encode())

    def keys(self, stage: str) -> list[str]:
        """Returns the keys under which a stage was made, or begun to be, sorted."""
        return self._objects.folders(f"stages/{stage}")

    def remove(self, stage: str, key: str) -> None:
        """Removes a stage; none to remove is fine."""
        # From then on it does not exist, whatever happens to the rest.
        self._objects.delete(_path(stage, key, "manifest.json"))
        self._objects.delete_folder(f"stages/{stage}/{key}")

    def _manifest(self, stage: str, key: str) -> dict[str, Any] | None:
        path = _path(stage, key, "manifest.json")
        content = self._objects.get(path)
        if content is None:
            return None
        try:
            manifest = json.loads(content)
            if isinstance(manifest["files"], dict) and isinstance(manifest["meta"], dict):
                return dict(manifest)
        except (ValueError, KeyError, TypeError):
            pass
        log.warning("stage %s %s: its manifest is damaged; doing it again", stage, key)
        self._objects.delete(path)
        return None


def _path(stage: str, key: str, name: str) -> str:
    return f"stages/{stage}/{key}/{name}"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
