"""What every repair method does to a linear layer: take its place, train, and give it back.

Dimensions: out, in = weight rows and columns of one linear layer; token = everything in front of
the feature axis, laid end to end; byte = eight columns' mask bits.
"""

import hashlib
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Self, cast

import safetensors.torch
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from ressa.errors import RepairError, as_stored
from ressa.memory import bytes_of
from ressa.repair.bits import pack, unpack


class AdaptedLinear(nn.Linear):
    """Base class of the repair methods: a linear layer with something to train in it.

    An `nn.Linear` becomes one in place and turns back in place (`adopt`, `merge`): its hooks, its
    name and every reference to it stay valid. A method says what it trains (`trains`,
    `make_parameters`), what it computes (`forward`), and which weight that comes to (`merged`).
    Before the first step it computes what the pruned layer does, bit for bit where it can.
    """

    trains: ClassVar[tuple[str, ...]]
    """Names of its trained parameters."""

    keep_bits: UInt8[Tensor, "out byte"] | None
    """Which weights stay, one bit each; None where nothing was pruned."""
    scale: float
    dropout: float

    @classmethod
    def adopt(
        cls,
        linear: nn.Linear,
        keep_mask: Bool[Tensor, "out in"] | None,
        *,
        rank: int,
        scale: float,
        generator: torch.Generator,
        dropout: float = 0.0,
    ) -> Self:
        """Turns `linear` into a layer of this method; its own weight and bias are frozen.

        What is trained is fp32 or better, so that small steps count under half-precision weights.

        Args:
            keep_mask: True where a weight stays; `linear` is zero elsewhere. None prunes nothing.
            generator: of the initial values, on the CPU.
        """
        linear.requires_grad_(False)
        linear.__class__ = cls
        layer = cast(Self, linear)
        layer.scale, layer.dropout = scale, dropout
        bits = None if keep_mask is None else pack(keep_mask).to(linear.weight.device)
        layer.register_buffer("keep_bits", bits, persistent=False)
        dtype = torch.promote_types(linear.weight.dtype, torch.float32)
        for name, start in layer.make_parameters(rank, generator).items():
            parameter = nn.Parameter(start.to(linear.weight.device, dtype))
            layer.register_parameter(name, parameter)
        return layer

    @abstractmethod
    def make_parameters(self, rank: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Returns the initial values of what is trained, by the names in `trains`."""

    @abstractmethod
    def merged(self) -> Float[Tensor, "out in"]:
        """Returns the weight that the layer comes to, in fp32 or better, zeros not minded."""

    def moving(self, whole: Float[Tensor, "*shape"]) -> Float[Tensor, "*moving"]:
        """Picks what training can move out of a trained parameter, or of a moment of it."""
        return whole

    def with_still(self, moving: Float[Tensor, "*moving"]) -> Float[Tensor, "*shape"]:
        """Puts what `moving` picked back among what training cannot move, which is zero."""
        return moving

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """The trained parameters by name."""
        return {name: cast(nn.Parameter, getattr(self, name)) for name in self.trains}

    @property
    def trainable_weights(self) -> int:
        """How many numbers are trained."""
        return sum(parameter.numel() for parameter in self.trained.values())

    @property
    def reads(self) -> torch.dtype:
        """The type of its inputs in the model."""
        return self.weight.dtype

    @property
    def wide_dtype(self) -> torch.dtype:
        """The type to merge in: fp32, or the weight's own if that is wider."""
        return torch.promote_types(self.weight.dtype, torch.float32)

    @torch.no_grad()
    def merge(self) -> None:
        """Makes the update part of the weight, in fp32 or better, and becomes an `nn.Linear`.

        Every pruned weight is then +0, bit for bit; a half-precision weight may round to zero as
        well, so zeros can exceed the mask's but never miss one.
        """
        merged = self.merged()
        if self.keep_bits is not None:
            pruned = unpack(self.keep_bits, self.in_features) == 0
            merged.masked_fill_(pruned, 0)  # a product with the mask would leave -0.0
        self.weight.copy_(merged)
        self.leave()

    def leave(self) -> None:
        """Becomes a plain `nn.Linear` again with the weight as it is."""
        for name in {*self.trains} - {"weight"}:
            delattr(self, name)
        del self.keep_bits, self.scale, self.dropout
        self.requires_grad_(False)
        self.__class__ = nn.Linear  # type: ignore[assignment]


@dataclass(frozen=True)
class Adapters:
    """The layers of one model that are trained, by the names of the linear layers they are."""

    layers: dict[str, AdaptedLinear]
    parts: dict[str, str] = field(default_factory=dict)
    """Which part of the model (vision, connector, language) each layer belongs to."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """All that repair trains, layer by layer in the model's order."""
        for layer in self.layers.values():
            yield from layer.trained.values()

    def trainable_weights(self) -> dict[str, int]:
        """How many numbers are trained in each trained part.

        Methods are compared at equal trained weights; `repair.rank` sets the number for those
        that have a rank. Masked fine-tuning trains every kept weight, however many that are.
        """
        counts: dict[str, int] = {}
        for name, layer in self.layers.items():
            part = self.parts[name]
            counts[part] = counts.get(part, 0) + layer.trainable_weights
        return counts

    @property
    def are_updates(self) -> bool:
        """Whether they stand beside the weights; masked fine-tuning trains the weights themselves.

        Then they are small, and the pruned model can be had back without them.
        """
        return not any("weight" in layer.trains for layer in self.layers.values())

    def train(self, mode: bool = True) -> None:
        """Switches dropout on or off; the rest of the model stays as it is."""
        for layer in self.layers.values():
            layer.training = mode

    def to_bytes(self) -> bytes:
        """All that was trained as safetensors: what a finished repair stage stores."""
        return safetensors.torch.save(
            {name: tensor.detach().cpu().contiguous() for name, tensor in self._named().items()}
        )

    def digest(self) -> str:
        """Returns the SHA-256 of all that was trained, tensor by tensor: no copy of it is made."""
        found = hashlib.sha256()
        for name, tensor in sorted(self._named().items()):
            found.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            found.update(bytes_of(tensor))
        return found.hexdigest()

    @torch.no_grad()
    def load(self, data: bytes) -> None:
        """Puts what was stored in place; it must be of the same layers, method and ranks."""
        with as_stored("adapters"):
            tensors, own = safetensors.torch.load(data), self._named()
        if {name: t.shape for name, t in tensors.items()} != {n: t.shape for n, t in own.items()}:
            raise RepairError("the stored adapters are of other layers or ranks than this model's")
        for name, tensor in tensors.items():
            own[name].copy_(tensor)

    def _named(self) -> dict[str, Tensor]:
        return {
            f"{name}.{parameter}": tensor
            for name, layer in self.layers.items()
            for parameter, tensor in layer.trained.items()
        }


def generator_of(seed: int, name: str) -> torch.Generator:
    """Draws for one layer: they follow from the seed and its name, whatever the layers' order."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
