r"""LoRA, dense: the paper's baseline that cannot keep a zero (Hu et al., arXiv:2106.09685).

.. math:: y = x W^T + s \, \mathrm{dropout}(x) A^T B^T + b ,

with frozen, pruned W. Unmerged, the model has its zeros and a dense update beside them; merged, it
would have no zeros left. `merge` therefore prunes again by the same mask, and what training meant
for the pruned places is lost: RESSA (arXiv:2404.02424) and PERP (arXiv:2312.15230) measure by it.

Dimensions: out, in = weight rows and columns of one linear layer; rank = rank of its update;
token = everything in front of the feature axis, laid end to end.
"""

import math
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ressa.repair.adapted import AdaptedLinear


class LoRALinear(AdaptedLinear):
    """A frozen linear layer with a low-rank update beside it: A kaiming-uniform(a = √5), B zero."""

    trains: ClassVar[tuple[str, ...]] = ("lora_a", "lora_b")

    lora_a: nn.Parameter
    lora_b: nn.Parameter

    def make_parameters(self, rank: int, generator: torch.Generator) -> dict[str, Tensor]:
        bound = 1 / math.sqrt(self.in_features)  # kaiming_uniform_ with a = √5
        lora_a = torch.empty(rank, self.in_features, dtype=torch.float64)
        lora_a.uniform_(-bound, bound, generator=generator)
        return {"lora_a": lora_a, "lora_b": torch.zeros(self.out_features, rank)}

    def forward(self, x: Float[Tensor, "*token in"]) -> Float[Tensor, "*token out"]:
        lora_a, lora_b = self.lora_a.to(x.dtype), self.lora_b.to(x.dtype)
        thinned = functional.dropout(x, self.dropout) if self.dropout and self.training else x
        update = functional.linear(functional.linear(thinned, lora_a), lora_b)
        return functional.linear(x, self.weight, self.bias).add(update, alpha=self.scale)

    def merged(self) -> Float[Tensor, "out in"]:
        a, b = self.lora_a.to(self.wide_dtype), self.lora_b.to(self.wide_dtype)
        return torch.addmm(self.weight.to(self.wide_dtype), b, a, alpha=self.scale)
