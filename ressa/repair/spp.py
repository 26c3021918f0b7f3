r"""SPP: an update that multiplies the weights, so that zeros stay without a mask.

As in "SPP: Sparsity-Preserved Parameter-Efficient Fine-Tuning" (arXiv:2405.16057); a product with
the weights is PERP's ScaleLoRA too (arXiv:2312.15230). A layer computes

.. math:: y = x (W + s \, W \odot \alpha_{g(i), j} \beta_i)^T + b ,

with frozen W, row vectors α, each shared by a run of the weight's rows (row i is in run g(i)), one
β for each row, and s = alpha / rank. α starts kaiming-uniform and β at zero, as A and B of LoRA
do, so training starts from the pruned model exactly. A kept weight that is exactly zero stays zero.

The paper has `rank` vectors α, rank·in + out numbers a layer. Here there are as many as make the
layer's trained numbers those of LoRA at that rank, rank·(in + out), or as near as whole vectors
come, so that methods at one rank are compared at equal trained weights (`row_vectors`).

Dimensions: out, in = weight rows and columns of one linear layer; run = its row vectors; row = a
run of weight rows that is rebuilt at once; token = everything in front of the feature axis.
"""

import math
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ressa.repair.adapted import AdaptedLinear
from ressa.repair.bits import row_chunks, space_for


class _ScaledLinear(torch.autograd.Function):
    """A linear layer that keeps its input alone for backward.

    With G = dYᵀX and H = G⊙W: dβ_i = s Σ_j H_ij α_g(i)j, dα_gj = s Σ_i∈g H_ij β_i, dX = dY·W'.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        spp_alpha: Tensor,
        spp_beta: Tensor,
        bias: Tensor | None,
        scale: float,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, spp_alpha, spp_beta)
        ctx.scale = scale
        tokens = x.reshape(-1, weight.shape[1])  # [token in]
        # Not a view, which a model could not change in place, as Llama 4 does.
        result = x.new_empty(*x.shape[:-1], len(weight))
        output = result.view(-1, len(weight))  # [token out]
        space = None
        for rows in row_chunks(weight, len(tokens)):
            space = space_for(space, weight[rows])
            scaled = _scaled(weight, spp_alpha, spp_beta, rows, scale, space)
            torch.mm(tokens, scaled.t(), out=output[:, rows])
        if bias is not None:
            output += bias
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, alpha, beta = ctx.saved_tensors
        tokens = x.reshape(-1, weight.shape[1])  # [token in]
        grad_rows = grad_output.reshape(-1, len(weight))  # [token out]
        grad_x = torch.empty_like(tokens) if ctx.needs_input_grad[0] else None
        wide = torch.promote_types(weight.dtype, torch.float32)
        grad_alpha = torch.zeros_like(alpha, dtype=wide)
        grad_beta = torch.empty_like(beta, dtype=wide)
        space = None
        for rows in row_chunks(weight, len(tokens)):
            space = space_for(space, weight[rows])
            if grad_x is not None:
                scaled = _scaled(weight, alpha, beta, rows, ctx.scale, space)
                # Into a NaN that memory may hold, beta = 0 adds nothing.
                grad_x.addmm_(grad_rows[:, rows], scaled, beta=float(rows.start > 0))
            grad = torch.mm(grad_rows[:, rows].t(), tokens, out=space).mul_(weight[rows])
            group = _group_of(len(weight), len(alpha), rows, grad.device)
            grad_beta[rows] = (grad * alpha[group]).sum(dim=1)
            grad_alpha.index_add_(0, group, (grad * beta[rows, None]).to(wide))
        grad_x = None if grad_x is None else grad_x.view(x.shape)
        grad_alpha = grad_alpha.mul_(ctx.scale).to(alpha.dtype)
        grad_beta = grad_beta.mul_(ctx.scale).to(beta.dtype)
        return grad_x, None, grad_alpha, grad_beta, None, None


def _group_of(rows: int, groups: int, wanted: slice, device: torch.device) -> Int[Tensor, " row"]:
    """Which of the nearly equal runs of a weight's rows some of them belong to."""
    return torch.arange(wanted.start, wanted.stop, device=device) * groups // rows


def _scaled(
    weight: Float[Tensor, "out in"],
    alpha: Float[Tensor, "run in"],
    beta: Float[Tensor, " out"],
    rows: slice,
    scale: float,
    space: Float[Tensor, "row in"],
) -> Float[Tensor, "row in"]:
    dtype = weight.dtype
    group = _group_of(len(weight), len(alpha), rows, weight.device)
    torch.index_select(alpha.to(dtype), 0, group, out=space)
    return space.mul_(beta[rows, None].to(dtype) * scale).add_(1).mul_(weight[rows])


def row_vectors(rank: int, rows: int, columns: int) -> int:
    """How many vectors α train, with one β a row, as many numbers as LoRA of `rank` does.

    Rounded to the nearest, at least one, and at most one a row: no two would share a row.
    """
    wanted = round((rank * (rows + columns) - rows) / columns)
    return min(max(wanted, 1), rows)


class SPPLinear(AdaptedLinear):
    """A frozen linear layer whose weights are trained by factors of their rows and columns."""

    trains: ClassVar[tuple[str, ...]] = ("spp_alpha", "spp_beta")

    spp_alpha: nn.Parameter
    spp_beta: nn.Parameter

    def make_parameters(self, rank: int, generator: torch.Generator) -> dict[str, Tensor]:
        bound = 1 / math.sqrt(self.in_features)
        vectors = row_vectors(rank, self.out_features, self.in_features)
        alpha = torch.empty(vectors, self.in_features, dtype=torch.float64)
        alpha.uniform_(-bound, bound, generator=generator)
        return {"spp_alpha": alpha, "spp_beta": torch.zeros(self.out_features)}

    def forward(self, x: Float[Tensor, "*token in"]) -> Float[Tensor, "*token out"]:
        output = _ScaledLinear.apply(  # type: ignore[no-untyped-call]
            x, self.weight, self.spp_alpha, self.spp_beta, self.bias, self.scale
        )
        return cast(Tensor, output)

    def merged(self) -> Float[Tensor, "out in"]:
        weight = self.weight.to(self.wide_dtype)
        whole = slice(0, len(weight))
        room = torch.empty_like(weight)
        return _scaled(weight, self.spp_alpha, self.spp_beta, whole, self.scale, room)
