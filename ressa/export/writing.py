"""Writes an export: the model, its masks, its card, its certificate; then checks what it wrote."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from ressa.errors import SpecError, VerificationError
from ressa.export import certificate
from ressa.export.card import model_card
from ressa.export.checking import ADAPTERS, CARD, MASKS, WEIGHTS, faults
from ressa.export.folder import new_folder
from ressa.models import VLM
from ressa.models.identity import file_hashes
from ressa.models.loading import no_progress_bars
from ressa.prune import LayerReport, PackedMasks, mask_hash
from ressa.prune.masks import mask_bits
from ressa.prune.packing import pack
from ressa.repair import Adapters, merge
from ressa.sparsity import TOWERS
from ressa.spec import ModelRef, Repair

Format = Literal["merged", "adapters"]

_ROOM = 64 * 2**20  # bytes for what is not weights: tokenizer, card, certificate


@dataclass(frozen=True, slots=True, kw_only=True)
class Unmerged:
    """A pruned model with what repair trained in place, not merged yet."""

    vlm: VLM
    model: ModelRef
    """The dense model that it came from."""
    masks: PackedMasks
    layers: tuple[LayerReport, ...]
    """Of every prunable layer, in the order of the model's inventory."""
    changed: frozenset[str]
    """Layers whose weights that stay are not the dense ones."""
    adapters: Adapters
    repair: Repair | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What was found of a model before its merge and after, and what the merge makes be lost."""

    learnt: bytes | None
    """What repair trained, if it is to be written."""
    learnt_hash: str | None
    """The hash of what repair trained; None without repair."""
    kept: Mapping[str, Tensor]
    """Weights that stay of the changed layers, before the merge."""
    matrices: list[dict[str, Any]]
    connector: Mapping[str, dict[str, float]]
    """How far each merged layer that is not pruned is from its adapter."""
    merge_gap: float | None
    """Largest difference of an answer's logits; None without repair."""


def merged(unmerged: Unmerged, probe: Callable[[], Tensor], form: Format = "merged") -> Proof:
    """Merges a model, which is then a plain one, and compares it with what it was before.

    Args:
        unmerged: is changed.
        probe: asks the model something, and returns logits.
        form: what will be written of it.

    Raises:
        SpecError: there are no adapters to write.
        VerificationError: a pruned weight is not zero.
    """
    adapters, model = unmerged.adapters, unmerged.vlm.model
    if form == "adapters" and not adapters.are_updates:
        raise SpecError(
            "--format adapters: masked_finetune trains the weights themselves, so that there is "
            "nothing small to write. Leave --format out."
        )
    layers = {layer.name: model.get_submodule(layer.name) for layer in unmerged.layers}
    trained = {**adapters.layers}
    is_written = form == "adapters"
    learnt = adapters.to_bytes() if trained and is_written else None
    learnt_hash = adapters.digest() if trained else None
    kept = _kept(unmerged) if is_written else {}
    zeros = {
        name: int((layer.get_parameter("weight") == 0).sum()) for name, layer in layers.items()
    }
    logits, before = probe() if trained else None, certificate.probed(trained)
    merge(adapters)
    after = certificate.probed(trained)
    gaps = {name: certificate.gap(before[name], after[name]) for name in trained}
    matrices = [
        _matrix(report, layers[report.name].get_parameter("weight"), unmerged.masks, gaps)
        | {"zeros_before_merge": zeros[report.name]}
        for report in unmerged.layers
    ]
    stray = sum(found["stray"] for found in matrices)
    if stray:
        raise VerificationError(f"{stray} pruned weights are not exactly zero after the merge.")
    return Proof(
        learnt=learnt,
        learnt_hash=learnt_hash,
        kept=kept,
        matrices=matrices,
        connector={name: gap for name, gap in gaps.items() if name not in layers},
        merge_gap=None if logits is None else (probe() - logits).abs().max().item(),
    )


