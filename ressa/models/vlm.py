"""A vision-language model with its processor, and what the rest of `ressa` asks of it.

Dimensions: image = distinct pictures of a batch; batch = its questions; time = tokens of one
question's text; token = answer tokens of all questions, end to end.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import ProcessorMixin

from ressa.errors import SpecError
from ressa.models.towers import Towers
from ressa.records import Example
from ressa.spec import Decoding

NO_LABEL = -100
"""Marks a place where no answer token stands; transformers' losses skip it too."""

GREEDY = Decoding()

_shown: ContextVar["Batch | None"] = ContextVar("shown", default=None)
"""The batch that runs through the model; passes that run side by side each have their own."""

# For checkpoints that come without a chat template: how their authors asked questions.
_PROMPTS = {
    "blip-2": "Question: {question} Answer:",
    "llava": "USER: <image>\n{question} ASSISTANT:",
}
# Of these types, those that read nothing but the question once that is a whole prompt.
_BARE = ("blip-2",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Questions, ready for the model; several may look at one picture."""

    inputs: dict[str, Tensor]
    """input_ids and attention_mask [batch time], pixel_values [image channel height width]."""
    image_index: Int[Tensor, " batch"]
    """The row of pixel_values that each question looks at."""
    labels: Int[Tensor, "batch time"] | None
    """Answer tokens with their end of text, `NO_LABEL` elsewhere; None without answers."""

    def __len__(self) -> int:
        return len(self.image_index)


@dataclass(frozen=True, kw_only=True)
class VLM:
    """A loaded model. Pictures are encoded once however many questions are asked about them."""

    name: str
    model: PreTrainedModel
    processor: ProcessorMixin
    towers: Towers
    _prompts: dict[tuple[str, bool], Tensor] = field(default_factory=dict, repr=False)
    """Token ids of the prompts seen so far: data sets ask few distinct questions."""

    @property
    def has_encoder(self) -> bool:
        """Whether the language model reads with an encoder (T5) and answers with a decoder."""
        return bool(self.model.config.get_text_config().is_encoder_decoder)

    def encode(
        self,
        examples: Sequence[Example],
        images: Callable[[str], Image],
        *,
        answers: bool,
        blank: Image | None = None,
    ) -> Batch:
        """Turns questions, and their answers where wanted, into tensors on the model's device.

        Args:
            examples: at least one; those about one picture share its row of pixel values.
            images: opens a picture by its id.
            answers: True to teach or to score answers, False to generate them.
            blank: shown instead of every picture, if given.
        """
        shown = [None] if blank is not None else list(dict.fromkeys(e.image_id for e in examples))
        pictures = [blank if name is None else images(name) for name in shown]
        row = {name: index for index, name in enumerate(shown)}
        image_index = [0 if blank is not None else row[e.image_id] for e in examples]
        prompts = [self._prompt_ids(e, cast(Image, pictures[0])) for e in examples]
        inputs, labels = self._texts(prompts, [e.answer for e in examples] if answers else None)
        inputs["pixel_values"] = self._pixels(cast("list[Image]", pictures))
        device = self.model.device
        return Batch(
            inputs={name: tensor.to(device) for name, tensor in inputs.items()},
            image_index=torch.tensor(image_index, device=device),
            labels=None if labels is None else labels.to(device),
        )

    def answer_logits(
        self, batch: Batch
    ) -> tuple[Float[Tensor, "token vocabulary"], Int[Tensor, " token"]]:
        """Returns the logits that predict each answer token, and the tokens; differentiable.

        The token that ends an answer counts as one of its tokens.
        """
        return self.at_answers(self.all_logits(batch), batch)

    def at_answers(
        self, logits: Float[Tensor, "batch time vocabulary"], batch: Batch
    ) -> tuple[Float[Tensor, "token vocabulary"], Int[Tensor, " token"]]:
        """Picks the logits that predict each answer token out of all, and the tokens."""
        labels = cast(Tensor, batch.labels)
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
        if batch.labels is None:
            raise ValueError("logits need a batch that was encoded with answers=True")
        with self._shared_pictures(batch):
            if self.has_encoder:
                logits = self.model(**batch.inputs, labels=batch.labels, use_cache=False).logits
            else:
                logits = self.model(**batch.inputs, use_cache=False).logits
        return cast(Tensor, logits)

    @property
    def vision_tower(self) -> nn.Module:
        """The module that turns pixels into features; the connector reads them."""
        return cast(nn.Module, self.model.get_encoder("image"))

    def vision_features(
        self, batch: Batch, tower: nn.Module | None = None
    ) -> Float[Tensor, "image place hidden"]:
        """Returns what the connector reads of each picture, its class token too; differentiable.

        Args:
            tower: asked in place of the model's own vision tower, such as a copy of it.
        """
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
        beams = {} if decoding.beams == 1 else {"length_penalty": decoding.length_penalty}
        with self._shared_pictures(batch, decoding.beams):
            tokens = model.generate(
                **batch.inputs,
                max_new_tokens=max_new_tokens,
                min_new_tokens=decoding.min_new_tokens or None,
                do_sample=False,
                num_beams=decoding.beams,
                repetition_penalty=decoding.repetition_penalty,
                **beams,
            )
        if not self.has_encoder:
            tokens = tokens[:, batch.inputs["input_ids"].shape[1] :]
        texts = self.processor.batch_decode(tokens, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def prompt(self, question: str, *, verbatim: bool = False) -> str:
        """Wraps a question the way the model expects it: its chat template, else its authors' form.

        Args:
            question: what is asked.
            verbatim: True if it is a whole prompt by itself, so that no words are put around it
                other than those that mark a user's turn.

        Raises:
            SpecError: if the model comes without a template and is of no type known here.
        """
        tokenizer = self._tokenizer
        template = getattr(self.processor, "chat_template", None) or tokenizer.chat_template
        if template is None:
            kind = self.model.config.model_type
            if kind not in _PROMPTS:
                raise SpecError(
                    f"model {self.name}: it comes without a chat template, and how to ask a "
                    f"{kind!r} model is not known here (known: {', '.join(sorted(_PROMPTS))}). "
                    "Save it with a processor that has a chat_template."
                )
            bare = verbatim and kind in _BARE
            return question if bare else _PROMPTS[kind].format(question=question)
        content = [{"type": "image"}, {"type": "text", "text": question}]
        messages: list[Any] = [{"role": "user", "content": content}]
        return self.processor.apply_chat_template(
            messages, chat_template=template, add_generation_prompt=True, tokenize=False
        )

    @property
    def _tokenizer(self) -> Any:
        return self.processor.tokenizer

    def _prompt_ids(self, example: Example, picture: Image) -> Int[Tensor, " time"]:
        """Tokens of a prompt with its image tokens, whose number is the same for every picture."""
        key = (example.question, example.verbatim)
        if key not in self._prompts:
            text = self.prompt(example.question, verbatim=example.verbatim)
            encoded = self.processor(images=[picture], text=[text], return_tensors="pt")
            self._prompts[key] = encoded["input_ids"][0]
        return self._prompts[key]

    def _answer_ids(self, answer: str) -> Int[Tensor, " time"]:
        ids = self._tokenizer(answer, add_special_tokens=False)["input_ids"]
        return torch.tensor([*ids, self._tokenizer.eos_token_id])

    def _texts(
        self, prompts: list[Tensor], answers: list[str] | None
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """Pads prompts, and answers if there are any, into input ids, attention mask and labels."""
        pad = self._tokenizer.pad_token_id
        targets = None if answers is None else [self._answer_ids(answer) for answer in answers]
        if targets is None or self.has_encoder:
            # A decoder goes on from the last place: what it generates from is padded on the left.
            side = "right" if self.has_encoder else "left"
            labels = None if targets is None else pad_sequence(targets, True, NO_LABEL)
            return _padded(prompts, pad, side), labels
        texts = [torch.cat(pair) for pair in zip(prompts, targets, strict=True)]
        unanswered = [torch.full_like(prompt, NO_LABEL) for prompt in prompts]
        rows = [torch.cat(pair) for pair in zip(unanswered, targets, strict=True)]
        return _padded(texts, pad, "right"), pad_sequence(rows, True, NO_LABEL)

    def _pixels(self, pictures: list[Image]) -> Float[Tensor, "image channel height width"]:
        encoded = self.processor.image_processor(pictures, return_tensors="pt")
        return cast(Tensor, encoded["pixel_values"]).to(self.model.dtype)

    @contextmanager
    def _shared_pictures(self, batch: Batch, beams: int = 1) -> Iterator[None]:
        """Hands each question its picture's rows where the connector hands them on.

        So vision tower and connector run once a picture, and everything after sees one picture a
        question, as if the pixels had been repeated. What transformers itself repeated for each
        beam of a search is cut back before the tower and repeated behind the connector.
        """
        pictures = len(batch.inputs["pixel_values"])
        repeated = False

        def cut(module: nn.Module, args: Any, inputs: dict[str, Any]) -> Any:
            nonlocal repeated
            pixels = inputs.get("pixel_values", args[0] if args else None)
            if _shown.get() is not batch or pixels is None or len(pixels) == pictures:
                return None
            repeated = len(pixels) == pictures * beams
            if not repeated:
                return None
            pixels = pixels[::beams]
            if "pixel_values" in inputs:
                return args, inputs | {"pixel_values": pixels}
            return (pixels, *args[1:]), inputs

        def repeat(module: nn.Module, args: object, output: Tensor) -> Tensor | None:
            if _shown.get() is not batch:  # another pass of the model, in a context of its own
                return None
            if output.dim() != 3 or len(output) != pictures:  # [image token hidden]
                raise SpecError(
                    f"model {self.name}: its connector makes {tuple(output.shape)} of {pictures} "
                    "pictures, not a fixed number of tokens for each, as BLIP-2 and LLaVA do. "
                    "Choose a model of such a type."
                )
            index = batch.image_index
            return output.index_select(0, index.repeat_interleave(beams) if repeated else index)

        hooks = [self.model.get_submodule(self.towers.projector).register_forward_hook(repeat)]
        if beams > 1:
            hooks.append(self.vision_tower.register_forward_pre_hook(cut, with_kwargs=True))
        token = _shown.set(batch)
        try:
            yield
        finally:
            _shown.reset(token)
            for hook in hooks:
                hook.remove()


def _padded(texts: list[Tensor], pad: int, side: str) -> dict[str, Tensor]:
    ones = [torch.ones_like(text) for text in texts]
    return {
        "input_ids": pad_sequence(texts, True, pad, padding_side=side),
        "attention_mask": pad_sequence(ones, True, 0, padding_side=side),
    }
