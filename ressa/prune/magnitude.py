"""Magnitude pruning: the smallest weights go (Han et al., arXiv:1506.02626)."""

import torch
from jaxtyping import Float
from torch import Tensor

from ressa.prune.method import PruneMethod
from ressa.prune.statistics import LayerStatistics


class Magnitude(PruneMethod):
    r"""Prunes the weights of smallest absolute value, :math:`S_{ij} = |W_{ij}|`."""

    name = "magnitude"

    def saliency(
        self,
        weight: Float[Tensor, "out in"],
        statistics: LayerStatistics | None,
        generator: torch.Generator,
    ) -> Float[Tensor, "out in"]:
        """Returns each weight's absolute value."""
        return weight.detach().abs()
