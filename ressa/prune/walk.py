"""The walk over a tower: each layer loses exactly its share, by the method's choice."""

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor, nn

from ressa.errors import PruneError
from ressa.prune.masks import Removal, keep_mask, mask_bits, mask_of_bits
from ressa.prune.method import Pruned, PruneMethod
from ressa.prune.packing import pack, unpack
from ressa.prune.statistics import LayerStatistics, Statistics, squared_output
from ressa.sparsity import (
    Group,
    LayerShape,
    Target,
    check_pattern,
    tower_zeros,
    zeros_per_matrix,
    zeros_per_row,
)

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
    """Where weights competed: row, matrix, tower, or "pattern" when a pattern fixes the groups."""
    pattern: str | None
    requested_zeros: int
    zeros: int
    output_error: float | None
    """‖X(W−Ŵ)ᵀ‖² / ‖XWᵀ‖² on the calibration tokens; None without Gram matrix or output."""
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunedTower:
    """What pruning made of one tower; the model itself is not changed until `apply`."""

    masks: Masks
    layers: tuple[LayerReport, ...]
    weights: dict[str, Tensor] = field(default_factory=dict)
    """New weights, pruned ones zero, of the layers whose surviving weights the method changed."""

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """Sets the model's weights to those that stay, in place."""
        for name, weight in self.weights.items():
            _weight(model, name).copy_(weight)
        apply_masks(model, self.masks)

    def to_bytes(self) -> bytes:
        """Writes the tower as a safetensors file: masks as bits, of new weights those that stay."""
        tensors = {f"mask/{name}": mask_bits(mask) for name, mask in self.masks.items()}
        for name, weight in self.weights.items():
            tensors[f"weight/{name}"] = weight[self.masks[name]]
        return pack(tensors, [asdict(report) for report in self.layers])

    @classmethod
    def from_bytes(cls, content: bytes) -> "PrunedTower":
        """Reads what `to_bytes` wrote."""
        tensors, reports = unpack(content)
        layers = tuple(LayerReport(**report) for report in reports)
        masks, weights = {}, {}
        for layer in layers:
            mask = mask_of_bits(tensors[f"mask/{layer.name}"], layer.rows, layer.columns)
            masks[layer.name] = mask
            kept = tensors.get(f"weight/{layer.name}")
            if kept is not None:
                weight = kept.new_zeros(mask.shape)
                weights[layer.name] = weight.masked_scatter_(mask, kept)
        return cls(masks=masks, layers=layers, weights=weights)


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


@torch.no_grad()
def prune_tower(
    model: nn.Module,
    layers: Sequence[LayerShape],
    method: PruneMethod,
    *,
    target: Target,
    group: Group = "row",
    statistics: Statistics | None = None,
    seed: int = 0,
) -> PrunedTower:
    """Chooses what stays of one tower; the model is not changed.

    Args:
        model: holds the dense weights.
        layers: the tower's layers, all of them: the tower's count is met over them together.
        method: says which weights stay.
        target: what the tower loses; a pattern fixes the groups, and `group` then plays no part.
        group: where weights compete.
        statistics: of the layers' inputs, for a method that needs them.
        seed: with the layer's name, seeds a method that draws random numbers.

    Raises:
        InfeasibleAllocation: the target is a pattern that does not divide the layers.
        PruneError: statistics are missing, or the method fails on a layer.
    """
    walk = _Walk(model, method, statistics, seed)
    masks, weights, reports = {}, {}, []
    for layer, removal in zip(layers, walk.removals(layers, target, group), strict=True):
        began = time.perf_counter()
        pruned = walk.prune(layer, removal)
        masks[layer.name] = pruned.keep_mask
        if pruned.weight is not None:
            weights[layer.name] = pruned.weight
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
                zeros=int((~pruned.keep_mask).sum()),
                output_error=walk.output_error(layer, pruned),
                seconds=time.perf_counter() - began,
            )
        )
    return PrunedTower(masks=masks, layers=tuple(reports), weights=weights)


