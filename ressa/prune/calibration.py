"""Calibration: examples run through the whole model, and each layer's inputs are summed up.

The examples go through the model in chunks, all chunks together from block to block, so that one
block's statistics are held at a time, and a block may be pruned before the next one sees its
output. See `passes.py` for how.

What counts as a token, and how often, is chosen so that the sums depend on the calibration
examples alone: neither on padding, nor on how the examples are cut into chunks, nor on how many
workers share the chunks.

* Vision tower: every token of an image, once for each question that looks at the image. The tower
  encodes a distinct image of a chunk once, so its rows are weighted by the number of questions.
  Rows that fill a smaller image up, by the mask that the tower is given, do not count.
* Language model, decoder only: the positions that the attention mask admits (image tokens, prompt
  and answer), and a picture's tokens that stand in front of them. Keys and values of
  cross-attention to a picture: all of its tokens; one question tells which layers these are.
* Language model, encoder: likewise (query tokens and prompt). Decoder: the positions that predict
  an answer token. Keys and values of its cross-attention read the encoder's output, hence the
  encoder's positions; such a layer is known by its input being that very tensor.
"""

import logging
import weakref
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeAlias, TypeVar

import torch
import torch.distributed as dist
from greenlet import getcurrent
from jaxtyping import Num
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn.functional import pad

from ressa.errors import CalibrationError
from ressa.memory import free_cache, halved, is_out_of_memory
from ressa.models.opened import is_expert, tokens_of
from ressa.models.vlm import NO_LABEL, VLM, Batch, evaluating
from ressa.prune.passes import Pass, on_device, stopping_before
from ressa.prune.statistics import (
    LayerStatistics,
    Statistics,
    add_weighted_gram_,
    mirror_upper,
    weighted_moments,
)
from ressa.records import Example
from ressa.sparsity import LayerShape, Tower
from ressa.workers import rank_and_world_size, total

T = TypeVar("T")

log = logging.getLogger(__name__)

CHUNK = 16  # examples in a pass, fewer where memory is short; sums depend on it by rounding only
_CHECKED = 256  # rows of a Gram matrix that are looked at together

_Sums: TypeAlias = tuple[Tensor, ...]
"""What is summed up of a layer's inputs: moments in doubles, a Gram matrix in floats if wanted."""


def walk(
    vlm: VLM,
    examples: Sequence[Example],
    images: Callable[[str], Image],
    tower: Tower,
    *,
    prunes: bool = False,
    gram: bool = True,
    chunk: int = CHUNK,
    device: torch.device | None = None,
) -> Iterator[Statistics]:
    """Goes through a tower block by block and yields the statistics of each block's layers.

    Each example runs through the whole model with its true answer. In a torch.distributed group
    every worker calls this with the same arguments. Chunks are dealt to the workers in turn and
    their sums added in the order of the chunks, so that all workers get the same numbers, which
    are also those of a single worker, bit for bit.

    Where memory runs out on a worker, all begin anew with half the chunk: blocks that were yielded
    before are gone through again, as they then are, and not yielded twice.

    Args:
        vlm: the model; what lies before the tower counts as it stands.
        examples: the calibration set, the same on every worker.
        images: gives an image by its id.
        tower: the tower whose layers are observed.
        prunes: whether the caller changes a block's weights before asking for the next one's
            statistics, which are then those behind the changed block.
        gram: whether Gram matrices are taken: of wide layers they are far larger than all else.
        chunk: how many examples the model sees at a time, if they fit in memory. It moves the sums
            by rounding only.
        device: where blocks compute; by default where the model is. A model that does not fit
            there stays on the CPU and sends one block after another.

    Raises:
        CalibrationError: a layer saw no token, or inputs that are not finite; or the model runs
            its blocks in a way that cannot be followed; or one question alone does not fit in
            memory (failure "oom").
    """
    device, yielded = device or vlm.model.device, 0
    while True:
        steps = _walk(vlm, examples, images, tower, prunes, gram, chunk, device)
        try:
            for _ in range(yielded):
                _next(steps)
            while (statistics := _next(steps)) is not None:
                yielded += 1
                yield statistics
                del statistics
            return
        except _FullError as error:
            if chunk == 1:
                raise CalibrationError(
                    f"out of memory in calibration of the {tower} tower with one question at a "
                    "time. A smaller model.image_size, fewer samples or a larger machine help.",
                    "oom",
                ) from error
        finally:
            steps.close()
        free_cache()
        smaller = halved(min(chunk, len(examples)))
        log.warning("a chunk of %d does not fit in calibration; trying %d", chunk, smaller)
        chunk = smaller


