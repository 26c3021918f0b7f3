"""Wanda: prune by weight magnitude times input activation norm (arXiv:2306.11695)."""

import torch
from jaxtyping import Float
from torch import Tensor

from ressa.catalog import Need
from ressa.prune.method import PruneMethod
from ressa.prune.statistics import LayerStatistics


class Wanda(PruneMethod):
    r"""Prunes the weights that can contribute least to the layer's output.

    .. math:: S_{ij} = |W_{ij}| \cdot \lVert X_j \rVert_2

    In the paper weights compete within their own output row, which is `group: row`.
    """

    name = "wanda"
    needs: Need = "moments"

    def saliency(
        self,
        weight: Float[Tensor, "out in"],
        statistics: LayerStatistics | None,
        generator: torch.Generator,
    ) -> Float[Tensor, "out in"]:
        """Returns each weight's absolute value times the norm of the input it multiplies."""
        assert statistics is not None  # the walk gives statistics to a method that needs them
        # Half precision would round different saliencies to ties.
        precise = torch.promote_types(weight.dtype, torch.float32)
        return weight.detach().abs().to(precise).mul_(statistics.norm.to(weight.device, precise))
