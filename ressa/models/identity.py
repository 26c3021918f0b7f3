"""Which weights a model's name stands for, told without torch."""

import hashlib
import json
import logging
import os
from pathlib import Path

from ressa.catalog import MODELS
from ressa.errors import SpecError, UnknownNameError
from ressa.spec import ModelRef

log = logging.getLogger(__name__)

_HUB_TIMEOUT = 10  # seconds
_READ_WHOLE = 1 << 30  # bytes; larger files are told apart by size and time, not read through
_SAMPLES, _SAMPLE = 256, 1 << 16  # places of those at which copies are compared; bytes of each
_PARTS = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")
_PROCESSORS = ("processor_config.json", "preprocessor_config.json")
_OURS = ("inventory.json", "training.json")  # say something about the model, but are not read by it


def fingerprint(ref: ModelRef, *, of_copies: bool = False) -> str:
    """Hashes a model's files, so that two models under one name are never taken for one.

    Args:
        ref: the model; of the hub it is told by its id and revision.
        of_copies: whether copies have one fingerprint. Of a large file some places are then read;
            otherwise its time counts, by which a small change is seen too.
    """
    folder = _folder(ref.id)
    if not folder.is_dir():
        return f"hub:{ref.id}@{ref.revision or 'newest'}"
    digest = hashlib.sha256()
    for path in _files(folder):
        digest.update(path.name.encode())
        stat = path.stat()
        if stat.st_size <= _READ_WHOLE:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        elif of_copies:
            digest.update(_sampled(path, stat.st_size))
        else:
            digest.update(f"{stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()[:32]


def _sampled(path: Path, size: int) -> bytes:
    """Hashes a file's size and what stands at even distances in it."""
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for number in range(_SAMPLES):
            file.seek(size * number // _SAMPLES)
            digest.update(file.read(_SAMPLE))
    return digest.digest()


def file_hashes(ref: ModelRef) -> dict[str, str]:
    """Returns the SHA-256 of each of a model's files, read through; none where they are not here.

    Of a hub model those of the local copy.
    """
    folder = local_copy(ref)
    hashes = {}
    for path in [] if folder is None else _files(folder):
        with path.open("rb") as file:
            hashes[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def local_copy(ref: ModelRef) -> Path | None:
    """Returns the folder of this machine that has a model's files, or None; nobody is asked."""
    folder = _folder(ref.id)
    if folder.is_dir():
        return folder
    try:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(ref.id, "config.json", revision=ref.revision)
    except (ImportError, ValueError):  # a folder that is not here can be no hub model
        return None
    return Path(found).parent if isinstance(found, str) else None


def checked_folder(name: str) -> Path | None:
    """Says where a model's files lie, or None if it is to come from the hub.

    Raises:
        SpecError: they are not there, or it can be no name of a model.
    """
    folder = _folder(name)
    if not folder.is_dir() and not _ships(name):
        if name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise SpecError(
                f"model {name}: there is no such folder. Write a folder that save_pretrained "
                f"wrote, a hub id organisation/name, or one of: {', '.join(MODELS)}."
            )
        if "/" not in name:
            raise UnknownNameError("model", name, known=MODELS)
        return None
    if not (folder / "config.json").is_file():
        raise SpecError(
            f"model {name}: {folder} has no config.json. Write the folder that the model's and the "
            "processor's save_pretrained wrote."
        )
    return folder


def _ships(name: str) -> bool:
    return name in MODELS and not MODELS[name].is_on_hub


def _folder(name: str) -> Path:
    return MODELS[name].folder if _ships(name) else Path(os.path.expanduser(name))


def _files(folder: Path) -> list[Path]:
    files = {path for pattern in _PARTS for path in folder.glob(pattern)}
    return sorted(path for path in files if path.name not in _OURS)


def is_on_hub(ref: ModelRef) -> bool:
    """Whether a model comes from the hub, and not with ressa or from a folder."""
    if ref.id in MODELS:
        return MODELS[ref.id].is_on_hub
    return not os.path.isdir(_folder(ref.id))


def pinned(ref: ModelRef, *, weights: bool = False) -> tuple[ModelRef, bool]:
    """Names the commit that a hub model's revision stands for, in one request without retries.

    Args:
        ref: a hub model.
        weights: whether its weights are wanted, which must then be safetensors.

    Returns:
        The model with its commit, and whether the hub answered. Where it did not, or must not be
        asked (HF_HUB_OFFLINE), the commit is that of the local copy, if there is one.

    Raises:
        SpecError: the hub has no such model or revision, or wants another account; or its weights
            are pickled.
    """
    try:
        from huggingface_hub import HfApi, constants, try_to_load_from_cache
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError:  # a machine that only plans
        return ref, False
    if not constants.HF_HUB_OFFLINE:
        try:
            info = HfApi().model_info(ref.id, revision=ref.revision, timeout=_HUB_TIMEOUT)
        except HfHubHTTPError as error:
            reason = " ".join(str(error).split())[:300]
            raise SpecError(f"model {ref.id}, revision {ref.revision}: {reason}") from error
        except Exception as error:  # whatever the network has to say; each HTTP client has its own
            log.warning("the hub does not answer (%s): using the local copy, if any", error)
        else:
            files = [file.rfilename for file in info.siblings or ()]
            if weights and not any(name.endswith(".safetensors") for name in files):
                raise SpecError(_pickled(ref.id, files))
            return ref.model_copy(update={"revision": info.sha}), True
    found = try_to_load_from_cache(ref.id, "config.json", revision=ref.revision)
    if isinstance(found, str):  # …/snapshots/<commit>/config.json
        return ref.model_copy(update={"revision": Path(found).parent.name}), False
    return ref, False


def refuse_incomplete(name: str, folder: Path) -> None:
    """Refuses a folder that holds no whole safetensors, or no processor; weights are not read.

    Raises:
        SpecError: what is missing or damaged is named.
    """
    from safetensors import SafetensorError, safe_open

    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise SpecError(_pickled(name, [path.name for path in folder.iterdir()]))
    index = folder / "model.safetensors.index.json"
    if index.is_file() and not (folder / "model.safetensors").is_file():
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if missing := sorted(shards.difference(path.name for path in weights)):
            raise SpecError(
                f"model {name}: {len(missing)} of its {len(shards)} files of weights are not in "
                f"{folder}, such as {missing[0]}. Copy it again."
            )
    for path in weights:
        try:
            with safe_open(path, "numpy"):  # whether the file is as long as its header says
                pass
        except (OSError, SafetensorError) as error:
            raise SpecError(
                f"model {name}: {path} is damaged, or was not copied whole: {error}."
            ) from error
    if not any((folder / file).is_file() for file in _PROCESSORS):
        raise SpecError(
            f"model {name}: {folder} holds no processor ({' or '.join(_PROCESSORS)}). Write it "
            "there too: AutoProcessor.from_pretrained(…).save_pretrained(FOLDER)."
        )


def _pickled(name: str, files: list[str]) -> str:
    pickled = [file for file in files if file.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    there = f"only {', '.join(sorted(pickled)[:3])}" if pickled else "no weights at all"
    return (
        f"model {name} has no *.safetensors, {there}. Pickled weights can run code and cannot be "
        "mapped into memory: load them where you trust them; save_pretrained writes safetensors."
    )
