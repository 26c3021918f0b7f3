"""Pruning some layers: each loses exactly what it is told to, by the method's choice."""

import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ressa.errors import PruneError, as_stored
from ressa.prune.masks import PackedMasks, Removal, mask_of_bits, zero_pruned_
from ressa.prune.method import PruneMethod
from ressa.prune.packing import pack, unpack
from ressa.prune.removal import removals, zeros_of
from ressa.prune.statistics import LayerStatistics, Statistics, squared_output
from ressa.sparsity import Group, LayerShape, Pattern, Target
from ressa.spec import TowerTarget


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
    """Where weights competed: row, matrix, tower, all, or "pattern" when that fixes the groups."""
    pattern: str | None
    requested_zeros: int
    zeros: int
    output_error: float | None
    """‖X(W−Ŵ)ᵀ‖² / ‖XWᵀ‖² on the calibration tokens; None without Gram matrix or output."""
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunedLayers:
    """What pruning made of some layers; the model itself is not changed until `apply`."""

    masks: PackedMasks
    layers: tuple[LayerReport, ...]
    kept: dict[str, Tensor] = field(default_factory=dict)
    """The new weights that stay, in row-major order, of the layers that the method changed."""

    @property
    def weights(self) -> dict[str, Tensor]:
        """New weights, pruned ones zero, of the layers whose surviving weights were changed."""
        return {name: self._weight(name) for name in self.kept}

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """Sets the model's weights to those that stay, in place."""
        for name in self.kept:
            model.get_parameter(f"{name}.weight").copy_(self._weight(name))
        apply_masks(model, self.masks)

    @classmethod
    def joined(cls, parts: Iterable["PrunedLayers"], names: Sequence[str]) -> "PrunedLayers":
        """Returns what several parts hold, in the order of the layers' names."""
        masks = PackedMasks()
        kept: dict[str, Tensor] = {}
        reports: dict[str, LayerReport] = {}
        for part in parts:
            masks |= part.masks
            kept |= part.kept
            reports |= {report.name: report for report in part.layers}
        return cls(
            masks=masks,
            layers=tuple(reports[name] for name in names),
            kept={name: kept[name] for name in names if name in kept},
        )

    def to_bytes(self) -> bytes:
        """Writes them as a safetensors file: masks as bits, of new weights those that stay."""
        tensors = {f"mask/{name}": self.masks.packed(name)[0] for name in self.masks}
        tensors |= {f"weight/{name}": kept for name, kept in self.kept.items()}
        return pack(tensors, [asdict(report) for report in self.layers])

    @classmethod
    def from_bytes(cls, content: bytes) -> "PrunedLayers":
        """Reads what `to_bytes` wrote."""
        with as_stored("masks"):
            tensors, reports = unpack(content)
            layers = tuple(LayerReport(**report) for report in reports)
            masks = {
                layer.name: mask_of_bits(tensors[f"mask/{layer.name}"], layer.rows, layer.columns)
                for layer in layers
            }
            names = [layer.name for layer in layers if f"weight/{layer.name}" in tensors]
            kept = {name: tensors[f"weight/{name}"] for name in names}
            return cls(masks=PackedMasks(masks), layers=layers, kept=kept)

    def _weight(self, name: str) -> Tensor:
        mask, kept = self.masks[name], self.kept[name]
        return kept.new_zeros(mask.shape).masked_scatter_(mask, kept)


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
    statistics: Statistics | None = None,
    seed: int = 0,
) -> PrunedLayers:
    """Chooses what stays of a whole tower, all of whose statistics are at hand.

    The model is not changed. Arguments are as of `prune_layers`, and:

    Args:
        target: what the tower loses; a pattern fixes the groups, and `group` then plays no part.
        group: where weights compete.

    Raises:
        InfeasibleAllocation: the target is a pattern that does not divide the layers.
        PruneError: statistics are missing, or the method fails on a layer.
    """
    known = None if statistics is None else statistics.layers

    def saliency(layer: LayerShape) -> Tensor:
        return saliency_of(model, layer, method, known, seed)

    wanted = TowerTarget(method=method.name, group=group, target=target)
    lost = removals(layers, wanted, saliency=saliency)
    return prune_layers(model, layers, method, lost, group=group, statistics=known, seed=seed)


