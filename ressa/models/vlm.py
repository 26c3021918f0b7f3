"""A vision-language model with its processor, and what the rest of `ressa` asks of it.

What the processor makes of a question and its picture goes to the model as it is, whatever it is
called: what runs along the text belongs to the question, all else to the picture.

Dimensions: image = distinct pictures of a batch; batch = its questions; time = tokens of one
question's text; token = answer tokens of all questions, end to end.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import Any, Literal, Protocol, TypeAlias, cast, runtime_checkable

import torch
from jaxtyping import Float, Int
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import ProcessorMixin
from transformers.utils.generic import ModelOutput

from ressa.errors import SpecError
from ressa.memory import on_disk
from ressa.models.asking import Asking
from ressa.models.opened import closed
from ressa.models.prompts import Recent, Room, Texts, room_in
from ressa.models.seen import asked_once
from ressa.models.towers import Towers, has_encoder
from ressa.records import Example
from ressa.spec import Decoding

NO_LABEL = -100
"""Marks a place where no answer token stands; transformers' losses skip it too."""

GREEDY = Decoding()

_OPEN = 256
"""Pictures that are open at a time while they become tensors: each may take a megabyte."""
_IN_MEMORY = 2**30
"""Bytes of pictures that are held in memory; where a batch has more, they lie on disk."""
_ALL_LOGITS = 2**28
"""Bytes. Where logits at all places take no more, those that no answer needs are computed too:
picking places first gains nothing then, and would round some of them otherwise."""
_SEEN_BYTES = 8  # times the pixels': hidden states of very many blocks are not kept
_SEEN_WEIGHTS = 2**26  # bytes; to tell more of them apart takes as long as to look again

_shown: ContextVar["Batch | None"] = ContextVar("shown", default=None)
"""The batch that runs through the model; passes that run side by side each have their own."""

# Those that read a prompt in both directions, where token_type_ids is 0, and answers in one.
_PREFIX = ("paligemma",)

# Which put a picture's tokens in front of the text's, where no mask of a batch counts them.
_IN_FRONT = ("git",)

# Their connectors read pictures alone and put out [image token hidden], so that these too are
# spared for a second question about a picture. In others the vision tower is.
_SHARED_BEHIND_CONNECTOR = ("blip-2", "llava")


_Pictures: TypeAlias = tuple[dict[str, Tensor], dict[str, tuple[int, ...]] | None]
"""What pictures become, and how many rows of it are whose, as a batch has them."""