@torch.no_grad()
def _next(steps: Iterator[Statistics]) -> Statistics | None:
    """Asks by hand: `no_grad` around a generator holds what it yielded while the next is made."""
    return next(steps, None)


class _FullError(Exception):
    """Memory has run out on a worker, and every worker raises this at the same place."""


def _agreed(work: Callable[[], T]) -> T:
    """Does a worker's own work, and tells all whether memory ran out on any."""
    found = None
    try:
        found = [work()]
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    if total(found is None) or found is None:
        raise _FullError
    return found[0]


def _walk(
    vlm: VLM,
    examples: Sequence[Example],
    images: Callable[[str], Image],
    tower: Tower,
    prunes: bool,
    gram: bool,
    chunk: int,
    device: torch.device,
) -> Generator[Statistics, None, None]:
    rank, workers = rank_and_world_size()
    chunks = [examples[start : start + chunk] for start in range(0, len(examples), chunk)]
    observer = _Observer(vlm, tower, gram)
    blocks = observer.blocks

    def begin(part: Sequence[Example]) -> _ChunkPass:
        begun = _ChunkPass(vlm, vlm.encode(part, images, answers=True))
        cleanup.callback(begun.end)
        begun.go_on()
        return begun

    def begin_all() -> tuple[list[_ChunkPass], list[_ChunkPass]]:
        # One question goes ahead and shows every worker which layers share an input.
        return [begin(part[:1]) for part in chunks[:1]], [begin(p) for p in chunks[rank::workers]]

    def observe(mine: _ChunkPass | None, *, is_last: bool) -> None:
        observer.observe(mine, keep=not prunes)
        if mine is not None and not prunes and not is_last:
            mine.go_on()

    def run_changed() -> None:
        for each in (*scouts, *own):
            each.run_block(keep=True)
            each.go_on()

    with (
        evaluating(vlm.model),
        stopping_before(blocks, device),
        observer.watching(),
        ExitStack() as cleanup,
    ):
        scouts, own = _agreed(begin_all)
        for count in range(1, len(blocks) + 1):
            is_last = count == len(blocks)  # what comes behind that block is not looked at
            block = _common_block(vlm, tower, (*scouts, *own))
            with on_device(blocks[block], device):
                _agreed(partial(observer.scout, block, scouts[0], keep=not prunes))
                for first in range(0, len(chunks), workers):
                    mine = own[first // workers] if first + rank < len(chunks) else None
                    _agreed(partial(observe, mine, is_last=is_last))
                    observer.add_up(len(chunks) - first)
                yield observer.statistics(block, len(examples))
                if is_last:
                    break
                _agreed(run_changed if prunes else scouts[0].go_on)


def _common_block(vlm: VLM, tower: Tower, passes: Sequence["_ChunkPass"]) -> int:
    """Returns the block that all passes have come to."""
    reached = {each.block for each in passes}
    if len(reached) > 1:
        raise CalibrationError(
            f"{vlm.name}: chunks of examples go through the {tower} tower's blocks in different "
            "orders. Statistics of this architecture are not supported."
        )
    block = next(iter(reached), None)
    if block is None:
        raise CalibrationError(
            f"{vlm.name}: a block of the {tower} tower saw no calibration token.", "data"
        )
    return block


class _ChunkPass(Pass):
    """The pass of one chunk of examples, and what is remembered of its tensors."""

    def __init__(self, vlm: VLM, batch: Batch) -> None:
        super().__init__(partial(vlm.answer_logits, batch))
        self.batch = batch
        self.encoded: Tensor | None = None
        """The language encoder's output."""
        self.shown: Tensor | None = None
        """Which of the vision tower's places show something, where some do not."""
        self.inputs: dict[str, tuple[weakref.ref[Tensor], int]] = {}
        """What each leader read last."""

    def reader(self, inputs: Tensor) -> str | None:
        """Returns the layer that has read this very tensor, unchanged since."""
        for name, (seen, version) in self.inputs.items():
            if seen() is inputs and inputs._version == version:
                return name
        return None

    def remember(self, name: str, inputs: Tensor) -> None:
        # Not the tensor itself, which would keep every activation of the chunk alive.
        self.inputs[name] = (weakref.ref(inputs), inputs._version)


class _Observer:
    """Sums up the inputs of a tower's layers while chunks of examples run through its blocks."""

    def __init__(self, vlm: VLM, tower: Tower, gram: bool) -> None:
        self._vlm, self._tower, self._gram = vlm, tower, gram
        self._layers: dict[int, list[LayerShape]] = {}
        for layer in vlm.towers.inventory.tower(tower):
            self._layers.setdefault(layer.block, []).append(layer)
        self.blocks = [vlm.model.get_submodule(name) for name in vlm.towers.blocks[tower]]
        self._encoder = _language_encoder(vlm)
        self._leaders: dict[str, str] = {}  # of each layer, the first one that reads its input
        self._mixed: set[str] = set()  # layers that read several inputs, which nobody follows
        self._of_pictures: set[str] = set()  # language layers that read a picture and no text
        self._shared: dict[str, LayerStatistics] = {}  # of leaders that later blocks may follow
        self._scout: _ChunkPass | None = None
        self._pass: _ChunkPass | None = None  # whose block is being observed
        self._workers = rank_and_world_size()[1]
        self._calls: Counter[str] = Counter()  # how often a pass runs each layer of the block
        self._total: dict[str, _Sums] = {}
        self._parts: dict[str, list[_Sums]] = {}  # this worker's, to be sent to the others

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Listens to the layers; on leaving, no hook is left on the model."""
        encoder = self._encoder
        inside = set() if encoder is None else set(encoder.modules())
        with ExitStack() as hooks:
            if encoder is not None:
                hooks.callback(encoder.register_forward_hook(_remember_encoded).remove)
            for root in self._vlm.vision_roots if self._tower == "vision" else ():
                module = self._vlm.model.get_submodule(root)
                hook = module.register_forward_pre_hook(_remember_shown, with_kwargs=True)
                hooks.callback(hook.remove)
            for layer in (layer for layers in self._layers.values() for layer in layers):
                module = self._vlm.model.get_submodule(layer.name)
                listen = partial(self._listen, layer, module in inside)
                hooks.callback(module.register_forward_pre_hook(listen).remove)
            yield

    def scout(self, block: int, scout: _ChunkPass, *, keep: bool) -> None:
        """Runs one question through the block, to see which layers share an input."""
        self._shared = {
            leader: known
            for leader, known in self._shared.items()
            if scout.inputs[leader][0]() is not None
        }
        self._calls.clear()
        self._scout = self._pass = scout
        scout.run_block(keep=keep)
        self._scout = self._pass = None
        device = next(self.blocks[block].parameters()).device
        self._total = {}
        for layer in self._layers.get(block, ()):
            if layer.name in self._calls and self._leaders[layer.name] == layer.name:
                size = layer.columns
                sums = [torch.zeros(2 * size + 1, dtype=torch.float64, device=device)]
                if self._gram:
                    sums.append(torch.zeros(size, size, dtype=torch.float32, device=device))
                self._total[layer.name] = tuple(sums)

    def observe(self, each: _ChunkPass | None, *, keep: bool) -> None:
        """Runs this worker's chunk, if one is left for it, through the block it stands before.

        Args:
            each: the chunk.
            keep: as for `Pass.run_block`.
        """
        self._parts = {name: [] for name in self._total}
        if each is not None:
            self._pass = each
            each.run_block(keep=keep)
            self._pass = None

    def add_up(self, chunks: int) -> None:
        """Adds up what the workers have just observed; `chunks` are left, theirs among them."""
        if self._workers == 1:
            return  # done while the chunk ran
        for name, sums in self._total.items():
            own = self._parts.pop(name) or [_zeros(sums)] * self._calls[name]
            if len(own) != self._calls[name]:
                raise CalibrationError(
                    f"{name} runs {len(own)} times for a chunk of examples and "
                    f"{self._calls[name]} times for one question. Statistics of this architecture "
                    "are not supported."
                )
            for kind, whole in enumerate(sums):
                calls = [_gather(part[kind], self._workers) for part in own]
                for worker in range(min(self._workers, chunks)):
                    for parts in calls:
                        whole += parts[worker]

    def statistics(self, block: int, samples: int) -> Statistics:
        """Makes a block's statistics of the sums of all chunks, and checks them."""
        total, self._total = self._total, {}
        found: dict[str, LayerStatistics] = {}
        for layer in self._layers.get(block, ()):
            leader = self._leaders.get(layer.name)
            if leader in self._shared:
                found[layer.name] = self._shared[leader]
                continue
            if leader in total and not total[leader][0][-1] and self._is_expert(layer):
                log.warning("%s saw no calibration token: its inputs count as alike", layer.name)
                found[layer.name] = _alike(layer, samples, self._gram)
                continue
            if leader not in total or not total[leader][0][-1]:
                raise CalibrationError(f"{layer.name} saw no calibration token.", "data")
            # In parts: a check of a whole Gram matrix takes as much again, and a half.
            parts = (part for sums in total[leader] for part in sums.split(_CHECKED))
            if not all(part.isfinite().all() for part in parts):
                raise CalibrationError(
                    f"{layer.name}: its calibration inputs are not finite.", "numeric"
                )
            moments, *grams = total[leader]
            for gram in grams:
                mirror_upper(gram)
            sums, square_sums, tokens = moments.cpu().split([layer.columns, layer.columns, 1])
            found[layer.name] = LayerStatistics(
                samples=samples,
                tokens=int(tokens),
                sums=sums.clone(),
                square_sums=square_sums.clone(),
                gram=grams[0] if grams else None,
            )
            if leader not in self._mixed:
                self._shared[leader] = found[layer.name]
        return Statistics(found)

    def _is_expert(self, layer: LayerShape) -> bool:
        return is_expert(self._vlm.model.get_submodule(layer.name))

    def _listen(
        self, layer: LayerShape, in_encoder: bool, module: nn.Module, args: tuple[Tensor, ...]
    ) -> None:
        each, inputs = self._pass, args[0]
        if each is None:
            return
        reader = each.reader(inputs)
        leader = self._leaders.setdefault(layer.name, reader or layer.name)
        if leader != layer.name and reader != leader and each is self._scout:
            # It runs once more on another input: T5Gemma 2's keys and values read the encoder's
            # output too. It shares no sums then.
            leader = self._leaders[layer.name] = layer.name
            self._mixed.add(layer.name)
        self._calls[layer.name] += each is self._scout
        if leader != layer.name:
            if reader != leader:
                raise CalibrationError(
                    f"{layer.name} reads the input of {leader} for one chunk and not for another. "
                    "Statistics of this architecture are not supported."
                )
            return
        if layer.name not in self._mixed:
            each.remember(layer.name, inputs)
        weights = self._weights(layer, in_encoder, module, inputs, each)
        if each is not self._scout:
            self._add(layer, inputs, weights)

    def _add(self, layer: LayerShape, inputs: Tensor, weights: Tensor) -> None:
        rows = inputs.reshape(-1, layer.columns)  # [token in]
        if len(weights) != len(rows):
            raise CalibrationError(
                f"{layer.name}: {len(rows)} input rows, but {len(weights)} tokens are known of. "
                "Statistics of this architecture are not supported."
            )
        weights = weights.to(rows.device)
        counted = weights > 0  # padding does not enter, not even as NaN
        if not counted.all():
            rows, weights = rows[counted], weights[counted]
        rows = rows.float()
        if self._workers > 1:
            sums = _zeros(self._total[layer.name])
            self._parts[layer.name].append(sums)
        else:
            sums = self._total[layer.name]
        moments, *grams = sums
        moments += weighted_moments(rows, weights)
        for gram in grams:
            add_weighted_gram_(gram, rows, weights)

    def _weights(
        self,
        layer: LayerShape,
        in_encoder: bool,
        module: nn.Module,
        inputs: Tensor,
        each: _ChunkPass,
    ) -> Tensor:
        """How often each input row of a layer counts: 0 for padding."""
        chosen = tokens_of(module)
        if chosen is None:
            return self._token_weights(
                layer, in_encoder, inputs, inputs.numel() // layer.columns, each
            )
        tokens, total = chosen  # an expert reads some rows of what its mixture reads
        weights = self._token_weights(layer, in_encoder, inputs, total, each)
        return weights.to(tokens.device)[tokens]

    def _token_weights(
        self, layer: LayerShape, in_encoder: bool, inputs: Tensor, rows: int, each: _ChunkPass
    ) -> Tensor:
        batch = each.batch
        if layer.tower == "vision":
            weights = _image_weights(batch, rows, len(self._vlm.vision_roots))
            if each.shown is None or rows % each.shown.numel():
                return weights
            shown = each.shown.reshape(-1).repeat_interleave(rows // each.shown.numel())
            return weights * shown.to(weights.device)
        if self._encoder is None or in_encoder or inputs is each.encoded:
            weights = batch.inputs["attention_mask"]
        else:
            assert batch.labels is not None  # encoded with answers
            weights = (batch.labels != NO_LABEL).long()
        if self._vlm.puts_pictures_in_front:
            weights = pad(weights, (rows // len(batch) - weights.shape[1], 0), value=1)
        kinds = batch.inputs.get("moe_mm_token_type_ids")
        if weights.numel() != rows and kinds is not None:  # a mixture of one kind of token alone
            weights = weights[kinds.bool() == ("vision" in layer.name)]
        if rows % len(batch) == 0 and (weights.numel() != rows or layer.name in self._of_pictures):
            if each is self._scout:  # a chunk's text may happen to be as long as a picture
                self._of_pictures.add(layer.name)
            return torch.ones(rows)  # cross-attention's keys and values read a picture's tokens
        return weights.reshape(-1)


def _alike(layer: LayerShape, samples: int, gram: bool) -> LayerStatistics:
    """Statistics under which every method goes by a weight's size alone."""
    ones = torch.ones(layer.columns, dtype=torch.float64)
    return LayerStatistics(
        samples=samples,
        tokens=1,
        sums=ones * 0,
        square_sums=ones,
        gram=torch.eye(layer.columns) if gram else None,
    )


def _remember_encoded(module: nn.Module, args: Any, output: Any) -> None:
    current = getcurrent()
    if isinstance(current, _ChunkPass):
        current.encoded = output if isinstance(output, Tensor) else output[0]


def _remember_shown(module: nn.Module, args: Any, named: dict[str, Any]) -> None:
    """Reads off a vision tower's inputs which of its places show something."""
    current = getcurrent()
    if not isinstance(current, _ChunkPass):
        return
    current.shown = None
    for name, value in named.items():
        if not isinstance(value, Tensor):
            continue
        if "mask" in name and not value.is_floating_point():
            current.shown = value != 0
        elif name == "pixel_position_ids":  # Gemma 4: -1 where there is nothing
            current.shown = (value >= 0).all(dim=-1)
        elif name == "flattened_patches":  # Kosmos 2.5: all zeros where there is nothing
            current.shown = value.any(dim=-1)


def _image_weights(batch: Batch, rows: int, towers: int) -> Num[Tensor, " token"]:
    """Weighs the vision tower's rows, which lie image by image, by the questions on each image."""
    if not batch.is_shareable or towers > 1:
        return torch.ones(rows)  # the pictures were repeated
    questions = torch.bincount(batch.image_index, minlength=batch.pictures)
    return questions.repeat_interleave(rows // len(questions))


def _language_encoder(vlm: VLM) -> nn.Module | None:
    """Returns the encoder of a language model that has one."""
    if not vlm.has_encoder:
        return None
    model: Any = vlm.model  # transformers does not type these
    inside: Any = model.get_decoder()
    encoder = inside.get_encoder() if inside.get_encoder() is not inside else model.get_encoder()
    assert isinstance(encoder, nn.Module)
    return encoder


def _zeros(sums: _Sums) -> _Sums:
    return tuple(map(torch.zeros_like, sums))


def _gather(part: Tensor, workers: int) -> list[Tensor]:
    """Collects every worker's part, in the order of their ranks."""
    parts = [torch.empty_like(part) for _ in range(workers)]
    dist.all_gather(parts, part)
    return parts
