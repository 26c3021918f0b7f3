"""Checks an export against its certificate: offline, on a CPU, without the store.

Every file, every tensor and every pruned matrix is looked at, and each fault is named. Matrices are
taken from the model as plain transformers loads it, so that what is checked is what is used.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from jaxtyping import Bool
from torch import Tensor, nn

from ressa.errors import VerificationError
from ressa.export import certificate
from ressa.models import VLM, load_vlm
from ressa.models.identity import file_hashes, local_copy
from ressa.prune import apply_masks, mask_hash
from ressa.prune.masks import mask_of_bits
from ressa.prune.packing import unpack
from ressa.repair import Adapters, attach, merge
from ressa.sparsity import TOWERS, Inventory
from ressa.spec import ModelRef, Repair

ADAPTERS = "adapters.safetensors"
CARD = "README.md"
MASKS = "masks.safetensors"
WEIGHTS = "weights.safetensors"

_SLACK = 1e-5  # of a layer's largest answer: what sums in another order may differ by
_LISTED = 20  # faults of one kind that are named one by one


def verify(
    folder: Path, *, base: str | None = None, trust_remote_code: bool = False
) -> dict[str, Any]:
    """Returns an export's certificate once all that it says was found true.

    Args:
        folder: what `write` wrote, wherever it was moved.
        base: where the dense model of an export of adapters is, if not where it was.
        trust_remote_code: whether Python code that the model brings may run, if it is said to.

    Raises:
        VerificationError: something is not as it says; each fault has a line.
    """
    found = faults(folder, base=base, trust_remote_code=trust_remote_code)
    if found:
        count = "1 fault" if len(found) == 1 else f"{len(found)} faults"
        listed = "\n".join(f"- {fault}" for fault in found)
        raise VerificationError(f"{folder} is not what its certificate says: {count}\n{listed}")
    return certificate.read(folder)


def load(folder: Path | str, *, base: str | None = None, trust_remote_code: bool = False) -> VLM:
    """Loads an export of either format as a plain, merged model.

    Args:
        folder: what `write` wrote; it is not verified.
        base: as of `verify`.
        trust_remote_code: as of `verify`.

    Raises:
        VerificationError: it has no certificate, or is of other layers than it says.
        SpecError: the model cannot be loaded.
    """
    folder = Path(folder)
    said = certificate.read(folder)
    if said["format"] == "merged":
        size = said["model"]["image_size"]
        return load_vlm(
            _own_model(folder, said, trust_remote_code).model_copy(update={"image_size": size})
        )
    vlm, adapters = _adapted(folder, said, base, trust_remote_code)
    merge(adapters)
    return vlm


def faults(folder: Path, *, base: str | None = None, trust_remote_code: bool = False) -> list[str]:
    """Lists what is not as an export's certificate says, each in a sentence.

    Raises:
        VerificationError: there is no certificate to check by.
    """
    said, found = certificate.read(folder), []
    try:
        for fault in _faults(folder, said, base, trust_remote_code):
            found.append(fault)
    except Exception as error:  # a stranger may have written anything there
        found.append(
            f"{certificate.NAME} lacks what a certificate says, or says it otherwise: {error}"
        )
    return found


def _faults(folder: Path, said: dict[str, Any], base: str | None, trust: bool) -> Iterator[str]:
    if said.get("digest") != certificate.digest(said):
        yield f"{certificate.NAME} was edited: its digest is not that of what it says"
    yield from _of_files(folder, said["files"])
    if not all(path.is_file() for path in certificate.files_of(folder).values()):
        return  # it was named; a pipe would be waited for
    yield from _of_tensors(folder, said["tensors"])
    masks, found = _read_masks(folder, said["matrices"])
    yield from found
    if masks and mask_hash(masks) != said["mask_hash"]:
        yield f"{MASKS} holds other masks than those of the trial"
    if said["format"] == "adapters":
        yield from _of_adapters(folder, said, base, masks, trust)
        return
    try:
        vlm = load_vlm(_own_model(folder, said, trust))
    except Exception as error:  # each of the libraries has its own
        yield f"transformers cannot load it: {' '.join(str(error).split())}"
        return
    yield from _of_matrices(vlm.model, said["matrices"], masks, exact=True)
    yield from _of_towers(said, vlm.towers.inventory)


def _of_files(folder: Path, said: Mapping[str, dict[str, Any]]) -> Iterator[str]:
    there = certificate.files_of(folder)
    yield from _named("a file is missing", [name for name in said if name not in there])
    yield from _named("a file is too many", [name for name in there if name not in said])
    for name, path in there.items():
        if name not in said:
            continue
        if not path.is_file():
            yield f"{name} is no file, or a link to none"
            continue
        size = path.stat().st_size
        if size != said[name]["bytes"]:
            yield f"{name} has {size:,} bytes, not {said[name]['bytes']:,}"
            continue
        try:
            found = certificate.file_hash(path)
        except OSError as error:
            yield f"{name} cannot be read: {error.strerror}"
            continue
        if found != said[name]["sha256"]:
            yield f"{name} is not the file that was exported"


def _of_tensors(folder: Path, said: Mapping[str, dict[str, Any]]) -> Iterator[str]:
    there = certificate.files_of(folder)  # a name in a certificate may point anywhere
    for name in said:
        path = there.get(name)
        if path is None or not path.is_file():
            continue  # it was named already
        try:
            found = dict(certificate.tensors_of(path))
        except (safetensors.SafetensorError, OSError, ValueError) as error:
            yield f"{name} cannot be read: {error}"
            continue
        wanted = said[name]
        yield from _named(f"{name} lacks a tensor", [one for one in wanted if one not in found])
        yield from _named(
            f"{name} has a tensor too many", [one for one in found if one not in wanted]
        )
        changed = [one for one in wanted if one in found and found[one] != wanted[one]]
        yield from _named(f"{name}: a tensor is not the one that was exported", changed)


def _read_masks(
    folder: Path, said: list[dict[str, Any]]
) -> tuple[dict[str, Bool[Tensor, "out in"]], list[str]]:
    """Reads the masks that can be read, and says what is wrong with others."""
    masks: dict[str, Tensor] = {}
    found = []
    try:
        bits, _ = unpack((folder / MASKS).read_bytes())
    except Exception:  # whatever a decoder stumbles over
        return {}, [f"{MASKS} cannot be read, so that no zero can be checked"]
    for matrix in said:
        name, rows, columns = matrix["name"], matrix["rows"], matrix["columns"]
        if name not in bits or bits[name].numel() != -(-rows * columns // 8):
            found.append(f"{name}: {MASKS} holds no mask of {rows} × {columns} for it")
            continue
        masks[name] = mask_of_bits(bits[name], rows, columns)
        if mask_hash({"": masks[name]}) != matrix["mask"]:
            found.append(f"{name}: its mask is not the one that it was pruned by")
    return masks, found


def _of_matrices(
    model: nn.Module,
    said: list[dict[str, Any]],
    masks: Mapping[str, Bool[Tensor, "out in"]],
    *,
    exact: bool,
) -> Iterator[str]:
    """Counts each matrix again.

    Args:
        exact: whether the weights must be those exported bit by bit; else up to rounding, as when
            they were merged on another machine.
    """
    for matrix in said:
        name = matrix["name"]
        try:
            weight = model.get_parameter(f"{name}.weight")
        except AttributeError:
            yield f"{name}: the model has no such layer"
            continue
        shape, dtype = [matrix["rows"], matrix["columns"]], matrix["dtype"]
        if list(weight.shape) != shape or str(weight.dtype) != f"torch.{dtype}":
            yield f"{name}: is {list(weight.shape)} of {weight.dtype}, not {shape} of torch.{dtype}"
            continue
        if name not in masks:
            continue  # it was named already
        found = certificate.matrix(weight, masks[name], matrix["pattern"])
        if found["stray"]:
            yield (
                f"{name}: {found['stray']:,} pruned weights are not exactly zero, "
                f"{found['negative_zeros']:,} of them -0.0"
            )
        if found.get("pattern_broken"):
            yield f"{name}: {found['pattern_broken']:,} groups break {matrix['pattern']}"
        if found["pruned"] != matrix["pruned"]:
            yield f"{name}: its mask prunes {found['pruned']:,} weights, not {matrix['pruned']:,}"
        if exact and found["weights"] != matrix["weights"]:
            yield f"{name}: its weights are not those that were exported"
        if exact and found["zeros"] != matrix["zeros"]:
            yield f"{name}: {found['zeros']:,} of its weights are zero, not {matrix['zeros']:,}"
        if not math.isfinite(found["norm"]):
            yield f"{name}: not all of its weights are finite"
        elif not abs(found["norm"] - matrix["norm"]) <= _SLACK * found["norm"]:  # NaN is refused
            yield f"{name}: its weights' norm is {found['norm']:.6g}, not {matrix['norm']:.6g}"


def _of_towers(said: dict[str, Any], inventory: Inventory) -> Iterator[str]:
    """Adds up what is said of the matrices, which was found true, for each tower: all its layers.

    Args:
        said: the certificate.
        inventory: of the model that was checked.
    """
    matrices, towers = said["matrices"], said["towers"]
    counted = Counter((matrix["tower"], matrix["name"]) for matrix in matrices)
    there = Counter((layer.tower, layer.name) for layer in inventory.layers)
    for fault, layers in (
        (f"{certificate.NAME} leaves out a layer", there - counted),
        (f"{certificate.NAME} counts a layer that is another tower's, or twice", counted - there),
    ):
        yield from _named(fault, [f"{name} of {tower}" for tower, name in layers])
    yield from _named(f"{certificate.NAME} has a tower too many", [*towers.keys() - set(TOWERS)])
    if counted != there:
        return
    for tower in TOWERS:
        for name, found in certificate.totals(matrices, tower).items():
            if towers[tower][name] != found:
                yield f"{tower}: {certificate.NAME} says {name} {towers[tower][name]}, not {found}"


def _of_adapters(
    folder: Path,
    said: dict[str, Any],
    base: str | None,
    masks: Mapping[str, Bool[Tensor, "out in"]],
    trust: bool,
) -> Iterator[str]:
    """Merges the adapters into the dense model again, if that is the one, and counts the zeros."""
    model, wanted = _base_model(said, base, trust), said["model_files"]
    there = file_hashes(model)
    if not there:
        yield f"the dense model {model.id} is not here. Name its folder: --base FOLDER"
        return
    others = [name for name in {**wanted, **there} if there.get(name) != wanted.get(name)]
    if others:
        files = "1 file differs" if len(others) == 1 else f"{len(others)} files differ"
        yield f"the dense model {model.id} is another one: {files}, such as {min(others)}"
        return
    try:
        # By its folder: a hub's newest may be another than the copy that was hashed.
        vlm, adapters = _adapted(folder, said, str(local_copy(model)), trust)
    except Exception as error:
        yield f"the adapters do not fit: {' '.join(str(error).split())}"
        return
    layers = {**adapters.layers}
    before = certificate.probed(layers)
    merge(adapters)
    after = certificate.probed(layers)
    recorded = said["connector"] | {one["name"]: one["merge"] for one in said["matrices"]}
    for name in layers:
        found, was = certificate.gap(before[name], after[name]), recorded[name]
        if not found["gap"] <= 2 * was["gap"] + _SLACK * was["scale"]:  # NaN is refused
            yield (
                f"{name}: merged it answers up to {found['gap']:.2g} otherwise than with its "
                f"adapter, not {was['gap']:.2g}"
            )
    yield from _of_matrices(vlm.model, said["matrices"], masks, exact=False)
    yield from _of_towers(said, vlm.towers.inventory)


def _adapted(
    folder: Path, said: dict[str, Any], base: str | None, trust: bool
) -> tuple[VLM, Adapters]:
    """Loads the dense model and makes of it what the folder says, not merged yet."""
    vlm = load_vlm(_base_model(said, base, trust))
    masks, missing = _read_masks(folder, said["matrices"])
    if missing:
        raise VerificationError("\n".join(missing))
    if (folder / WEIGHTS).is_file():
        kept, _ = unpack((folder / WEIGHTS).read_bytes())
        with torch.no_grad():
            for name, values in kept.items():
                vlm.model.get_parameter(f"{name}.weight")[masks[name]] = values
    apply_masks(vlm.model, masks)
    if said["repair"] is None:
        return vlm, Adapters({})
    repair = Repair.model_validate(said["repair"])
    adapters = attach(vlm.model, masks, vlm.towers, repair, seed=repair.seed)
    adapters.load((folder / ADAPTERS).read_bytes())
    return vlm, adapters


def _own_model(folder: Path, said: dict[str, Any], trust: bool) -> ModelRef:
    """The merged model in the folder: its towers are where those of the dense one are."""
    model = _said_model(said, trust)
    # Absolute, lest a folder of that name be taken for a model of the catalog.
    changes = {"id": str(folder.absolute()), "revision": None, "image_size": None}
    return model.model_copy(update=changes)


def _said_model(said: dict[str, Any], trust: bool) -> ModelRef:
    """The dense model, whose code a certificate alone does not let run: it may be a stranger's."""
    model = ModelRef.model_validate(said["model"])
    return model.model_copy(update={"trust_remote_code": model.trust_remote_code and trust})


def _base_model(said: dict[str, Any], base: str | None, trust: bool) -> ModelRef:
    model = _said_model(said, trust)
    return model if base is None else model.model_copy(update={"id": base, "revision": None})


def _named(fault: str, names: list[str]) -> Iterator[str]:
    for name in names[:_LISTED]:
        yield f"{fault}: {name}"
    if len(names) > _LISTED:
        yield f"{fault}: {len(names) - _LISTED} more"
