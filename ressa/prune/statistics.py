"""Calibration statistics: sums over the inputs of each layer, of real tokens alone.

They are streamed: a chunk of examples goes through the model, each layer's input adds to its sums,
nothing else is kept. Layers that read the very same tensor (queries, keys and values; the two
halves of a gated unit; keys and values of every cross-attention) share one set of sums.

Dimensions: in = input features of one linear layer; token = its input rows, examples of a chunk
laid end to end; each row counts as often as its weight says.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Num
from torch import Tensor

from ressa.errors import as_stored
from ressa.prune.packing import pack, unpack

_GRAM_PANEL = 256  # rows of a Gram matrix that one product makes


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerStatistics:
    """What is known of one layer's inputs X, [token in]."""

    samples: int
    """How many calibration questions there were."""
    tokens: int
    """How many rows X has, over all questions."""
    sums: Float64[Tensor, " in"]
    """Sum of each input feature."""
    square_sums: Float64[Tensor, " in"]
    """Sum of the squares of each input feature."""
    gram: Float[Tensor, "in in"] | None = None
    """XᵀX, for methods that need it: the Hessian of the layer's squared output error, halved."""

    @property
    def norm(self) -> Float[Tensor, " in"]:
        """The L2 norm of each input feature."""
        return self.square_sums.sqrt().float()

    @property
    def variance(self) -> Float64[Tensor, " in"]:
        """The variance of each input feature over all tokens."""
        # Not below zero, which rounding makes of a constant feature.
        return (self.square_sums / self.tokens - (self.sums / self.tokens) ** 2).clamp(min=0)


@dataclass(frozen=True, slots=True)
class Statistics:
    """The statistics of a model's layers, by the layer's name."""

    layers: Mapping[str, LayerStatistics]

    def to_bytes(self) -> bytes:
        """Writes the statistics as the bytes of a safetensors file, what is shared once."""
        first: dict[int, str] = {}  # by the identity of its sums, the first layer that has them
        shares = {name: first.setdefault(id(s.sums), name) for name, s in self.layers.items()}
        tensors: dict[str, Tensor] = {}
        counts: dict[str, list[int]] = {}
        for name in first.values():
            layer = self.layers[name]
            tensors |= {f"sum/{name}": layer.sums, f"square_sum/{name}": layer.square_sums}
            if layer.gram is not None:
                tensors[f"gram/{name}"] = layer.gram
            counts[name] = [layer.samples, layer.tokens]
        return pack(tensors, {"shares": list(shares.items()), "counts": counts})

    @classmethod
    def from_bytes(cls, content: bytes) -> "Statistics":
        """Reads what `to_bytes` wrote."""
        with as_stored("statistics"):
            tensors, note = unpack(content)
            distinct = {
                name: LayerStatistics(
                    samples=samples,
                    tokens=tokens,
                    sums=tensors[f"sum/{name}"],
                    square_sums=tensors[f"square_sum/{name}"],
                    gram=tensors.get(f"gram/{name}"),
                )
                for name, (samples, tokens) in note["counts"].items()
            }
            return cls({name: distinct[leader] for name, leader in note["shares"]})


def weighted_moments(
    rows: Float[Tensor, "token in"], weights: Num[Tensor, " token"]
) -> Float64[Tensor, " _"]:
    """Returns the sums of the rows, the sums of their squares, and the sum of the weights."""
    weighted = rows if (weights == 1).all() else rows * weights[:, None]
    return torch.cat(
        [
            weighted.sum(dim=0, dtype=torch.float64),
            (weighted * rows).sum(dim=0, dtype=torch.float64),
            weights.sum(dtype=torch.float64)[None],
        ]
    )


def add_weighted_gram_(
    gram: Float[Tensor, "in in"], rows: Float[Tensor, "token in"], weights: Num[Tensor, " token"]
) -> None:
    """Adds XᵀX of the weighted rows, in place: its upper triangle, and anything below.

    A sum of parts that began as zeros is, bit for bit, that of adding to one matrix in turn.
    """
    if not (weights == 1).all():
        rows = rows * weights.to(rows.dtype).sqrt()[:, None]
    columns = rows.shape[1]
    # Half of the products of the whole matrix; a panel of them is still in the cache as it is
    # added. `addmm_` would round otherwise than a sum of parts.
    panels = rows.new_empty(_GRAM_PANEL * columns)
    for first in range(0, columns, _GRAM_PANEL):
        last = min(first + _GRAM_PANEL, columns)
        height, width = last - first, columns - first
        panel = panels[: height * width].view(height, width)
        torch.mm(rows[:, first:last].T, rows[:, first:], out=panel)
        gram[first:last, first:] += panel


def mirror_upper(gram: Float[Tensor, "in in"]) -> None:
    """Copies what `add_weighted_gram_` left out, in place: what lies below the diagonal."""
    for first in range(0, len(gram), _GRAM_PANEL):
        last = min(first + _GRAM_PANEL, len(gram))
        corner = gram[first:last, first:last]
        corner.copy_(corner.triu() + corner.triu(1).T)
        gram[last:, first:last] = gram[first:last, last:].T


def squared_output(weight: Float[Tensor, "out in"], gram: Float[Tensor, "in in"]) -> float:
    """Returns ‖XWᵀ‖², the squared output of a layer of this weight over all calibration tokens."""
    total = 0.0
    for first in range(0, len(gram), _GRAM_PANEL):
        last = min(first + _GRAM_PANEL, len(gram))
        own, block = weight[:, first:last], gram[:last, first:last].clone()
        block[:first] *= 2  # symmetric: what lies below the diagonal counts as much as this
        total += float(((weight[:, :last] @ block) * own).sum(dtype=torch.float64))
    return total
