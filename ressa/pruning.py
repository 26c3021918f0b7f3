"""How a trial prunes: calibration, each layer's share, masks, as stages that trials share.

Statistics of the dense model are taken beforehand, one stage for each tower; those of the other
regimes while a tower is pruned. What each layer loses is decided on the dense model, then both
towers are pruned block by block, and the model has the weights that stay.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import partial
from itertools import cycle, groupby

from PIL.Image import Image
from torch import Tensor

from ressa.catalog import METHODS, Need
from ressa.errors import PruneError
from ressa.keys import (
    calibration_key,
    competing,
    has_threshold,
    importance_key,
    mask_keys,
    outliers_key,
    statistics_of,
    threshold_key,
)
from ressa.models import VLM
from ressa.prune import (
    LayerReport,
    LayerStatistics,
    PackedMasks,
    PrunedLayers,
    PruneMethod,
    Removal,
    Statistics,
    mask_hash,
    prune_layers,
    removals,
    requested_zeros,
    saliency_of,
    walk,
)
from ressa.prune.ecoflap import importances
from ressa.prune.layerwise import ecoflap_shares, outlier_shares, owl_shares
from ressa.records import Example, TrialSpec
from ressa.sparsity import TOWERS, LayerShape, Tower
from ressa.spec import Ecoflap, Owl
from ressa.stages import Parts, Shared, Stages
from ressa.workers import agree, device, gather, rank_and_world_size


class Pruning:
    """The pruning of one trial's model.

    Args:
        trial: says how.
        vlm: the dense model; `prune` changes it in place.
        stages: what other trials left, and where this one leaves its own.
        examples: the calibration set.
        images: gives an image by its id.
    """

    def __init__(
        self,
        trial: TrialSpec,
        vlm: VLM,
        stages: Stages,
        examples: Sequence[Example],
        images: Callable[[str], Image],
    ) -> None:
        self.spec, self.vlm, self.stages = trial, vlm, stages
        self.examples, self.images = examples, images
        self.inventory = vlm.towers.inventory
        self.methods: dict[Tower, PruneMethod] = {
            tower: METHODS[trial.tower(tower).method].from_spec(trial.tower(tower))
            for tower in TOWERS
        }
        self.statistics: dict[Tower, Parts | None] = {}
        self.masks = PackedMasks()
        """The keep masks of both towers, once they are pruned."""
        self.changed: set[str] = set()
        """Layers whose weights that stay are not the dense ones."""
        self.reports: dict[Tower, list[LayerReport]] = {}

    def calibrate(self) -> Shared[None]:
        """Sums up the inputs of both towers' layers on the dense model, block by block.

        Unless each block's are to be taken when its turn to be pruned has come, or none at all.
        """
        for tower in TOWERS:
            key = calibration_key(self.spec, tower, self.inventory)
            if key is None:
                self.statistics[tower] = None
                continue
            self.statistics[tower] = yield from self.stages.once_in_parts(
                "calibration", key, partial(self._dense_statistics, tower)
            )

    def _dense_statistics(self, tower: Tower) -> Iterator[bytes]:
        # No name is given to a block's statistics, so that they are gone before the next one's.
        return map(Statistics.to_bytes, self._walk(tower, prunes=False))

    def prune(self) -> Shared[None]:
        """Chooses what stays of both towers and sets the rest to zero, block by block."""
        # Of both towers at once: what each layer loses is decided on the dense model.
        lost = yield from self._removals()
        for tower, key in self._mask_keys().items():
            yield from self._prune_tower(tower, key, lost)

    def restore(self) -> bool:
        """Prunes by the masks in the store; False, and nothing is changed, if one is not there."""
        keys = self._mask_keys()
        found = {tower: self.stages.find_parts(f"{tower}-mask", keys[tower]) for tower in keys}
        stored = {tower: parts for tower, parts in found.items() if parts is not None}
        if len(stored) < len(keys):
            return False
        for tower, parts in stored.items():
            self._apply(tower, parts)
        return True

    def _mask_keys(self) -> dict[Tower, str]:
        versions = {tower: method.versions for tower, method in self.methods.items()}
        return mask_keys(self.spec, versions)

    def _prune_tower(
        self, tower: Tower, key: str, lost: Mapping[str, tuple[Removal, int]]
    ) -> Shared[None]:
        """Prunes one tower, or takes its masks from the store.

        Args:
            tower: which one.
            key: of its masks.
            lost: what each layer is to lose, and what its share of the target is.
        """
        wanted, method, ref = self.spec.tower(tower), self.methods[tower], self.spec.calibration
        made: list[str] = []

        def make() -> Iterator[bytes]:
            rank, workers = rank_and_world_size()
            for block, known in self._blocks(tower):
                own = dealt(block, known, workers)[rank]
                pruned = prune_layers(
                    self.vlm.model,
                    own,
                    method,
                    [lost[layer.name][0] for layer in own],
                    requested=[lost[layer.name][1] for layer in own],
                    group=wanted.group,
                    statistics=known,
                    seed=ref.seed,
                )
                # All take each layer as one worker made it, however their processors round.
                names = [layer.name for layer in block]
                content = PrunedLayers.joined(gather(pruned), names).to_bytes()
                made.append(mask_hash(self._apply_block(content).masks))
                del known, pruned  # before the next block's are made
                yield content

        parts = yield from self.stages.once_in_parts(f"{tower}-mask", key, make)
        self._apply(tower, parts, made)

    def _blocks(
        self, tower: Tower
    ) -> Iterator[tuple[list[LayerShape], Mapping[str, LayerStatistics]]]:
        """Yields the layers of one block after another, with their statistics if any are taken."""
        layers, parts = self.inventory.tower(tower), self.statistics[tower]
        if self._taken(tower) == "nothing":
            for _, block in groupby(layers, key=lambda layer: layer.block):
                yield list(block), {}
            return
        for known in (
            self._walk(tower, prunes=True) if parts is None else map(Statistics.from_bytes, parts)
        ):
            yield [layer for layer in layers if layer.name in known.layers], known.layers
            del known

    def _taken(self, tower: Tower) -> Need:
        return statistics_of(self.spec, tower, self.inventory)

    def _apply(self, tower: Tower, parts: Parts, made: Sequence[str] = ()) -> None:
        """Prunes a tower by stored masks; `made` are the digests of what it was pruned by here."""
        self.reports[tower] = []
        for number, content in enumerate(parts):
            pruned = self._apply_block(content)
            if made and mask_hash(pruned.masks) != made[number]:
                raise PruneError(
                    f"another driver stored masks of the {tower} tower first, and they are not "
                    "those made here, as happens on other processors. The next attempt takes them.",
                    "node",
                )
            self.masks |= pruned.masks
            self.changed |= pruned.kept.keys()
            self.reports[tower].extend(pruned.layers)

    def _apply_block(self, content: bytes) -> PrunedLayers:
        pruned = PrunedLayers.from_bytes(content)
        pruned.apply(self.vlm.model)
        return pruned

    def _removals(self) -> Shared[dict[str, tuple[Removal, int]]]:
        """Says what each layer loses, and what its share of the target is, by the layer's name.

        Decided on the dense model. What takes time is one worker's answer, kept as a stage.
        """
        found: dict[str, tuple[Removal, int]] = {}
        towers = competing(self.spec)
        for tower in towers:
            layers = self.inventory.tower(tower) if len(towers) > 1 else self.inventory.layers
            wanted = self.spec.tower(tower)
            shares = yield from self._shares(layers, tower)
            lost = yield from self._lost(layers, tower, shares)
            asked = requested_zeros(layers, wanted, lost, shares=shares)
            names = [layer.name for layer in layers]
            found |= dict(zip(names, zip(lost, asked, strict=True), strict=True))
        return found

    def _lost(
        self,
        layers: Sequence[LayerShape],
        tower: Tower,
        shares: Mapping[str, Fraction] | None,
    ) -> Shared[list[Removal]]:
        wanted, method, ref = self.spec.tower(tower), self.methods[tower], self.spec.calibration
        if not has_threshold(self.spec, tower):
            return removals(layers, wanted, shares=shares)
        known = _Known(self.statistics)

        def saliency(layer: LayerShape) -> Tensor:
            own = {} if method.needs == "nothing" else {layer.name: known(layer)}
            return saliency_of(self.vlm.model, layer, method, own, ref.seed)

        def make() -> bytes:
            return agree(json.dumps(removals(layers, wanted, saliency=saliency)).encode())

        key = threshold_key(self.spec, tower, method.versions)
        counts: list[Removal] = json.loads((yield from self.stages.once("threshold", key, make)))
        return counts

    def _shares(
        self,
        layers: Sequence[LayerShape],
        tower: Tower,
    ) -> Shared[dict[str, Fraction] | None]:
        """Splits a tower's sparsity over its layers, where they are not to be alike."""
        wanted, seed = self.spec.tower(tower), self.spec.calibration.seed
        asked = wanted.layers

        def outliers(threshold: float) -> bytes:
            blocks = self.statistics[tower]
            known = (
                self._walk(tower, prunes=False, gram=False)
                if blocks is None
                else map(Statistics.from_bytes, blocks)
            )
            shares: dict[int, float] = {}
            for block in known:
                own = [layer for layer in layers if layer.name in block.layers]
                shares |= outlier_shares(own, block.layers, self._weight, threshold)
            return agree(json.dumps(list(shares.items())).encode())

        def importances_of(options: Ecoflap) -> bytes:
            few = self.examples[: options.samples]
            found = importances(
                self.vlm, few, self.images, layers, epsilon=options.epsilon, seed=seed
            )
            return json.dumps(found).encode()

        if isinstance(asked, Owl):
            key = outliers_key(self.spec, tower, asked)
            content = yield from self.stages.once(
                "outliers", key, lambda: outliers(asked.threshold)
            )
            return owl_shares(layers, wanted.target, dict(json.loads(content)), asked)
        if isinstance(asked, Ecoflap):
            key = importance_key(self.spec, tower, asked)
            content = yield from self.stages.once("importance", key, lambda: importances_of(asked))
            return ecoflap_shares(layers, wanted.target, json.loads(content), asked)
        return None

    def _weight(self, layer: LayerShape) -> Tensor:
        return self.vlm.model.get_parameter(f"{layer.name}.weight")

    def _walk(
        self, tower: Tower, *, prunes: bool, gram: bool | None = None
    ) -> Iterator[Statistics]:
        """Takes the statistics of a tower's blocks; Gram matrices as the trial does if not said."""
        gram = self._taken(tower) == "gram" if gram is None else gram
        return walk(
            self.vlm,
            self.examples,
            self.images,
            tower,
            prunes=prunes,
            gram=gram,
            device=device(),
        )