class _Walk:
    """One method on one model, layer by layer."""

    def __init__(
        self, model: nn.Module, method: PruneMethod, statistics: Statistics | None, seed: int
    ) -> None:
        self.model, self.method, self.statistics, self.seed = model, method, statistics, seed

    def removals(
        self, layers: Sequence[LayerShape], target: Target, group: Group
    ) -> Sequence[Removal]:
        """Says what each layer loses."""
        if target.pattern is not None:
            check_pattern(layers, target.pattern)
            return [target.pattern] * len(layers)
        if group == "row":
            return zeros_per_row(layers, target)
        if group == "matrix":
            return zeros_per_matrix(layers, target)
        return self._zeros_by_saliency(layers, tower_zeros(layers, target))

    def prune(self, layer: LayerShape, removal: Removal) -> Pruned:
        """Lets the method prune one layer, and checks what it returns."""
        weight = _weight(self.model, layer.name)
        statistics, generator = self._statistics(layer), layer_generator(self.seed, layer.name)
        with self._naming(layer):
            pruned = self.method.prune(weight, statistics, removal, generator)
        mask, changed = pruned.keep_mask.cpu(), pruned.weight
        if changed is None:
            return Pruned(mask)
        changed = changed.detach().cpu().masked_fill(~mask, 0)
        if not changed.isfinite().all():
            message = f"{layer.name} ({self.method.name}): a new weight is not finite."
            raise PruneError(message, "numeric")
        return Pruned(mask, changed)

    def output_error(self, layer: LayerShape, pruned: Pruned) -> float | None:
        """Measures how much of a layer's output is lost, if its Gram matrix is known."""
        known = self.statistics is not None and self.statistics.layers.get(layer.name)
        if not known or known.gram is None:
            return None
        weight = _weight(self.model, layer.name)
        gram = known.gram.to(weight.device)
        dense, mask = weight.to(gram.dtype), pruned.keep_mask.to(gram.device)
        left = dense if pruned.weight is None else pruned.weight.to(gram.device, gram.dtype)
        whole = squared_output(dense, gram)
        lost = squared_output(dense - left.masked_fill(~mask, 0), gram)
        return lost / whole if whole > 0 else None

    def _zeros_by_saliency(self, layers: Sequence[LayerShape], zeros: int) -> list[int]:
        """Counts how many of a tower's lowest saliencies lie in each layer."""
        saliencies = []
        for layer in layers:
            generator = layer_generator(self.seed, layer.name)
            with self._naming(layer):
                saliency = self.method.saliency(
                    _weight(self.model, layer.name), self._statistics(layer), generator
                )
            saliencies.append(saliency.detach().cpu().reshape(1, -1))
        kept = keep_mask(torch.cat(saliencies, dim=1), zeros)
        parts = kept.split([layer.weights for layer in layers], dim=1)
        return [int((~part).sum()) for part in parts]

    def _statistics(self, layer: LayerShape) -> LayerStatistics | None:
        if self.method.needs == "nothing":
            return None
        known = None if self.statistics is None else self.statistics.layers[layer.name]
        if known is None or (self.method.needs == "gram" and known.gram is None):
            raise PruneError(
                f"prune method {self.method.name!r} needs statistics ({self.method.needs}): "
                "calibrate first."
            )
        return known

    @contextmanager
    def _naming(self, layer: LayerShape) -> Iterator[None]:
        """Says in an error of the method which layer it is about."""
        try:
            yield
        except PruneError as error:
            message = f"{layer.name} ({self.method.name}): {error}"
            raise PruneError(message, error.failure) from error


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


def _requested_zeros(layer: LayerShape, removal: Removal) -> int:
    if isinstance(removal, int):
        return removal
    if isinstance(removal, np.ndarray):
        return int(removal.sum())
    return layer.weights // removal.group * (removal.group - removal.kept)


def _weight(model: nn.Module, name: str) -> Tensor:
    weight = model.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    return weight