@runtime_checkable
class Pictures(Protocol):
    """What a task is asked for beside its examples: their pictures."""

    def image(self, image_id: str) -> Image:
        """Opens a picture by its id."""

    def blank_image(self) -> Image:
        """Returns what stands in for a picture where there is nothing to see."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Questions, ready for the model; several may look at one picture."""

    inputs: dict[str, Tensor]
    """Of questions: input_ids, attention_mask and the like [batch time …]; of pictures:
    pixel_values and the like [row …], one row a picture or more."""
    image_index: Int[Tensor, " batch"]
    """The picture that each question looks at."""
    labels: Int[Tensor, "batch time"] | None
    """Answer tokens with their end of text, `NO_LABEL` elsewhere; None without answers."""
    rows: Mapping[str, tuple[int, ...]] | None = None
    """How many rows each picture has in the inputs that are of pictures; None: one of
    pixel_values."""
    seen: dict[bytes, Any] | None = None
    """What vision towers made of the pictures, by a digest of their weights, for a batch that is
    asked again and again; None keeps nothing."""

    def __len__(self) -> int:
        return len(self.image_index)

    @property
    def pictures(self) -> int:
        """How many pictures there are."""
        return len(self.inputs["pixel_values"] if self.rows is None else self._some_rows)

    @property
    def _some_rows(self) -> tuple[int, ...]:
        return next(iter((self.rows or {}).values()))

    @property
    def of_pictures(self) -> frozenset[str]:
        """The names of the inputs that are of pictures."""
        return frozenset({"pixel_values"} if self.rows is None else self.rows)

    @property
    def is_shareable(self) -> bool:
        """Whether a picture is one row of pixel values, [channel height width], and no more."""
        if self.of_pictures != {"pixel_values"} or self.inputs["pixel_values"].dim() != 4:
            return False
        return self.rows is None or set(self._some_rows) == {1}

    def with_pictures(self, index: Int[Tensor, " picture"]) -> dict[str, Tensor]:
        """Returns the inputs with these pictures, in this order, as the model reads them."""
        inputs = self._picked(index)
        if self.rows is None:
            return inputs
        rows = {name: [counts[n] for n in index.tolist()] for name, counts in self.rows.items()}
        if "image_token_pooling" in rows:
            _shift_places(inputs, rows)
        elif "target_sizes" in rows and set(rows["pixel_values"]) == {1}:
            _lay_end_to_end(inputs, rows)
        return inputs

    def _picked(self, index: Int[Tensor, " picture"]) -> dict[str, Tensor]:
        if self.rows is None:
            return {**self.inputs, "pixel_values": self.inputs["pixel_values"][index]}
        inputs = dict(self.inputs)
        for name, rows in self.rows.items():
            parts = inputs[name].split(rows)
            inputs[name] = torch.cat([parts[number] for number in index.tolist()])
        return inputs

    def to(self, device: torch.device) -> "Batch":
        """Returns the same questions on a device; those that are there already, as they are."""
        return replace(
            self,
            inputs={name: tensor.to(device) for name, tensor in self.inputs.items()},
            image_index=self.image_index.to(device),
            labels=None if self.labels is None else self.labels.to(device),
        )

    def select(self, rows: Sequence[int]) -> "Batch":
        """Picks questions, and once each the pictures that they look at."""
        index = torch.tensor(rows, device=self.image_index.device)
        images, image_index = torch.unique(self.image_index[index], return_inverse=True)
        inputs = self._picked(images)
        kept = images.tolist()
        return Batch(
            inputs={n: v if n in self.of_pictures else v[index] for n, v in inputs.items()},
            image_index=image_index,
            labels=None if self.labels is None else self.labels[index],
            rows=self.rows
            and {name: tuple(rows[k] for k in kept) for name, rows in self.rows.items()},
        )


