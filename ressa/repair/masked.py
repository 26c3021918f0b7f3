r"""Masked fine-tuning: every kept weight is trained, pruned ones stay zero. The upper baseline.

.. math:: y = x (M \odot W)^T + b , \qquad \partial W = M \odot (\partial y^T x)

W is zero wherever M is false and gets no gradient there, so that AdamW's step there is zero too,
with weight decay or without. It trains as many numbers as weights are kept: no rank makes it equal
to the others, and what it scores has to be read beside that number (PERP, arXiv:2312.15230,
compares with it as full retraining).

Dimensions: out, in = weight rows and columns of one linear layer; token = everything in front of
the feature axis, laid end to end.
"""

from typing import Any, ClassVar, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ressa.repair.adapted import AdaptedLinear
from ressa.repair.bits import unpack


class _MaskedGradientLinear(torch.autograd.Function):
    """A linear layer whose weight gets a gradient where it is kept alone."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, keep_bits: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(x, weight, keep_bits)
        # Not a view, which a model could not change in place, as Llama 4 does.
        output = x.new_empty(*x.shape[:-1], len(weight))
        tokens, rows = x.reshape(-1, weight.shape[1]), output.view(-1, len(weight))
        weight = weight.to(x.dtype).t()
        if bias is None:
            torch.mm(tokens, weight, out=rows)
        else:
            torch.addmm(bias, tokens, weight, out=rows)
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, keep_bits = ctx.saved_tensors
        grad_rows = grad_output.reshape(-1, len(weight))  # [token out]
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad_rows @ weight.to(x.dtype)).view(x.shape)
        grad_weight = grad_rows.t() @ x.reshape(-1, weight.shape[1])
        if keep_bits is not None:
            pruned = unpack(keep_bits, weight.shape[1]) == 0
            grad_weight.masked_fill_(pruned, 0)  # not a product: a gradient may be infinite
        return grad_x, grad_weight.to(weight.dtype), None, None


class MaskedLinear(AdaptedLinear):
    """A linear layer all of whose kept weights are trained, its bias frozen.

    A half-precision weight is fp32 while it is trained, and is rounded back by `merge`.
    """

    trains: ClassVar[tuple[str, ...]] = ("weight",)

    _own_dtype: torch.dtype

    def make_parameters(self, rank: int, generator: torch.Generator) -> dict[str, Tensor]:
        self._own_dtype = self.weight.dtype
        return {"weight": self.weight.detach()}

    @property
    def reads(self) -> torch.dtype:
        return self._own_dtype

    @property
    def trainable_weights(self) -> int:
        return (
            self.out_features * self.in_features
            if self.keep_bits is None
            else int(self._kept.sum())
        )

    @property
    def _kept(self) -> Bool[Tensor, "out in"]:
        assert self.keep_bits is not None
        return unpack(self.keep_bits, self.in_features).bool()

    def moving(self, whole: Float[Tensor, "out in"]) -> Float[Tensor, "*kept"]:
        return whole if self.keep_bits is None else whole[self._kept]

    def with_still(self, moving: Float[Tensor, "*kept"]) -> Float[Tensor, "out in"]:
        if self.keep_bits is None:
            return moving
        whole = moving.new_zeros(self.out_features, self.in_features)
        whole[self._kept] = moving
        return whole

    def forward(self, x: Float[Tensor, "*token in"]) -> Float[Tensor, "*token out"]:
        x = x.to(self._own_dtype)  # T5 hands its `wo` the type that the weight has in training
        output = _MaskedGradientLinear.apply(x, self.weight, self.keep_bits, self.bias)  # type: ignore[no-untyped-call]
        return cast(Tensor, output)

    def merged(self) -> Float[Tensor, "out in"]:
        return self.weight.detach().clone()

    def leave(self) -> None:
        super().leave()
        self.weight.data = self.weight.to(self._own_dtype)
        del self._own_dtype