@torch.no_grad()
def prune_layers(
    model: nn.Module,
    layers: Sequence[LayerShape],
    method: PruneMethod,
    removals: Sequence[Removal],
    *,
    requested: Sequence[int] | None = None,
    group: Group = "row",
    statistics: Mapping[str, LayerStatistics] | None,
    seed: int = 0,
) -> PrunedLayers:
    """Chooses what stays of some layers, those of a block or of a whole tower.

    The model is not changed.

    Args:
        model: holds the dense weights.
        layers: the layers to prune.
        method: says which weights stay.
        removals: what each layer loses, from `removals`.
        requested: zeros that each layer's share of the target is, for the report; by default what
            it loses.
        group: where weights competed when removals were shared out; for the report alone.
        statistics: of the layers' inputs, by name, for a method that needs them.
        seed: with the layer's name, seeds a method that draws random numbers.

    Raises:
        PruneError: statistics are missing, or the method fails on a layer.
    """
    masks, kept, reports = {}, {}, []
    asked = map(zeros_of, layers, removals) if requested is None else requested
    for layer, removal, zeros in zip(layers, removals, asked, strict=True):
        began = time.perf_counter()
        weight = model.get_parameter(f"{layer.name}.weight")
        known = _statistics(method, layer, statistics)
        with _naming(method, layer):
            pruned = method.prune(weight, known, removal, layer_generator(seed, layer.name))
        mask = masks[layer.name] = pruned.keep_mask.cpu()
        changed = None
        if pruned.weight is not None:
            changed = _checked(pruned.weight, mask, method, layer)
            kept[layer.name] = changed[mask]
        seen = None if statistics is None else statistics.get(layer.name)
        gram = None if seen is None else seen.gram
        pattern = removal if isinstance(removal, Pattern) else None
        reports.append(
            LayerReport(
                name=layer.name,
                tower=layer.tower,
                block=layer.block,
                rows=layer.rows,
                columns=layer.columns,
                method=method.name,
                group="pattern" if pattern else group,
                pattern=str(pattern) if pattern else None,
                requested_zeros=zeros,
                zeros=int((~mask).sum()),
                output_error=_output_error(weight, mask, changed, gram),
                seconds=time.perf_counter() - began,
            )
        )
    return PrunedLayers(masks=PackedMasks(masks), layers=tuple(reports), kept=kept)


@torch.no_grad()
def saliency_of(
    model: nn.Module,
    layer: LayerShape,
    method: PruneMethod,
    statistics: Mapping[str, LayerStatistics] | None,
    seed: int,
) -> Float[Tensor, "out in"]:
    """Asks a method how much each weight of a layer matters, as `prune_layers` would."""
    known = _statistics(method, layer, statistics)
    weight = model.get_parameter(f"{layer.name}.weight")
    with _naming(method, layer):
        return method.saliency(weight, known, layer_generator(seed, layer.name))


def _statistics(
    method: PruneMethod, layer: LayerShape, statistics: Mapping[str, LayerStatistics] | None
) -> LayerStatistics | None:
    if method.needs == "nothing":
        return None
    known = None if statistics is None else statistics[layer.name]
    if known is None or (method.needs == "gram" and known.gram is None):
        raise PruneError(
            f"prune method {method.name!r} needs statistics ({method.needs}): calibrate first."
        )
    return known


def _checked(
    changed: Tensor, mask: Bool[Tensor, "_ _"], method: PruneMethod, layer: LayerShape
) -> Tensor:
    """Returns new weights with zeros for what goes."""
    changed = changed.detach().cpu().masked_fill(~mask, 0)
    if not changed.isfinite().all():
        raise PruneError(f"{layer.name} ({method.name}): a new weight is not finite.", "numeric")
    return changed


def _output_error(
    weight: Tensor,
    mask: Bool[Tensor, "_ _"],
    changed: Tensor | None,
    gram: Float[Tensor, "in in"] | None,
) -> float | None:
    """Measures how much of a layer's output is lost, if its Gram matrix is known."""
    if gram is None:
        return None
    gram = gram.to(weight.device)
    dense, mask = weight.to(gram.dtype), mask.to(gram.device)
    left = dense if changed is None else changed.to(gram.device, gram.dtype)
    whole = squared_output(dense, gram)
    lost = squared_output(dense - left.masked_fill(~mask, 0), gram)
    return lost / whole if whole > 0 else None


@contextmanager
def _naming(method: PruneMethod, layer: LayerShape) -> Iterator[None]:
    """Says in an error of the method which layer it is about."""
    try:
        yield
    except PruneError as error:
        message = f"{layer.name} ({method.name}): {error}"
        raise PruneError(message, error.failure) from error


def layer_generator(seed: int, name: str) -> torch.Generator:
    """Returns a CPU generator that depends on the seed and the layer's name alone."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


@torch.no_grad()
def apply_masks(model: nn.Module, masks: Mapping[str, Bool[Tensor, "_ _"]]) -> None:
    """Sets every pruned weight of the model to zero, in place."""
    for name, mask in masks.items():
        weight = model.get_parameter(f"{name}.weight")
        zero_pruned_(weight, mask.to(weight.device))


@torch.no_grad()
def count_zeros(
    model: nn.Module, layers: Sequence[LayerShape], masks: Mapping[str, Bool[Tensor, "_ _"]]
) -> tuple[ZeroCount, ...]:
    """Counts the zeros of each layer, and the pruned weights that are not exactly +0.0."""
    counts = []
    for layer in layers:
        weight = model.get_parameter(f"{layer.name}.weight")
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