@dataclass(frozen=True, kw_only=True)
class VLM:
    """A loaded model. Pictures are encoded once however many questions are asked about them."""

    name: str
    model: PreTrainedModel
    processor: ProcessorMixin
    towers: Towers
    _prompts: Recent[tuple[str, bool, tuple[int, int]], Texts] = field(
        default_factory=Recent, repr=False
    )
    """What prompts become with a picture of a size: small data sets ask few questions."""
    _rooms: Recent[tuple[bool, tuple[int, int]], Room | Literal[False]] = field(
        default_factory=Recent, repr=False
    )
    """What is put into prompts, verbatim or not, for a picture of a size; False if that varies."""

    _reading: AbstractContextManager[Any] = field(default_factory=Lock, repr=False, compare=False)
    """Held by who uses the tokenizer: one thread encodes while another decodes answers."""

    @cached_property
    def asking(self) -> Asking:
        """How it is asked in text, and what it should answer."""
        return Asking(name=self.name, model=self.model, processor=self.processor)

    @property
    def has_encoder(self) -> bool:
        """Whether the language model reads with an encoder (T5) and answers with a decoder."""
        return has_encoder(self.model)

    def save(self, folder: Path, shard: str = "5GB") -> None:
        """Writes model and processor so that plain transformers loads them.

        Args:
            folder: where to.
            shard: the most that one file of weights holds.
        """
        with closed(self.model):
            self.model.save_pretrained(folder, max_shard_size=shard)
        self.processor.save_pretrained(folder)

    def encode(
        self,
        examples: Sequence[Example],
        images: Callable[[str], Image],
        *,
        answers: bool,
        blank: Image | None = None,
        device: torch.device | None = None,
    ) -> Batch:
        """Turns questions, and their answers where wanted, into tensors.

        Args:
            examples: at least one; those about one picture share its row of pixel values.
            images: opens a picture by its id.
            answers: True to teach or to score answers, False to generate them.
            blank: shown instead of every picture, if given.
            device: where the tensors go; None for where the model is.
        """
        about: dict[str, list[int]] = {}  # the questions about each picture
        for index, example in enumerate(examples):
            about.setdefault("" if blank is not None else example.image_id, []).append(index)
        prompts: dict[int, dict[str, Tensor]] = {}

        def processed(names: Sequence[str]) -> _Pictures:
            opened = [images(name) if blank is None else blank for name in names]
            for name, picture in zip(names, opened, strict=True):
                prompts.update({n: self._prompt(examples[n], picture) for n in about[name]})
            return self._pictures(opened, [examples[about[name][-1]] for name in names])

        shown = list(about)
        parts: list[_Pictures] = []
        held = 0
        with self._reading:
            for start in range(0, len(shown), _OPEN):
                made, counts = processed(shown[start : start + _OPEN])
                held += sum(tensor.nbytes for tensor in made.values())
                if held > _IN_MEMORY:
                    made = {n: on_disk(t.shape, t.dtype).copy_(t) for n, t in made.items()}
                parts.append((made, counts))
            texts = [prompts[index] for index in range(len(examples))]
            said = [self.asking.answer(e) for e in examples] if answers else None
            inputs, labels = self._texts(texts, said)
        pixels, rows = _end_to_end(parts)
        row = {index: number for number, name in enumerate(shown) for index in about[name]}
        batch = Batch(
            inputs=inputs | pixels,
            image_index=torch.tensor([row[index] for index in range(len(examples))]),
            labels=labels,
            rows=rows,
        )
        return batch.to(self.model.device if device is None else device)

    def answer_logits(
        self, batch: Batch
    ) -> tuple[Float[Tensor, "token vocabulary"], Int[Tensor, " token"]]:
        """Returns the logits that predict each answer token, and the tokens; differentiable.

        The token that ends an answer counts as one of its tokens.
        """
        if batch.labels is None or not self._spares_logits(batch.labels):
            return self.at_answers(self.all_logits(batch), batch)
        places = (batch.labels[:, 1:] != NO_LABEL).any(dim=0).nonzero()[:, 0]
        # Counted from the end, as GIT's has places for the picture in front.
        logits = self._logits(batch, logits_to_keep=places - batch.labels.shape[1])
        labels = batch.labels[:, places + 1]
        kept = labels != NO_LABEL
        return logits[kept], labels[kept]

    def _spares_logits(self, labels: Int[Tensor, "batch time"]) -> bool:
        """Whether logits where no answer token is predicted are many, and can be left out."""
        parameter = inspect.signature(self.model.forward).parameters.get("logits_to_keep")
        if self.has_encoder or parameter is None or "Tensor" not in str(parameter.annotation):
            return False
        vocabulary = getattr(self.model.config.get_text_config(), "vocab_size", 0)
        return bool(labels.numel() * vocabulary * self.model.dtype.itemsize > _ALL_LOGITS)

    def at_answers(
        self, logits: Float[Tensor, "batch time vocabulary"], batch: Batch
    ) -> tuple[Float[Tensor, "token vocabulary"], Int[Tensor, " token"]]:
        """Picks the logits that predict each answer token out of all, and the tokens."""
        labels = cast(Tensor, batch.labels)
        logits = logits[:, -labels.shape[1] :]  # GIT's has places for the picture in front
        if not self.has_encoder:
            # A decoder's logits at one place predict the token at the next.
            logits, labels = logits[:, :-1], labels[:, 1:]
        kept = labels != NO_LABEL
        return logits[kept], labels[kept]

    def all_logits(self, batch: Batch) -> Float[Tensor, "batch time vocabulary"]:
        """Returns the logits at every place of the answering sequence; differentiable.

        With an encoder that is the decoder's sequence, the padded answers; without one all of the
        text, image tokens and padding included.
        """
        return self._logits(batch)

    def _logits(self, batch: Batch, **options: Any) -> Float[Tensor, "batch place vocabulary"]:
        if batch.labels is None:
            raise ValueError("logits need a batch that was encoded with answers=True")
        if self.has_encoder:
            options["labels"] = batch.labels
        parameters = inspect.signature(self.model.forward).parameters
        if "use_cache" in parameters or "kwargs" in parameters:
            options["use_cache"] = False
        with self._shared_pictures(batch) as inputs:
            return cast(Tensor, self.model(**inputs, **options).logits)

    @torch.no_grad()
    def positions(self, batch: Batch, layers: Sequence[str]) -> dict[str, int]:
        """Counts the rows that each layer reads in one forward pass over questions and answers."""
        seen = dict.fromkeys(layers, 0)

        def count(name: str, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            read = next(value for value in (*args, *named.values()) if torch.is_tensor(value))
            seen[name] += read.numel() // read.shape[-1]

        with ExitStack() as hooks:
            for name in layers:

                def listen(_: nn.Module, args: Any, named: Any, name: str = name) -> None:
                    count(name, args, named)

                layer = self.model.get_submodule(name)
                hooks.callback(layer.register_forward_pre_hook(listen, with_kwargs=True).remove)
            self.all_logits(batch)
        return seen

    @property
    def puts_pictures_in_front(self) -> bool:
        """Whether a picture's tokens stand in front of the text, and not at places of it."""
        return self.model.config.model_type in _IN_FRONT

    @property
    def vision_roots(self) -> Sequence[str]:
        """The names of the modules that the vision tower consists of: one, in most models."""
        return self.towers.inventory.modules["vision"]

    @property
    def vision_tower(self) -> nn.Module:
        """The module that turns pixels into features; the connector reads them."""
        return self.model.get_submodule(self.vision_roots[0])

    def vision_features(
        self, batch: Batch, tower: nn.Module | None = None
    ) -> Float[Tensor, "image place hidden"]:
        """Returns what the connector reads of each picture, its class token too; differentiable.

        Args:
            tower: asked in place of the model's own vision tower, such as a copy of it.
        """
        if not batch.is_shareable:
            raise SpecError(
                f"model {self.name}: repair.objective features needs a vision tower that reads "
                f"pixel_values alone, not {', '.join(sorted(batch.of_pictures))}."
            )
        tower = self.vision_tower if tower is None else tower
        pixels = batch.inputs["pixel_values"]
        layers = getattr(self.model.config, "vision_feature_layer", None)
        if layers is None:  # as in BLIP-2, which reads the last
            return cast(Tensor, tower(pixel_values=pixels).last_hidden_state)
        hidden = tower(pixel_values=pixels, output_hidden_states=True).hidden_states
        wanted = [layers] if isinstance(layers, int) else layers
        return torch.cat([hidden[layer] for layer in wanted], dim=-1)

    @torch.no_grad()
    def generate(self, batch: Batch, max_new_tokens: int, decoding: Decoding = GREEDY) -> list[str]:
        """Answers without chance; whatever follows the end of an answer is dropped.

        Args:
            batch: questions that were encoded with answers=False.
            max_new_tokens: the longest answer, ≥ 1.
            decoding: all else about the search.
        """
        model: Any = self.model
        prompt = 0 if self.has_encoder else batch.inputs["input_ids"].shape[1]
        options: dict[str, Any] = {"repetition_penalty": decoding.repetition_penalty}
        if prompt and decoding.repetition_penalty != 1:
            # Of a decoder's tokens those alone that it said, not the words of the question.
            penalty = RepetitionPenaltyLogitsProcessor(decoding.repetition_penalty, prompt)
            options = {"repetition_penalty": 1.0, "logits_processor": [penalty]}
        if decoding.beams > 1:
            options["length_penalty"] = decoding.length_penalty
        with self._shared_pictures(batch) as inputs, self._sees_once(batch):
            tokens = model.generate(
                **inputs,
                max_new_tokens=max_new_tokens,
                min_new_tokens=decoding.min_new_tokens or None,
                do_sample=False,
                num_beams=decoding.beams,
                **options,
            )
        with self._reading:
            texts = self.processor.batch_decode(tokens[:, prompt:], skip_special_tokens=True)
        return [text.strip() for text in texts]

    def _prompt(self, example: Example, picture: Image) -> Texts:
        """What a question becomes, [time …] each; how many image tokens follows from the size."""
        key = (example.question, example.verbatim, picture.size)
        found = self._prompts.get(key)
        if found is None:
            found = self._with_room(example, picture)
            self._prompts.put(key, found)
        return found

    def _with_room(self, example: Example, picture: Image) -> Texts:
        """Does so without processing the picture, once it is known what that puts in."""
        key = (example.verbatim, picture.size)
        text = self.asking.prompt(example.question, verbatim=example.verbatim)
        ids = self.asking.tokenizer(text, **self.asking.special(text))["input_ids"]
        room = self._rooms.get(key)
        if room and room.is_sure:
            made = room.made(ids)
            if made is not None:
                return made
        encoded = self._processed(example, picture)
        shape = encoded["input_ids"].shape
        texts = {name: t[0] for name, t in encoded.items() if _is_text(name, t, shape)}
        texts = {"attention_mask": torch.ones_like(texts["input_ids"]), **texts}
        if room is None:
            self._rooms.put(key, room_in(texts, ids, self._image_token) or False)
        elif room and not room.is_sure and len(ids) != room.tokens:
            self._rooms.put(key, room.makes(texts, ids) and replace(room, is_sure=True))
        return texts

    @property
    def _image_token(self) -> int:
        """The token that may stand for a picture in a prompt; -1 if it is not known."""
        config = self.model.config
        names = ("image_token_id", "image_token_index")
        found = (getattr(config, name, None) for name in names)
        return next((token for token in found if token is not None), -1)

    def _pictures(self, pictures: list[Image], examples: list[Example]) -> _Pictures:
        """What pictures become, and how many rows of it are whose; each with a question."""
        first = self._of_picture(examples[0], pictures[0])
        pixels = first.get("pixel_values")
        is_plain = first.keys() == {"pixel_values"} and pixels is not None and pixels.dim() == 4
        if not first or (is_plain and len(cast(Tensor, pixels)) == 1):
            encoded = self.processor.image_processor(pictures, return_tensors="pt")
            if len(encoded["pixel_values"]) == len(pictures):
                return {"pixel_values": encoded["pixel_values"].to(self.model.dtype)}, None
        rest = zip(examples[1:], pictures[1:], strict=True)
        each = [first, *(self._of_picture(*pair) for pair in rest)]
        rows = {name: tuple(len(one[name]) for one in each) for name in first}
        return {name: _stacked([one[name] for one in each]) for name in first}, rows

    def _of_picture(self, example: Example, picture: Image) -> dict[str, Tensor]:
        encoded = self._processed(example, picture)
        shape = encoded["input_ids"].shape
        return {
            name: tensor.to(self.model.dtype) if tensor.is_floating_point() else tensor
            for name, tensor in encoded.items()
            if not _is_text(name, tensor, shape)
        }

    def _processed(self, example: Example, picture: Image) -> dict[str, Tensor]:
        text = self.asking.prompt(example.question, verbatim=example.verbatim)
        encoded = self.processor(
            images=[picture], text=[text], return_tensors="pt", **self.asking.special(text)
        )
        if "input_ids" not in encoded:
            raise SpecError(
                f"model {self.name}: its processor makes no input_ids of a question. A model that "
                "reads pictures alone cannot be asked one; choose a model that reads text too."
            )
        # PaliGemma's makes labels, of the prompt alone.
        return {n: t for n, t in encoded.items() if isinstance(t, Tensor) and n != "labels"}

    def _texts(
        self, prompts: list[dict[str, Tensor]], targets: list[Tensor] | None
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """Pads prompts, and answers if there are any, into the model's inputs and labels."""
        if targets is None or self.has_encoder:
            # A decoder goes on from the last place: what it generates from is padded on the left.
            side = "right" if self.has_encoder else "left"
            labels = None if targets is None else pad_sequence(targets, True, NO_LABEL)
            return self._padded(prompts, side), labels
        pairs = list(zip(prompts, targets, strict=True))
        is_prefix = self.model.config.model_type in _PREFIX
        texts = [
            {name: _continued(name, tensor, answer, is_prefix) for name, tensor in prompt.items()}
            for prompt, answer in pairs
        ]
        rows = [
            torch.cat([torch.full_like(prompt["input_ids"], NO_LABEL), answer])
            for prompt, answer in pairs
        ]
        return self._padded(texts, "right"), pad_sequence(rows, True, NO_LABEL)

    def _padded(self, texts: list[dict[str, Tensor]], side: str) -> dict[str, Tensor]:
        pad = self.asking.padding
        return {
            name: pad_sequence(
                [text[name] for text in texts],
                True,
                pad if name.endswith("input_ids") else 0,
                padding_side="right" if name.startswith("qformer_") else side,
            )
            for name in texts[0]
        }

    def _sees_once(self, batch: Batch) -> AbstractContextManager[None]:
        """Spares the vision tower what it, or one of equal weights, has made of a batch before."""
        if batch.seen is None or not batch.is_shareable or len(self.vision_roots) > 1:
            return nullcontext()
        if sum(p.nbytes for p in self.vision_tower.parameters()) > _SEEN_WEIGHTS:
            return nullcontext()
        most = _SEEN_BYTES * batch.inputs["pixel_values"].nbytes
        return asked_once(self.vision_tower, batch.seen, most)

    @contextmanager
    def _shared_pictures(self, batch: Batch) -> Iterator[dict[str, Tensor]]:
        """Hands each question its picture's rows, of which the vision tower sees each once.

        They are cut down to one a picture where the tower begins, and repeated where it, or the
        connector, ends: nothing else of the model can tell. Where a picture is more than one row of
        pixel values, the tower runs once a question instead.
        """
        pictures = batch.pictures
        towers = self.vision_roots
        inputs = batch.with_pictures(batch.image_index)
        is_each_once = len(batch) == pictures and batch.image_index.equal(
            torch.arange(pictures, device=batch.image_index.device)
        )
        if is_each_once or not batch.is_shareable or len(towers) > 1:
            yield inputs
            return
        which = batch.image_index.tolist()
        first = torch.tensor([which.index(n) for n in range(pictures)], device=self.model.device)
        beams = 0  # rows that transformers made of each question's, once the tower has been reached

        def cut(module: nn.Module, args: Any, named: dict[str, Any]) -> Any:
            nonlocal beams
            pixels = named.get("pixel_values", args[0] if args else None)
            if _shown.get() is not batch or pixels is None or len(pixels) % len(batch):
                return None  # another pass of the model, in a context of its own
            beams = len(pixels) // len(batch)
            pixels = pixels[first * beams]
            if "pixel_values" in named:
                return args, named | {"pixel_values": pixels}
            return (pixels, *args[1:]), named

        behind = self.model.config.model_type in _SHARED_BEHIND_CONNECTOR

        def repeat(module: nn.Module, args: object, output: Any) -> Any:
            if _shown.get() is not batch or not beams:
                return None
            if behind and (output.dim() != 3 or len(output) != pictures):  # [image token hidden]
                raise SpecError(
                    f"model {self.name}: its connector makes {tuple(output.shape)} of {pictures} "
                    "pictures, not a fixed number of tokens for each, as BLIP-2 and LLaVA do. "
                    "Choose a model of such a type."
                )
            return _repeated(output, batch.image_index.repeat_interleave(beams), pictures)

        tower = self.model.get_submodule(towers[0])
        end = self.model.get_submodule(self.towers.projector) if behind else tower
        hooks = [
            tower.register_forward_pre_hook(cut, with_kwargs=True),
            end.register_forward_hook(repeat),
        ]
        token = _shown.set(batch)
        try:
            yield inputs
        finally:
            _shown.reset(token)
            for hook in hooks:
                hook.remove()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Turns dropout off meanwhile."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _shift_places(inputs: dict[str, Tensor], rows: Mapping[str, Sequence[int]]) -> None:
    """Counts the places that Molmo pools over through all pictures, not anew in each."""
    crops = torch.tensor(rows["pixel_values"]).cumsum(0) - torch.tensor(rows["pixel_values"])
    patches = inputs["pixel_values"].shape[1]
    before = crops.repeat_interleave(torch.tensor(rows["image_token_pooling"])) * patches
    places = inputs["image_token_pooling"]
    moved = places + before[:, None].to(places.device)
    inputs["image_token_pooling"] = moved.where(places >= 0, places)  # -1 is no place


def _lay_end_to_end(inputs: dict[str, Tensor], rows: Mapping[str, Sequence[int]]) -> None:
    """Makes one picture of all, as MiniCPM reads them: [1 channel side width], patch by patch."""
    pixels = inputs["pixel_values"]
    sizes = inputs["target_sizes"].prod(dim=1).split(list(rows["target_sizes"]))
    widths = [int(size.sum()) * pixels.shape[2] for size in sizes]
    parts = [one[:, :, :width] for one, width in zip(pixels, widths, strict=True)]
    inputs["pixel_values"] = torch.cat(parts, dim=-1)[None]


def _is_text(name: str, tensor: Tensor, shape: torch.Size) -> bool:
    """Whether an input runs along the text: its prompt's, or that of a Q-Former which reads too."""
    along = tensor.shape[:2] == shape and not tensor.is_floating_point()
    return name.startswith("qformer_") or (along and not name.startswith("pixel_"))


def _continued(name: str, prompt: Tensor, answer: Tensor, is_prefix: bool) -> Tensor:
    """Goes on with the answer: its ids, or what was said of the prompt's last token.

    Where the prompt is a prefix that sees all of itself, the answer is marked as no part of it.
    """
    if name.startswith("qformer_"):
        return prompt
    more = prompt[-1:].expand(len(answer), *prompt.shape[1:])
    if name == "input_ids":
        more = answer
    elif name == "token_type_ids" and is_prefix:
        more = torch.ones_like(more)
    return torch.cat([prompt, more])


def _end_to_end(parts: list[_Pictures]) -> _Pictures:
    """Joins what was made of some pictures and of the next, as if it were made of all at once."""
    if len(parts) == 1:
        return parts[0]
    joined = {name: _stacked([one[name] for one, _ in parts]) for name in parts[0][0]}
    if all(rows is None for _, rows in parts):
        return joined, None
    each = [rows or {name: (1,) * len(one[name]) for name in one} for one, rows in parts]
    return joined, {
        name: tuple(chain.from_iterable(rows[name] for rows in each)) for name in joined
    }


def _stacked(parts: list[Tensor]) -> Tensor:
    """Lays pictures' rows in a row, filled up with zeros to the largest picture's shape."""
    largest = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
    shape, dtype = (sum(map(len, parts)), *largest), parts[0].dtype
    is_large = math.prod(shape) * dtype.itemsize > _IN_MEMORY
    whole = on_disk(shape, dtype) if is_large else torch.zeros(shape, dtype=dtype)
    start = 0
    for part in parts:
        place = (slice(start, start + len(part)), *(slice(size) for size in part.shape[1:]))
        whole[place] = part
        start += len(part)
    return whole


def _repeated(value: Any, index: Int[Tensor, " batch"], pictures: int) -> Any:
    """Hands out the rows of every tensor that has one for each picture."""
    if isinstance(value, Tensor):
        return value.index_select(0, index) if value.shape[:1] == (pictures,) else value
    if isinstance(value, ModelOutput):
        return type(value)(**{k: _repeated(v, index, pictures) for k, v in value.items()})
    if type(value) in (tuple, list):
        return type(value)(_repeated(item, index, pictures) for item in value)
    return value
