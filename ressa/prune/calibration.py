"""Calibration: examples run through the whole model, and each layer's inputs are summed up.

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
"""

import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from jaxtyping import Num
from PIL.Image import Image
from torch import Tensor, nn

from ressa.errors import CalibrationError
from ressa.models.vlm import NO_LABEL, VLM, Batch
from ressa.prune.statistics import LayerStatistics, Statistics, weighted_gram, weighted_moments
from ressa.records import Example
from ressa.sparsity import LayerShape
from ressa.workers import rank_and_world_size

_Sums: TypeAlias = dict[str, Tensor]
"""What is summed up: "moments/<layer>" in doubles, "gram/<layer>" in floats."""


@torch.no_grad()
def calibrate(
    vlm: VLM,
    examples: Sequence[Example],
    images: Callable[[str], Image],
    *,
    layers: Sequence[LayerShape] | None = None,
    grams: Collection[str] = (),
    chunk: int = 16,
) -> Statistics:
    """Takes the statistics of the model as it stands, each example with its true answer.

    In a torch.distributed group every worker calls this with the same arguments. Chunks are dealt
    to the workers in turn and their sums added in the order of the chunks, so that all workers
    get the same numbers, which are also those of a single worker, bit for bit.

    Args:
        vlm: the model; of a dense one these are the statistics of the regime `dense`.
        examples: the calibration set, the same on every worker.
        images: gives an image by its id.
        layers: the layers to observe; by default all that can be pruned.
        grams: towers whose layers' Gram matrices are taken too, in² numbers for each input.
        chunk: how many examples the model sees at a time. It moves the sums by rounding only.

    Raises:
        CalibrationError: a layer saw no token, or inputs that are not finite.
    """
    layers = vlm.towers.inventory.layers if layers is None else layers
    chunks = [examples[start : start + chunk] for start in range(0, len(examples), chunk)]
    rank, workers = rank_and_world_size()
    observer = _Observer(vlm, layers, grams)
    with _evaluating(vlm.model), observer.watching():
        if examples:  # one question shows which layers share an input, on every worker
            observer.observe(vlm.encode(examples[:1], images, answers=True))
        total = observer.empty()
        for first in range(0, len(chunks), workers):
            part = observer.empty()
            if first + rank < len(chunks):
                part = observer.observe(vlm.encode(chunks[first + rank], images, answers=True))
            for name, sums in total.items():
                for chunk_part in _gather(part.pop(name), workers)[: len(chunks) - first]:
                    sums += chunk_part
    return observer.statistics(total, len(examples))


class _Observer:
    """Sums up the inputs of a model's layers while chunks of examples run through it."""

    def __init__(self, vlm: VLM, layers: Sequence[LayerShape], grams: Collection[str]) -> None:
        self._vlm, self._layers, self._grams = vlm, layers, grams
        self._device = next(vlm.model.parameters()).device
        self._encoder = _language_encoder(vlm)
        self._encoded: Tensor | None = None  # the language encoder's output, during a forward pass
        self._batch: Batch | None = None
        self._leaders: dict[str, str] = {}  # of each layer, the first one that reads its input
        self._inputs: dict[str, tuple[weakref.ref[Tensor], int]] = {}  # what each leader read last
        self._sums: _Sums = {}

    def empty(self) -> _Sums:
        """Returns sums of nothing, of one layer for each distinct input."""
        sums = {}
        for layer in self._layers:
            if self._leaders.get(layer.name) == layer.name:
                size = layer.columns
                sums[f"moments/{layer.name}"] = self._zeros(2 * size + 1, dtype=torch.float64)
                if layer.tower in self._grams:
                    sums[f"gram/{layer.name}"] = self._zeros(size, size, dtype=torch.float32)
        return sums

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
                listen = partial(self._listen, layer, module in inside)
                hooks.callback(module.register_forward_pre_hook(listen).remove)
            yield

    def observe(self, batch: Batch) -> _Sums:
        """Runs one chunk through the model and returns the sums of its tokens."""
        self._sums, self._batch, self._encoded = self.empty(), batch, None
        self._inputs.clear()
        self._vlm.answer_logits(batch)
        self._batch, self._encoded = None, None
        return self._sums

    def statistics(self, total: _Sums, samples: int) -> Statistics:
        """Makes each layer's statistics of the sums of all chunks, and checks them."""
        found: dict[str, LayerStatistics] = {}
        for layer in self._layers:
            leader = self._leaders.get(layer.name, layer.name)
            if leader in found:
                found[layer.name] = found[leader]
                continue
            moments = total.get(f"moments/{leader}")
            if moments is None or not moments[-1]:
                raise CalibrationError(f"{layer.name} saw no calibration token.", "data")
            gram = total.get(f"gram/{leader}")
            if not moments.isfinite().all() or not (gram is None or gram.isfinite().all()):
                raise CalibrationError(
                    f"{layer.name}: its calibration inputs are not finite.", "numeric"
                )
            sums, square_sums, tokens = moments.cpu().split([layer.columns, layer.columns, 1])
            found[layer.name] = LayerStatistics(
                samples=samples,
                tokens=int(tokens),
                sums=sums.clone(),
                square_sums=square_sums.clone(),
                gram=None if gram is None else (gram.triu() + gram.triu(1).T).cpu(),
            )
        return Statistics(found)

    def _zeros(self, *shape: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self._device)

    def _remember_encoded(self, module: nn.Module, args: Any, output: Any) -> None:
        self._encoded = output if isinstance(output, Tensor) else output[0]

    def _listen(
        self, layer: LayerShape, in_encoder: bool, module: nn.Module, args: tuple[Tensor, ...]
    ) -> None:
        inputs = args[0]
        reader = self._reader(inputs)
        leader = self._leaders.setdefault(layer.name, reader or layer.name)
        if leader != layer.name:
            if reader != leader:
                raise CalibrationError(
                    f"{layer.name} reads the input of {leader} for one chunk and not for another. "
                    "Statistics of this architecture are not supported."
                )
            return
        # Not the tensor itself, which would keep every activation of the chunk alive.
        self._inputs[layer.name] = (weakref.ref(inputs), inputs._version)
        self._add(layer, inputs, self._token_weights(layer, in_encoder, inputs))

    def _reader(self, inputs: Tensor) -> str | None:
        """Returns the layer that has read this very tensor, unchanged since."""
        for name, (seen, version) in self._inputs.items():
            if seen() is inputs and inputs._version == version:
                return name
        return None

    def _add(self, layer: LayerShape, inputs: Tensor, weights: Tensor) -> None:
        rows = inputs.reshape(-1, layer.columns)  # [token in]
        if len(weights) != len(rows):
            raise CalibrationError(
                f"{layer.name}: {len(rows)} input rows, but {len(weights)} tokens are known of. "
                "Statistics of this architecture are not supported."
            )
        weights = weights.to(rows.device)
        counted = weights > 0  # padding does not enter, not even as NaN
        rows, weights = rows[counted].float(), weights[counted]
        sums = {"moments": weighted_moments}
        if layer.tower in self._grams:
            sums["gram"] = weighted_gram
        for kind, summed in sums.items():
            name, part = f"{kind}/{layer.name}", summed(rows, weights)
            self._sums[name] = part + self._sums[name] if name in self._sums else part

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


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _gather(part: Tensor, workers: int) -> list[Tensor]:
    """Collects every worker's part, in the order of their ranks."""
    if workers == 1:
        return [part]
    sent = part if dist.get_backend() == "nccl" else part.cpu()
    parts = [torch.empty_like(sent) for _ in range(workers)]
    dist.all_gather(parts, sent)
    return [received.to(part.device) for received in parts]
