"""What an export says of itself, matrix by matrix, so that anybody can count again.

`certificate.json` is one JSON object. Its `digest` is the SHA-256 of all else in it, so that an
edit shows; it is no signature: who must know whom an export is from compares the digest with the
one that the exporter named.

Dimensions: out, in = weight rows and columns of one linear layer; probe = random inputs to it.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from safetensors import safe_open
from torch import Tensor, nn

from ressa.errors import VerificationError
from ressa.memory import bytes_of
from ressa.prune import mask_hash
from ressa.repair import AdaptedLinear
from ressa.sparsity import Pattern, Target

NAME = "certificate.json"
VERSION = 1
_PROBES = 8  # inputs to each layer
_NOT_OURS = frozenset({".cache", ".git", ".gitattributes", ".DS_Store"})  # copying brings them


def digest(certificate: Mapping[str, Any]) -> str:
    """Hashes all of a certificate but its digest."""
    rest = {name: value for name, value in certificate.items() if name != "digest"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def read(folder: Path) -> dict[str, Any]:
    """Reads a folder's certificate.

    Raises:
        VerificationError: there is none, or it cannot be read.
    """
    path = folder / NAME
    if not path.is_file():
        raise VerificationError(
            f"{folder} has no {NAME}: it is no export of ressa, or the file was lost."
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        version = found["certificate"]
    except (ValueError, KeyError, TypeError, RecursionError, OSError) as error:
        raise VerificationError(f"{path} cannot be read: {error}") from error
    if version != VERSION:
        raise VerificationError(
            f"{path} is of version {version}; this ressa reads {VERSION}. Upgrade ressa."
        )
    return dict(found)


def write(folder: Path, certificate: Mapping[str, Any]) -> None:
    """Writes a folder's certificate."""
    text = json.dumps(certificate, indent=1, allow_nan=False)
    (folder / NAME).write_text(text + "\n", encoding="utf-8")


def matrix(
    weight: Float[Tensor, "out in"], keep_mask: Bool[Tensor, "out in"], pattern: str | None
) -> dict[str, Any]:
    """Says what a pruned matrix is: its mask, its zeros, its weights' hash.

    `stray` counts weights at pruned places that are not exactly +0.0, `negative_zeros` those of
    them that are -0.0; `pattern_broken` groups of M inputs with more than N weights that are not
    zero.
    """
    weight, pruned = weight.detach().cpu(), ~keep_mask
    zero = weight == 0
    negative = zero & weight.signbit() & pruned
    found = {
        "mask": mask_hash({"": keep_mask}),
        "weights": tensor_hash(weight),
        "norm": float(torch.linalg.vector_norm(weight, dtype=torch.float64)),
        "pruned": int(pruned.sum()),
        "zeros": int(zero.sum()),
        "stray": int((pruned & ~zero).sum() + negative.sum()),
        "negative_zeros": int(negative.sum()),
    }
    wanted = None if pattern is None else Target.parse(pattern).pattern
    if wanted is not None:
        found["pattern_broken"] = _broken(~zero, wanted)
    return found


def totals(matrices: Sequence[Mapping[str, Any]], tower: str) -> dict[str, Any]:
    """Adds up what is said of a tower's matrices."""
    own = [found for found in matrices if found["tower"] == tower]
    weights = sum(found["rows"] * found["columns"] for found in own)
    pruned = sum(found["pruned"] for found in own)
    return {
        "weights": weights,
        "pruned": pruned,
        "zeros_before_merge": sum(found["zeros_before_merge"] for found in own),
        "zeros": sum(found["zeros"] for found in own),
        "sparsity": pruned / weights,
        "patterns": sorted({found["pattern"] for found in own if found["pattern"]}),
    }


def _broken(is_set: Bool[Tensor, "out in"], pattern: Pattern) -> int:
    groups = is_set.reshape(-1, pattern.group)
    return int((groups.sum(dim=1) > pattern.kept).sum())


@torch.no_grad()
def probed(layers: Mapping[str, nn.Module]) -> dict[str, Float[Tensor, "probe out"]]:
    """Asks each layer alone about random inputs that follow from its size, in the type it reads."""
    answers = {}
    for name, layer in layers.items():
        weight = layer.get_parameter("weight")
        generator = torch.Generator().manual_seed(weight.shape[1])
        inputs = torch.randn(_PROBES, weight.shape[1], generator=generator)
        dtype = layer.reads if isinstance(layer, AdaptedLinear) else weight.dtype
        answers[name] = layer(inputs.to(weight.device, dtype)).float().cpu()
    return answers


def gap(before: Float[Tensor, "probe out"], after: Float[Tensor, "probe out"]) -> dict[str, float]:
    """Says how far a merged layer's answers are from its adapter's, and how large those are."""
    return {"gap": float((after - before).abs().max()), "scale": float(before.abs().max())}


def tensor_hash(tensor: Tensor) -> str:
    """Returns the SHA-256 of a tensor's bytes."""
    return hashlib.sha256(bytes_of(tensor)).hexdigest()


def tensors_of(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields what a safetensors file holds, one tensor at a time."""
    with safe_open(path, framework="pt") as file:
        for name in sorted(file.keys()):
            tensor = file.get_tensor(name)
            yield (
                name,
                {
                    "sha256": tensor_hash(tensor),
                    "shape": list(tensor.shape),
                    "dtype": str(tensor.dtype).removeprefix("torch."),
                },
            )


def file_hash(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_of(folder: Path) -> dict[str, Path]:
    """Lists a folder's files but the certificate, by their names in it."""
    return {
        name: path
        for path in sorted(folder.rglob("*"))
        if (not path.is_dir() or path.is_symlink())
        and (name := path.relative_to(folder).as_posix()) != NAME
        and name.split("/")[0] not in _NOT_OURS
    }
