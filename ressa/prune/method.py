"""What a pruning method is: a rule that chooses which weights of one linear layer stay.

A method sees one layer at a time and never the model around it. Most say how much each weight
matters, and leave to `masks.py` how many go and which of two equal ones; a method that changes the
surviving weights, or refines a choice, prunes by itself.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ressa.catalog import Need
from ressa.errors import PruneError
from ressa.prune.masks import Removal, keep_masks
from ressa.prune.statistics import LayerStatistics
from ressa.spec import TowerTarget


@dataclass(frozen=True, slots=True)
class Pruned:
    """What a method made of one layer."""

    keep_mask: Bool[Tensor, "out in"]
    """True where the weight stays."""
    weight: Float[Tensor, "out in"] | None = None
    """New values of the weights that stay, if the method changes them; what goes is not read."""


class PruneMethod(ABC):
    """Base class of the pruning methods, those of other packages included.

    A method can be made without arguments, and its result for a layer does not depend on the
    layers before. Register it in `catalog.py`, or from another package by an entry point of the
    group `ressa.methods`; inherit `ressa.testing.PruneMethodContract` to test it.
    """

    name: ClassVar[str]
    """The name by which a sweep file asks for it."""
    version: ClassVar[int] = 1
    """Raise it whenever the masks change, so that stored masks of the old rule are not reused."""
    needs: Need = "nothing"
    """Which statistics it reads, so that the model has to be calibrated."""

    @classmethod
    def from_spec(cls, wanted: TowerTarget) -> "PruneMethod":
        """Makes the method that a sweep file asks for; override it to read options of its own."""
        return cls()

    @property
    def versions(self) -> tuple[int, ...]:
        """The versions of all rules that the masks follow from."""
        return (self.version,)

    @abstractmethod
    def saliency(
        self,
        weight: Float[Tensor, "out in"],
        statistics: LayerStatistics | None,
        generator: torch.Generator,
    ) -> Float[Tensor, "out in"]:
        """Says how much each weight matters: in a group, the lowest are pruned first.

        Args:
            weight: the dense weights, any float dtype. They must not be changed.
            statistics: of the layer's inputs; None if the method needs nothing.
            generator: the only source of randomness, on the CPU, seeded by the trial's seed and
                the layer's name, so that neither the order of layers nor the number of workers
                plays a part.

        Returns:
            Finite values; only their order within a group counts, so the scale is free. Where the
            whole tower competes (`group: tower`), they are compared between layers.
        """

    def prune(
        self,
        weight: Float[Tensor, "out in"],
        statistics: LayerStatistics | None,
        removal: Removal,
        generator: torch.Generator,
    ) -> Pruned:
        """Chooses which weights stay: those of the highest saliency, unless a method overrides it.

        Args:
            weight: as in `saliency`.
            statistics: as in `saliency`.
            removal: how many weights go, exactly: zeros of each row, of the matrix, or a pattern.
            generator: as in `saliency`.

        Raises:
            PruneError: a saliency is not finite, or of the wrong shape.
        """
        return next(self._by_saliency(weight, statistics, [removal], generator))

    def prune_each(
        self,
        weight: Float[Tensor, "out in"],
        statistics: LayerStatistics | None,
        removals: Sequence[Removal],
        generator: torch.Generator,
    ) -> Iterator[Pruned]:
        """Prunes one layer several times over, each time as `prune` does.

        What all have in common is worked out once, so that eight sparsities of a layer cost far
        less than eight times one.
        """
        if type(self).prune is PruneMethod.prune:
            yield from self._by_saliency(weight, statistics, removals, generator)
            return
        state = generator.get_state()  # each draws what it would draw alone
        for removal in removals:
            generator.set_state(state)
            yield self.prune(weight, statistics, removal, generator)

    def _by_saliency(
        self,
        weight: Float[Tensor, "out in"],
        statistics: LayerStatistics | None,
        removals: Sequence[Removal],
        generator: torch.Generator,
    ) -> Iterator[Pruned]:
        saliency = self.saliency(weight, statistics, generator)
        if saliency.shape != weight.shape:
            raise PruneError(
                f"saliencies of shape {tuple(saliency.shape)}, the weight is {tuple(weight.shape)}."
            )
        yield from map(Pruned, keep_masks(saliency, removals))
