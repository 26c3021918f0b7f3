r"""SparseLoRA: a low-rank update behind the keep mask, so that merging it keeps every zero.

As in "Rethinking Pruning for Vision-Language Models" (RESSA, arXiv:2404.02424); the same masked
product is PERP's MaskLoRA (arXiv:2312.15230). A layer computes

.. math:: y = x (M \odot (W + s B A))^T + b ,

with frozen W (zero wherever M is false), trained A and B, and s = alpha / rank. B starts at zero,
so training starts from the pruned model exactly.

The masked product is made again in backward instead of being kept, as in LoRS (arXiv:2501.08582),
and a few rows at a time: a run of rows for each product of matrices, and within it tiles that stay
in the cache while update and mask are put on.

Dimensions: out, in = weight rows and columns of one linear layer; rank = rank of its update;
token = everything in front of the feature axis, laid end to end; byte = eight columns' mask bits;
row = a run of weight rows.
"""

from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ressa.repair.bits import row_chunks, space_for, tiles, unpack
from ressa.repair.lora import LoRALinear


class _MaskedUpdateLinear(torch.autograd.Function):
    """Computes x (M ⊙ (W + s·B·A))ᵀ + b; only x, A and B receive gradients.

    It keeps its input alone for backward: autograd on the plain formula would keep one out × in
    matrix per layer. With G = dYᵀX: dA = s Bᵀ(M⊙G), dB = s (M⊙G)Aᵀ, dX = dY·W'; each row of W' and
    of G is needed once, so that both exist for a run of rows only. `straight_through` takes A's
    and B's gradients as if there were no mask: two thin products, inexact, instead of one with G.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        keep_bits: Tensor,
        lora_a: Tensor,
        lora_b: Tensor,
        bias: Tensor | None,
        scale: float,
        straight_through: bool,
    ) -> Tensor:
        # The parameters are only referred to; the input is all that this call keeps alive.
        ctx.save_for_backward(x, weight, keep_bits, lora_a, lora_b)
        ctx.scale, ctx.straight_through = scale, straight_through
        tokens = x.reshape(-1, weight.shape[1])  # [token in]
        # Not a view, which a model could not change in place, as Llama 4 does.
        result = x.new_empty(*x.shape[:-1], len(weight))
        output = result.view(-1, len(weight))  # [token out]
        lora_a, lora_b = lora_a.to(weight.dtype), lora_b.to(weight.dtype)
        space = None
        for rows in row_chunks(weight, len(tokens)):
            space = space_for(space, weight[rows])
            masked = _masked(weight[rows], keep_bits[rows], lora_a, lora_b[rows], scale, space)
            if bias is None:
                torch.mm(tokens, masked.t(), out=output[:, rows])
            else:
                torch.addmm(bias[rows], tokens, masked.t(), out=output[:, rows])
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, keep_bits, lora_a, lora_b = ctx.saved_tensors
        tokens = x.reshape(-1, weight.shape[1])  # [token in]
        grad_rows = grad_output.reshape(-1, len(weight))  # [token out]
        a, b = lora_a.to(weight.dtype), lora_b.to(weight.dtype)
        grad_x = torch.empty_like(tokens) if ctx.needs_input_grad[0] else None
        wide = torch.promote_types(weight.dtype, torch.float32)  # sums over runs want the digits
        grad_a, grad_b = torch.zeros_like(lora_a, dtype=wide), torch.empty_like(lora_b, dtype=wide)
        if ctx.straight_through:
            grad_a.copy_((grad_rows @ b).t() @ tokens)
            grad_b.copy_(grad_rows.t() @ (tokens @ a.t()))
        space = None
        for rows in row_chunks(weight, len(tokens)):
            space = space_for(space, weight[rows])
            if grad_x is not None:
                masked = _masked(weight[rows], keep_bits[rows], a, b[rows], ctx.scale, space)
                # Into a NaN that memory may hold, beta = 0 adds nothing.
                grad_x.addmm_(grad_rows[:, rows], masked, beta=float(rows.start > 0))
            if not ctx.straight_through:
                grad = torch.mm(grad_rows[:, rows].t(), tokens, out=space)  # [row in]
                for tile in tiles(grad):
                    part, its_b = grad[tile], b[rows][tile]
                    part.mul_(unpack(keep_bits[rows][tile], weight.shape[1]))
                    grad_a += its_b.t() @ part
                    grad_b[rows][tile] = part @ a.t()
        grad_x = None if grad_x is None else grad_x.view(x.shape)
        grad_a = grad_a.mul_(ctx.scale).to(lora_a.dtype)
        grad_b = grad_b.mul_(ctx.scale).to(lora_b.dtype)
        return grad_x, None, None, grad_a, grad_b, None, None, None


def _masked(
    weight: Float[Tensor, "row in"],
    keep_bits: UInt8[Tensor, "row byte"],
    lora_a: Float[Tensor, "rank in"],
    lora_b: Float[Tensor, "row rank"],
    scale: float,
    space: Float[Tensor, "row in"],
) -> Float[Tensor, "row in"]:
    for tile in tiles(weight):
        torch.addmm(weight[tile], lora_b[tile], lora_a, alpha=scale, out=space[tile])
        space[tile].mul_(unpack(keep_bits[tile], weight.shape[1]))
    return space


class SparseLoRALinear(LoRALinear):
    """A frozen linear layer that is trained through a masked low-rank update.

    Where nothing was pruned it is ordinary LoRA, computed by two thin products instead of an
    out × in one. There is no dropout: it thins the input of the update alone, and here update and
    weight are one matrix by the time that an input meets them.
    """

    straight_through: ClassVar[bool] = False

    def forward(self, x: Float[Tensor, "*token in"]) -> Float[Tensor, "*token out"]:
        if self.keep_bits is None:
            return super().forward(x)
        output = _MaskedUpdateLinear.apply(  # type: ignore[no-untyped-call]
            x,
            self.weight,
            self.keep_bits,
            self.lora_a,
            self.lora_b,
            self.bias,
            self.scale,
            self.straight_through,
        )
        return cast(Tensor, output)


class StraightThroughLinear(SparseLoRALinear):
    """SparseLoRA whose updates get the gradient of ordinary LoRA, as if nothing were masked.

    Forward and merge are SparseLoRA's, zeros stay; the gradient spares the out × in product that
    makes SparseLoRA's backward as dear as full fine-tuning's, and is a straight-through estimate.
    """

    straight_through: ClassVar[bool] = True
