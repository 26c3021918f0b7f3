"""Random pruning: the floor that any method has to beat."""

import torch
from jaxtyping import Float
from torch import Tensor

from ressa.prune.method import PruneMethod
from ressa.prune.statistics import LayerStatistics


class Random(PruneMethod):
    """Prunes weights drawn uniformly without replacement."""

    name = "random"

    def saliency(
        self,
        weight: Float[Tensor, "out in"],
        statistics: LayerStatistics | None,
        generator: torch.Generator,
    ) -> Float[Tensor, "out in"]:
        """Draws each weight's saliency from the uniform distribution on [0, 1)."""
        # Doubles, because among millions of floats many are equal, and ties favour late columns.
        return torch.rand(weight.shape, generator=generator, dtype=torch.float64)
