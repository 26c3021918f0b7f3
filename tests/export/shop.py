"""Small exports to look at: pocket models pruned and, without training, as if repaired."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ressa.export import Unmerged, certificate, merged, write
from ressa.models import VLM, load_vlm
from ressa.prune import PackedMasks, apply_masks, prune_tower
from ressa.prune.magnitude import Magnitude
from ressa.repair import Adapters, attach
from ressa.sparsity import TOWERS, Target
from ressa.spec import ModelRef, Rank, Repair

REPAIR = Repair(rank=Rank(vision=2, language=2, connector=2), steps=1, batch_size=4)
ABOUT: dict[str, Any] = {
    "sweep": "small",
    "trial": "t000",
    "recipe": {tower: {"method": "magnitude", "target": "0.5", "group": "row"} for tower in TOWERS}
    | {"calibration": {"samples": 1, "task": "easy-vqa", "seed": 0, "activations": "dense"}},
    "scores": [],
    "made_by": {"ressa": "0"},
    "checked": {"how": "it was not"},
}


def pruned(model: ModelRef, *, vision: str = "2:4", repair: Repair | None = REPAIR) -> Unmerged:
    """Prunes a model by magnitude, and gives what repair would train values as if it had."""
    vlm = load_vlm(model)
    masks, layers = PackedMasks(), []
    for tower, target in (("vision", vision), ("language", "0.5")):
        found = prune_tower(
            vlm.model,
            vlm.towers.inventory.tower(tower),
            Magnitude(),
            target=Target.parse(target),
        )
        masks |= found.masks
        layers += found.layers
    apply_masks(vlm.model, masks)
    adapters = Adapters({})
    if repair is not None:
        adapters = attach(vlm.model, masks, vlm.towers, repair, seed=0)
        generator = torch.Generator().manual_seed(0)
        for parameter in adapters.parameters():
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
    return Unmerged(
        vlm=vlm,
        model=model,
        masks=masks,
        layers=tuple(layers),
        changed=frozenset(),
        adapters=adapters,
        repair=repair,
    )


def export(
    target: Path, unmerged: Unmerged, *, form: Any = "merged", shard: str = "5GB"
) -> dict[str, Any]:
    """Writes an export, its merge compared on random inputs alone."""
    proof = merged(unmerged, lambda: torch.zeros(1), form)
    return write(target, unmerged, proof, ABOUT, form=form, shard=shard)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Reads all tensors of a model's folder."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        found |= load_file(path)
    return found


def change(path: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Edits the tensors of a file, whose header stays as it is otherwise."""
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata=header.get("__metadata__"))


def reseal(folder: Path) -> None:
    """Does what a forger would: makes the certificate's hashes those of the files."""
    said = certificate.read(folder)
    files = certificate.files_of(folder)
    said["files"] = {
        name: {"bytes": path.stat().st_size, "sha256": certificate.file_hash(path)}
        for name, path in files.items()
    }
    said["tensors"] = {
        name: dict(certificate.tensors_of(path))
        for name, path in files.items()
        if name.endswith(".safetensors")
    }
    certificate.write(folder, said | {"digest": certificate.digest(said)})


def logits(vlm: VLM) -> torch.Tensor:
    """Asks a model something that every small model understands."""
    from ressa.data.easy_vqa import EasyVQA

    task = EasyVQA()
    batch = vlm.encode(task.examples("validation", 4), task.image, answers=True)
    with torch.no_grad():
        return vlm.answer_logits(batch)[0]
