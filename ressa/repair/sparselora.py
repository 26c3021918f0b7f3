r"""SparseLoRA: a low-rank update behind the keep mask, so that merging it keeps every zero.

As in "Rethinking Pruning for Vision-Language Models" (arXiv:2404.02424); the same masked product
is PERP's MaskLoRA (arXiv:2312.15230). A layer computes

.. math:: y = x (M \odot (W + s B A))^T + b ,

with frozen W (zero wherever M is false), trained A and B, and s = alpha / rank. B starts at zero,
so training starts from the pruned model exactly.

Dimensions: out, in = weight rows and columns of one linear layer; rank = rank of its update;
token = everything in front of the feature axis, laid end to end.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import safetensors.torch
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from ressa.errors import RepairError
from ressa.models.towers import Towers
from ressa.sparsity import TOWERS
from ressa.spec import Repair


class _MaskedUpdateLinear(torch.autograd.Function):
    """A linear layer whose masked weight is made again in backward instead of being kept.

    Autograd on the plain formula would keep one out × in matrix per layer until backward; this
    keeps the layer's input alone. With G = dYᵀX: dA = s Bᵀ(M⊙G), dB = s (M⊙G)Aᵀ, dX = dY·W'.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        keep_mask: Tensor,
        lora_a: Tensor,
        lora_b: Tensor,
        bias: Tensor | None,
        scale: float,
    ) -> Tensor:
        # The parameters are only referred to; the input is all that this call keeps alive.
        ctx.save_for_backward(x, weight, keep_mask, lora_a, lora_b)
        ctx.scale = scale
        return functional.linear(x, _masked(weight, keep_mask, lora_a, lora_b, scale), bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, keep_mask, lora_a, lora_b = ctx.saved_tensors
        grad_rows = grad_output.reshape(-1, weight.shape[0])  # [token out]
        grad_x = None
        if ctx.needs_input_grad[0]:
            masked = _masked(weight, keep_mask, lora_a, lora_b, ctx.scale)
            grad_x = (grad_rows @ masked).view(x.shape)
        grad_weight = grad_rows.t() @ x.reshape(-1, weight.shape[1])  # [out in]
        grad_weight = grad_weight.mul_(keep_mask).to(lora_a.dtype)
        grad_a = (lora_b.t() @ grad_weight).mul_(ctx.scale)
        grad_b = (grad_weight @ lora_a.t()).mul_(ctx.scale)
        return grad_x, None, None, grad_a, grad_b, None, None


def _masked(
    weight: Float[Tensor, "out in"],
    keep_mask: Bool[Tensor, "out in"],
    lora_a: Float[Tensor, "rank in"],
    lora_b: Float[Tensor, "out rank"],
    scale: float,
) -> Float[Tensor, "out in"]:
    dtype = weight.dtype
    return torch.addmm(weight, lora_b.to(dtype), lora_a.to(dtype), alpha=scale).mul_(keep_mask)


def sparselora_linear(
    x: Float[Tensor, "*token in"],
    weight: Float[Tensor, "out in"],
    keep_mask: Bool[Tensor, "out in"],
    lora_a: Float[Tensor, "rank in"],
    lora_b: Float[Tensor, "out rank"],
    bias: Float[Tensor, " out"] | None,
    scale: float,
) -> Float[Tensor, "*token out"]:
    """Computes x (M ⊙ (W + s·B·A))ᵀ + b; only x, A and B receive gradients."""
    output = _MaskedUpdateLinear.apply(x, weight, keep_mask, lora_a, lora_b, bias, scale)  # type: ignore[no-untyped-call]
    return cast(Tensor, output)


class SparseLoRALinear(nn.Linear):
    """A frozen linear layer that is trained through a masked low-rank update.

    An `nn.Linear` becomes one in place and turns back in place (`adopt`, `merge`): its hooks, its
    name and every reference to it stay valid.

    `keep_mask` is kept explicitly, because a weight that is kept but happens to be zero must still
    learn. It is None where nothing was pruned; the layer is then ordinary LoRA, computed by two
    thin products instead of an out × in one.
    """

    keep_mask: Bool[Tensor, "out in"] | None
    lora_a: nn.Parameter
    lora_b: nn.Parameter
    scale: float

    @classmethod
    def adopt(
        cls,
        linear: nn.Linear,
        keep_mask: Bool[Tensor, "out in"] | None,
        *,
        rank: int,
        scale: float,
        generator: torch.Generator,
    ) -> "SparseLoRALinear":
        """Turns `linear` into a SparseLoRA layer: A kaiming-uniform(a = √5), B zero.

        A and B are fp32 or better, so that small steps count under half-precision weights too.
        """
        weight = linear.weight.requires_grad_(False)
        if linear.bias is not None:
            linear.bias.requires_grad_(False)
        bound = 1 / math.sqrt(weight.shape[1])  # kaiming_uniform_ with a = √5
        lora_a = torch.empty(rank, weight.shape[1], dtype=torch.float64)
        lora_a.uniform_(-bound, bound, generator=generator)
        linear.__class__ = cls
        layer = cast(SparseLoRALinear, linear)
        layer.scale = scale
        dtype = torch.promote_types(weight.dtype, torch.float32)
        layer.lora_a = nn.Parameter(lora_a.to(weight.device, dtype))
        layer.lora_b = nn.Parameter(torch.zeros(weight.shape[0], rank).to(weight.device, dtype))
        if keep_mask is not None:
            keep_mask = keep_mask.to(weight.device)
        layer.register_buffer("keep_mask", keep_mask, persistent=False)
        return layer

    def forward(self, x: Float[Tensor, "*token in"]) -> Float[Tensor, "*token out"]:
        if self.keep_mask is None:
            lora_a, lora_b = self.lora_a.to(x.dtype), self.lora_b.to(x.dtype)
            update = functional.linear(functional.linear(x, lora_a), lora_b)
            return functional.linear(x, self.weight, self.bias).add(update, alpha=self.scale)
        return sparselora_linear(
            x, self.weight, self.keep_mask, self.lora_a, self.lora_b, self.bias, self.scale
        )

    @torch.no_grad()
    def merge(self) -> None:
        """Adds the update to the weights, in fp32 or better, and becomes a plain `nn.Linear`.

        Every pruned weight is then +0, bit for bit; a half-precision weight may round to zero as
        well, so zeros can exceed the mask's but never miss one.
        """
        weight = self.weight.to(self.lora_a.dtype)
        merged = torch.addmm(weight, self.lora_b, self.lora_a, alpha=self.scale)
        if self.keep_mask is not None:
            merged.masked_fill_(~self.keep_mask, 0)  # a product with the mask would leave -0.0
        self.weight.copy_(merged)
        del self.lora_a, self.lora_b, self.keep_mask, self.scale
        self.__class__ = nn.Linear  # type: ignore[assignment]


@dataclass(frozen=True)
class Adapters:
    """The SparseLoRA layers of one model, by the names of the linear layers they stand in."""

    layers: dict[str, SparseLoRALinear]

    def parameters(self) -> Iterator[nn.Parameter]:
        """All that repair trains, A before B, in the model's order."""
        for layer in self.layers.values():
            yield layer.lora_a
            yield layer.lora_b

    def to_bytes(self) -> bytes:
        """A and B of every layer as safetensors: what a finished repair stage stores."""
        tensors = {}
        for name, layer in self.layers.items():
            tensors[f"{name}.lora_a"] = layer.lora_a.detach().cpu().contiguous()
            tensors[f"{name}.lora_b"] = layer.lora_b.detach().cpu().contiguous()
        return safetensors.torch.save(tensors)

    @torch.no_grad()
    def load(self, data: bytes) -> None:
        """Puts stored A and B in place; they must be of the same layers and ranks."""
        tensors = safetensors.torch.load(data)
        own = {
            f"{name}.{side}": cast(Tensor, getattr(layer, side))
            for name, layer in self.layers.items()
            for side in ("lora_a", "lora_b")
        }
        if {name: t.shape for name, t in tensors.items()} != {n: t.shape for n, t in own.items()}:
            raise RepairError("the stored adapters are of other layers or ranks than this model's")
        for name, tensor in tensors.items():
            own[name].copy_(tensor)


def attach(
    model: nn.Module,
    masks: Mapping[str, Bool[Tensor, "_ _"]] | None,
    towers: Towers,
    repair: Repair,
    *,
    seed: int,
) -> Adapters:
    """Freezes a pruned model and puts SparseLoRA on the parts that `repair.train` lists.

    Vision and language are trained in their prunable layers, behind the keep masks; the connector,
    which is not pruned, in all its linear layers by ordinary LoRA. Everything else stays as it is,
    bit for bit.

    Args:
        masks: keep mask of every prunable layer of the trained towers, by layer name; None for a
            dense model, which is then repaired by ordinary LoRA throughout. A mask that prunes
            nothing gives the same, so sparsity 0 and dense agree to the bit.
        seed: A of a layer follows from this and the layer's name, whatever the order of layers.
    """
    model.requires_grad_(False)
    layers = {}
    for part in repair.train:
        rank = getattr(repair.rank, part)
        for name in _trained_layers(model, towers, part):
            layers[name] = SparseLoRALinear.adopt(
                _plain_linear(model, name),
                None if masks is None or part not in TOWERS else _pruning_mask(masks, name),
                rank=rank,
                scale=repair.alpha / rank,
                generator=_generator(seed, name),
            )
    return Adapters(layers)


def merge(adapters: Adapters) -> None:
    """Merges every update into its weights; the model is then a plain transformers model again."""
    for layer in adapters.layers.values():
        layer.merge()
    adapters.layers.clear()


def _trained_layers(model: nn.Module, towers: Towers, part: str) -> list[str]:
    if part in TOWERS:
        return [layer.name for layer in towers.inventory.tower(part)]
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and f"{name}.weight" in towers.connector
    ]


def _plain_linear(model: nn.Module, name: str) -> nn.Linear:
    module = model.get_submodule(name)
    if type(module) is not nn.Linear:
        raise RepairError(
            f"{name}: SparseLoRA needs a plain nn.Linear, got {type(module).__name__}"
        )
    return module


def _pruning_mask(
    masks: Mapping[str, Bool[Tensor, "_ _"]], name: str
) -> Bool[Tensor, "_ _"] | None:
    if name not in masks:
        raise RepairError(f"{name}: is repaired but has no keep mask; its zeros would be lost")
    return None if bool(masks[name].all()) else masks[name]


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
