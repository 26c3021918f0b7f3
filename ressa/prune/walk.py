"""The walk over a tower: for each layer a saliency, then a keep mask of exactly the asked size."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor, nn

from ressa.errors import PruneError
from ressa.prune.masks import Removal, keep_mask, pack_masks, packed_note, unpack_masks
from ressa.prune.method import PruneMethod
from ressa.prune.statistics import InputNorms
from ressa.sparsity import LayerShape, Target, check_pattern, zeros_per_matrix, zeros_per_row

Group = Literal["row", "matrix"]
Masks = dict[str, Bool[Tensor, "_ _"]]
"""A keep mask for each layer, by the layer's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerReport:
    """What one layer was asked to lose, and what its mask takes."""

    name: str
    tower: str
    block: int
    rows: int
    columns: int
    method: str
    group: str
    """Where weights competed: "row", "matrix", or "pattern" when a pattern fixes the groups."""
    pattern: str | None
    requested_zeros: int
    zeros: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunedTower:
    """The masks of one tower; the model itself is not changed until `apply_masks`."""

    masks: Masks
    layers: tuple[LayerReport, ...]

    def to_bytes(self) -> bytes:
        """Writes the masks as the bytes of a safetensors file, with the reports in its header."""
        reports = [asdict(report) for report in self.layers]
        return pack_masks(self.masks, note=json.dumps(reports, sort_keys=True))

    @classmethod
    def from_bytes(cls, content: bytes) -> "PrunedTower":
        """Reads what `to_bytes` wrote."""
        reports = [LayerReport(**report) for report in json.loads(packed_note(content))]
        masks = unpack_masks(content)
        return cls(
            masks={report.name: masks[report.name] for report in reports}, layers=tuple(reports)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroCount:
    """The zeros counted in one layer's weights, as integers."""

    name: str
    tower: str
    weights: int
    pruned: int
    """How many weights the mask takes; 0 if the layer has no mask."""
    zeros: int
    """How many weights are zero, pruned or not."""
    violations: int
    """How many weights at pruned positions are not exactly +0.0: must be 0."""


def prune_tower(
    model: nn.Module,
    layers: Sequence[LayerShape],
    method: PruneMethod,
    *,
    target: Target,
    group: Group = "row",
    norms: InputNorms | None = None,
    seed: int = 0,
) -> PrunedTower:
    """Chooses the keep masks of one tower; the model is not changed.

    Args:
        model: holds the dense weights.
        layers: the tower's layers, all of them: the tower's count is met over them together.
        method: says how much each weight matters.
        target: what the tower loses; a pattern fixes the groups, and `group` then plays no part.
        group: where weights compete.
        norms: statistics of the layers' inputs, for a method that needs them.
        seed: with the layer's name, seeds a method that draws random numbers.

    Raises:
        InfeasibleAllocation: the target is a pattern that does not divide the layers.
        PruneError: a layer's saliency is of the wrong shape or not finite.
    """
    masks, reports = {}, []
    for layer, removal in zip(layers, _removals(layers, target, group), strict=True):
        mask = _layer_mask(model, layer, method, removal, norms, seed)
        masks[layer.name] = mask
        reports.append(
            LayerReport(
                name=layer.name,
                tower=layer.tower,
                block=layer.block,
                rows=layer.rows,
                columns=layer.columns,
                method=method.name,
                group="pattern" if target.pattern else group,
                pattern=str(target.pattern) if target.pattern else None,
                requested_zeros=_requested_zeros(layer, removal),
                zeros=int((~mask).sum()),
            )
        )
    return PrunedTower(masks=masks, layers=tuple(reports))


def layer_generator(seed: int, name: str) -> torch.Generator:
    """Returns a CPU generator that depends on the seed and the layer's name alone."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


@torch.no_grad()
def apply_masks(model: nn.Module, masks: Mapping[str, Bool[Tensor, "_ _"]]) -> None:
    """Sets every pruned weight of the model to zero, in place."""
    for name, mask in masks.items():
        weight = _weight(model, name)
        # Not a product with the mask: that would turn negative weights into -0.0.
        weight.masked_fill_(~mask.to(weight.device), 0)


@torch.no_grad()
def count_zeros(
    model: nn.Module, layers: Sequence[LayerShape], masks: Mapping[str, Bool[Tensor, "_ _"]]
) -> tuple[ZeroCount, ...]:
    """Counts the zeros of each layer, and the pruned weights that are not exactly +0.0."""
    counts = []
    for layer in layers:
        weight = _weight(model, layer.name)
        zero = weight == 0
        mask = masks.get(layer.name)
        pruned = torch.zeros_like(zero) if mask is None else ~mask.to(zero.device)
        positive_zero = zero & ~torch.signbit(weight)
        counts.append(
            ZeroCount(
                name=layer.name,
                tower=layer.tower,
                weights=layer.weights,
                pruned=int(pruned.sum()),
                zeros=int(zero.sum()),
                violations=int((pruned & ~positive_zero).sum()),
            )
        )
    return tuple(counts)


def _removals(layers: Sequence[LayerShape], target: Target, group: Group) -> Sequence[Removal]:
    if target.pattern is not None:
        check_pattern(layers, target.pattern)
        return [target.pattern] * len(layers)
    return zeros_per_row(layers, target) if group == "row" else zeros_per_matrix(layers, target)


def _requested_zeros(layer: LayerShape, removal: Removal) -> int:
    if isinstance(removal, int):
        return removal
    if isinstance(removal, np.ndarray):
        return int(removal.sum())
    return layer.weights // removal.group * (removal.group - removal.kept)


@torch.no_grad()
def _layer_mask(
    model: nn.Module,
    layer: LayerShape,
    method: PruneMethod,
    removal: Removal,
    norms: InputNorms | None,
    seed: int,
) -> Bool[Tensor, "out in"]:
    input_norm = None
    if method.needs_statistics:
        if norms is None:
            raise PruneError(f"prune method {method.name!r} needs statistics: calibrate first.")
        input_norm = norms.norm(layer.name)
    weight = _weight(model, layer.name)
    saliency = method.saliency(weight, input_norm, layer_generator(seed, layer.name))
    if saliency.shape != (layer.rows, layer.columns):
        raise PruneError(
            f"{layer.name}: {method.name} gave saliencies of shape {tuple(saliency.shape)}, "
            f"the layer is {layer.rows} x {layer.columns}."
        )
    try:
        return keep_mask(saliency, removal)
    except PruneError as error:
        raise PruneError(f"{layer.name} ({method.name}): {error}", error.failure) from error


def _weight(model: nn.Module, name: str) -> Tensor:
    weight = model.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    return weight
