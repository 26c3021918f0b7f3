"""What a pruning method is: a rule that says how much each weight of a linear layer matters.

A method sees one layer at a time and never the model around it; how many weights go, and which of
two equal ones, is decided for all methods alike in `masks.py`.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor


class PruneMethod(ABC):
    """Base class of the pruning methods, those of other packages included.

    A method is made without arguments, and holds no state between layers. Register it in
    `catalog.py`, or from another package by an entry point of the group `ressa.methods`; inherit
    `ressa.testing.PruneMethodContract` to test it.
    """

    name: ClassVar[str]
    """The name by which a sweep file asks for it."""
    version: ClassVar[int] = 1
    """Raise it whenever the masks change, so that stored masks of the old rule are not reused."""
    needs_statistics: ClassVar[bool] = False
    """Whether `saliency` reads the layer's input norm, so that the model has to be calibrated."""

    @abstractmethod
    def saliency(
        self,
        weight: Float[Tensor, "out in"],
        input_norm: Float[Tensor, " in"] | None,
        generator: torch.Generator,
    ) -> Float[Tensor, "out in"]:
        """Says how much each weight matters: in a group, the lowest are pruned first.

        Args:
            weight: the dense weights, any float dtype. They must not be changed.
            input_norm: the L2 norm of each input feature over all calibration tokens; None if the
                method does not need statistics.
            generator: the only source of randomness, on the CPU, seeded by the trial's seed and
                the layer's name, so that neither the order of layers nor the number of workers
                plays a part.

        Returns:
            Finite values; only their order within a group counts, so the scale is free.
        """