def write(
    target: Path,
    unmerged: Unmerged,
    proof: Proof,
    about: Mapping[str, Any],
    *,
    form: Format = "merged",
    shard: str = "5GB",
) -> dict[str, Any]:
    """Writes a merged model as a folder, which appears whole or not at all.

    Args:
        target: must not exist, or be empty.
        unmerged: what `merged` has merged.
        proof: what it found, for the same form.
        about: what the certificate says of where the model comes from: plain values.
        form: what is written: the merged model, or masks and adapters alone.
        shard: the most that one file of weights holds.

    Returns:
        The certificate.

    Raises:
        ConflictError: the target is not empty. StoreError: it cannot be written.
        VerificationError: what was written is not what it should be; nothing is left of it.
    """
    content = {
        "certificate": certificate.VERSION,
        "format": form,
        **about,
        "model": unmerged.model.model_dump(mode="json"),
        "model_files": file_hashes(unmerged.model),
        "repair": None if unmerged.repair is None else unmerged.repair.model_dump(mode="json"),
        "mask_hash": mask_hash(unmerged.masks),
        "merge_gap": proof.merge_gap,
        "towers": {tower: certificate.totals(proof.matrices, tower) for tower in TOWERS},
        "connector": proof.connector,
        "matrices": proof.matrices,
    }
    with new_folder(target, needs=_size(unmerged, form, proof)) as folder:
        _write_weights(folder, unmerged, proof, form, shard)
        (folder / CARD).write_text(model_card(content), encoding="utf-8")
        done = content | _hashes(folder)
        done["digest"] = certificate.digest(done)
        certificate.write(folder, done)
        found = faults(folder)
        if found:
            raise VerificationError(_failed(found))
    return done


def _write_weights(
    folder: Path, unmerged: Unmerged, proof: Proof, form: Format, shard: str
) -> None:
    """Writes the model, or what stands for it, and the masks."""
    if form == "merged":
        with no_progress_bars():
            unmerged.vlm.save(folder, shard)
    if proof.learnt is not None:
        (folder / ADAPTERS).write_bytes(proof.learnt)
    if proof.kept:
        (folder / WEIGHTS).write_bytes(pack(proof.kept, sorted(proof.kept)))
    bits = {name: mask_bits(mask) for name, mask in unmerged.masks.items()}
    shapes = {report.name: [report.rows, report.columns] for report in unmerged.layers}
    (folder / MASKS).write_bytes(pack(bits, shapes))


def _hashes(folder: Path) -> dict[str, Any]:
    """Says what each tensor and each file of a folder is."""
    files = certificate.files_of(folder)
    return {
        "tensors": {
            name: dict(certificate.tensors_of(path))
            for name, path in files.items()
            if name.endswith(".safetensors")
        },
        "files": {
            name: {"bytes": path.stat().st_size, "sha256": certificate.file_hash(path)}
            for name, path in files.items()
        },
    }


def _kept(unmerged: Unmerged) -> dict[str, Tensor]:
    """The weights that stay, in row-major order, of layers where they are not the dense ones."""
    model, masks = unmerged.vlm.model, unmerged.masks
    return {
        name: model.get_parameter(f"{name}.weight").detach().cpu()[masks[name]]
        for name in sorted(unmerged.changed)
    }


def _matrix(
    report: LayerReport, weight: Tensor, masks: PackedMasks, gaps: Mapping[str, dict[str, float]]
) -> dict[str, Any]:
    return {
        "name": report.name,
        "tower": report.tower,
        "rows": report.rows,
        "columns": report.columns,
        "dtype": str(weight.dtype).removeprefix("torch."),
        "pattern": report.pattern,
        "merge": gaps.get(report.name),
        **certificate.matrix(weight, masks[report.name], report.pattern),
    }


def _size(unmerged: Unmerged, form: Format, proof: Proof) -> int:
    masks = sum(report.rows * report.columns for report in unmerged.layers) // 8
    if form == "merged":
        return int(unmerged.vlm.model.get_memory_footprint()) + masks + _ROOM
    kept = sum(weights.nbytes for weights in proof.kept.values())
    return kept + len(proof.learnt or b"") + masks + _ROOM


def _failed(found: list[str]) -> str:
    listed = "\n".join(f"- {fault}" for fault in found)
    return f"what was written is not what it should be, and was removed:\n{listed}"