def dealt(
    block: Sequence[LayerShape], known: Mapping[str, LayerStatistics], workers: int
) -> list[list[LayerShape]]:
    """Deals the layers of a block to the workers: the largest first, each to who has least.

    Those of one input go to one worker, which makes of their statistics once what they share.
    """
    groups: dict[object, list[LayerShape]] = {}
    for layer in block:
        shared = id(known[layer.name]) if layer.name in known else layer.name
        groups.setdefault(shared, []).append(layer)

    def work(group: Sequence[LayerShape]) -> int:  # of SparseGPT, which takes the longest
        columns = group[0].columns
        return columns**2 * (columns // 3 + sum(layer.rows for layer in group))

    hands: list[list[LayerShape]] = [[] for _ in range(workers)]
    loads = [0] * workers
    for group in sorted(groups.values(), key=work, reverse=True):
        least = loads.index(min(loads))
        hands[least] += group
        loads[least] += work(group)
    return hands


class _Known:
    """Statistics of layers that are asked for in their order; one block's are held at a time."""

    def __init__(self, statistics: Mapping[Tower, Parts | None]) -> None:
        self._parts = {tower: cycle(range(len(parts or ()))) for tower, parts in statistics.items()}
        self._statistics, self._held = statistics, Statistics({})

    def __call__(self, layer: LayerShape) -> LayerStatistics:
        parts = self._statistics[layer.tower]
        assert parts is not None, "a threshold over layers needs statistics of the dense model"
        while layer.name not in self._held.layers:
            self._held = Statistics.from_bytes(parts[next(self._parts[layer.tower])])
        return self._held.layers[layer.name]
