"""Calibration statistics: the norm of each layer's input features over real tokens.

What counts as a token, and how often, is chosen so that the sums depend on the calibration
examples alone: neither on padding, nor on how the examples are cut into chunks, nor on how many
workers share the chunks.

* Vision tower: every token of an image, once for each question that looks at the image. The tower
  encodes a distinct image of a chunk once, so its rows are weighted by the number of questions.
* Language model, decoder only: the positions that the attention mask admits (image tokens, prompt
  and answer).
* Language model, encoder: likewise (query tokens and prompt). Decoder: the positions that predict
  an answer token. Keys and values of its cross-attention read the encoder's output, hence the
  encoder's positions; such a layer is known by its input being that very tensor.

Dimensions: in = input features of one linear layer; token = its input rows, examples of a chunk
laid end to end; flat = the sums of all layers, one after the other.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Float64, Num
from PIL.Image import Image
from safetensors.torch import load, save
from torch import Tensor, nn

from ressa.errors import CalibrationError
from ressa.models.vlm import NO_LABEL, VLM, Batch
from ressa.records import Example
from ressa.sparsity import LayerShape
from ressa.workers import rank_and_world_size


@dataclass(frozen=True, slots=True)
class InputNorms:
    """For each layer the sum of squares of its input features, and how many tokens it is over."""

    square_sums: Mapping[str, Float64[Tensor, " in"]]
    tokens: Mapping[str, int]

    def norm(self, name: str) -> Float[Tensor, " in"]:
        """Returns the L2 norm of each input feature of a layer over its calibration tokens."""
        return self.square_sums[name].sqrt().float()

    def to_bytes(self) -> bytes:
        """Writes the statistics as the bytes of a safetensors file."""
        tensors = {f"square_sum/{name}": sums for name, sums in self.square_sums.items()}
        tensors |= {f"tokens/{name}": torch.tensor(count) for name, count in self.tokens.items()}
        content: bytes = save(tensors)
        return content

    @classmethod
    def from_bytes(cls, content: bytes) -> "InputNorms":
        """Reads what `to_bytes` wrote."""
        square_sums, tokens = {}, {}
        for key, value in load(content).items():
            kind, name = key.split("/", maxsplit=1)
            if kind == "tokens":
                tokens[name] = int(value)
            else:
                square_sums[name] = value
        return cls(square_sums, tokens)


@torch.no_grad()
def calibrate(
    vlm: VLM,
    examples: Sequence[Example],
    images: Callable[[str], Image],
    *,
    layers: Sequence[LayerShape] | None = None,
    chunk: int = 16,
) -> InputNorms:
    """Takes the statistics of the model as it stands, each example with its true answer.

    In a torch.distributed group every worker calls this with the same arguments. Chunks are dealt
    to the workers in turn and their sums added in the order of the chunks, so that all workers
    get the same numbers, which are also those of a single worker, bit for bit.

    Args:
        vlm: the model; of a dense one these are the statistics of the regime `dense`.
        examples: the calibration set, the same on every worker.
        images: gives an image by its id.
        layers: the layers to observe; by default all that can be pruned.
        chunk: how many examples the model sees at a time. It moves the sums by rounding only.

    Raises:
        CalibrationError: a layer saw no token, or inputs that are not finite.
    """
    layers = vlm.towers.inventory.layers if layers is None else layers
    chunks = [examples[start : start + chunk] for start in range(0, len(examples), chunk)]
    rank, workers = rank_and_world_size()
    observer = _Observer(vlm, layers)
    total = observer.empty()
    with _evaluating(vlm.model), observer.watching():
        for first in range(0, len(chunks), workers):
            part = observer.empty()
            if first + rank < len(chunks):
                batch = vlm.encode(chunks[first + rank], images, answers=True)
                part = observer.observe(batch)
            for chunk_part in _gather(part, workers)[: len(chunks) - first]:
                total += chunk_part
    return observer.statistics(total.cpu())


class _Observer:
    """Sums up the inputs of a model's layers while chunks of examples run through it."""

    def __init__(self, vlm: VLM, layers: Sequence[LayerShape]) -> None:
        self._vlm, self._layers = vlm, layers
        self._device = next(vlm.model.parameters()).device
        self._encoder = _language_encoder(vlm)
        self._encoded: Tensor | None = None  # the language encoder's output, during a forward pass
        self._batch: Batch | None = None
        # One vector for all layers, each with one place more for its count of tokens.
        widths = [layer.columns + 1 for layer in layers]
        self._places = dict(zip((layer.name for layer in layers), _spans(widths), strict=True))
        self._width = sum(widths)
        self._sums = self.empty()

    def empty(self) -> Float64[Tensor, " flat"]:
        return torch.zeros(self._width, dtype=torch.float64, device=self._device)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Listens to the layers; on leaving, no hook is left on the model."""
        encoder = self._encoder
        inside = set() if encoder is None else set(encoder.modules())
        with ExitStack() as hooks:
            if encoder is not None:
                hooks.callback(encoder.register_forward_hook(self._remember_encoded).remove)
            for layer in self._layers:
                module = self._vlm.model.get_submodule(layer.name)
                listen = partial(self._add, layer, module in inside)
                hooks.callback(module.register_forward_pre_hook(listen).remove)
            yield

    def observe(self, batch: Batch) -> Float64[Tensor, " flat"]:
        """Runs one chunk through the model and returns the sums of its tokens."""
        self._sums, self._batch, self._encoded = self.empty(), batch, None
        self._vlm.answer_logits(batch)
        self._batch, self._encoded = None, None
        return self._sums

    def statistics(self, total: Float64[Tensor, " flat"]) -> InputNorms:
        """Cuts the sums of all chunks into layers, and checks them."""
        square_sums, tokens = {}, {}
        for name, place in self._places.items():
            square_sums[name] = total[place][:-1].clone()
            tokens[name] = int(total[place][-1])
            if not tokens[name]:
                raise CalibrationError(f"{name} saw no calibration token.", "data")
            if not square_sums[name].isfinite().all():
                raise CalibrationError(f"{name}: its calibration inputs are not finite.", "numeric")
        return InputNorms(square_sums, tokens)

    def _remember_encoded(self, module: nn.Module, args: Any, output: Any) -> None:
        self._encoded = output if isinstance(output, Tensor) else output[0]

    def _add(
        self, layer: LayerShape, in_encoder: bool, module: nn.Module, args: tuple[Tensor, ...]
    ) -> None:
        rows = args[0].reshape(-1, layer.columns)  # [token in]
        weights = self._token_weights(layer, in_encoder, args[0]).to(rows.device)
        if len(weights) != len(rows):
            raise CalibrationError(
                f"{layer.name}: {len(rows)} input rows, but {len(weights)} tokens are known of. "
                "Statistics of this architecture are not supported."
            )
        sums = self._sums[self._places[layer.name]]
        sums[:-1] += weighted_square_sum(rows, weights).to(sums.device)
        sums[-1] += weights.sum().to(sums.device)

    def _token_weights(self, layer: LayerShape, in_encoder: bool, inputs: Tensor) -> Tensor:
        """How often each input row of a layer counts: 0 for padding."""
        batch = self._batch
        assert batch is not None
        if layer.tower == "vision":
            return _image_weights(batch, inputs.numel() // layer.columns)
        reads_encoder = in_encoder or inputs is self._encoded
        if self._encoder is None or reads_encoder:
            return batch.inputs["attention_mask"].reshape(-1)
        assert batch.labels is not None  # encoded with answers
        return (batch.labels != NO_LABEL).long().reshape(-1)


def weighted_square_sum(
    rows: Float[Tensor, "token in"], weights: Num[Tensor, " token"]
) -> Float64[Tensor, " in"]:
    """Sums the squares of the rows, each as often as its weight says; at weight 0 even NaN."""
    counted = weights > 0
    squares = rows[counted].float().square() * weights[counted, None]
    return squares.sum(dim=0, dtype=torch.float64)


def _image_weights(batch: Batch, rows: int) -> Num[Tensor, " token"]:
    """Weighs the vision tower's rows, which lie image by image, by the questions on each image."""
    questions = torch.bincount(batch.image_index, minlength=len(batch.inputs["pixel_values"]))
    return questions.repeat_interleave(rows // len(questions))


def _language_encoder(vlm: VLM) -> nn.Module | None:
    """Returns the encoder of a language model that has one."""
    if not vlm.has_encoder:
        return None
    model: Any = vlm.model  # transformers does not type these two
    encoder: nn.Module = model.get_decoder().get_encoder()
    return encoder


def _spans(widths: Sequence[int]) -> Iterator[slice]:
    start = 0
    for width in widths:
        yield slice(start, start + width)
        start += width


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _gather(part: Float64[Tensor, " flat"], workers: int) -> list[Float64[Tensor, " flat"]]:
    """Collects every worker's part, in the order of their ranks."""
    if workers == 1:
        return [part]
    sent = part if dist.get_backend() == "nccl" else part.cpu()
    parts = [torch.empty_like(sent) for _ in range(workers)]
    dist.all_gather(parts, sent)
    return [received.to(part.device) for received in parts]
