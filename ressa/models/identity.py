"""Which weights a model's name stands for, told without torch."""

import hashlib
from pathlib import Path

from ressa.catalog import MODELS
from ressa.spec import ModelRef

_READ_WHOLE = 1 << 30  # bytes; larger files are told apart by size and time, not read through
_PARTS = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")
_OURS = ("inventory.json", "training.json")  # say something about the model, but are not read by it


def fingerprint(ref: ModelRef) -> str:
    """Hashes a model's files, so that two models under one name are never taken for one.

    A hub model is told by its id and revision.
    """
    ships = ref.id in MODELS and not MODELS[ref.id].is_on_hub
    folder = MODELS[ref.id].folder if ships else Path(ref.id).expanduser()
    if not folder.is_dir():
        return f"hub:{ref.id}@{ref.revision or 'newest'}"
    digest = hashlib.sha256()
    files = {path for pattern in _PARTS for path in folder.glob(pattern)}
    for path in sorted(path for path in files if path.name not in _OURS):
        digest.update(path.name.encode())
        stat = path.stat()
        if stat.st_size > _READ_WHOLE:
            digest.update(f"{stat.st_size} {stat.st_mtime_ns}".encode())
        else:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:32]
