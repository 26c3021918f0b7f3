"""How a model is asked and what it should say: prompts, chat templates, tokens of answers."""

import logging
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import torch
from jaxtyping import Int
from jinja2 import TemplateError
from torch import Tensor
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import ProcessorMixin

from ressa.errors import SpecError
from ressa.models.prompts import Recent
from ressa.models.towers import has_encoder
from ressa.records import Example

log = logging.getLogger(__name__)

# For checkpoints that come without a chat template: how their authors asked questions.
_PROMPTS = {
    "blip-2": "Question: {question} Answer:",
    "llava": "USER: <image>\n{question} ASSISTANT:",
    "instructblip": "{question}",
    "paligemma": "<image>{question}",
    "florence2": "{question}",
    "kosmos-2": "<grounding> Question: {question} Answer:",
}
# Of these types, those that read nothing but the question once that is a whole prompt.
_BARE = ("blip-2",)
# What a blank follows where an answer comes next; in half a caption none does.
_MARKS = (":", ".", "?", "!")
# Types whose prompts end in a line break all the same, which their processors add.
_ENDED = ("paligemma",)
_QUESTION, _ANSWER = "(question)", "(answer)"  # shown to chat templates to see what is around them

_Content: TypeAlias = str | list[dict[str, str]]
"""What is said in a turn, as a whole or in parts."""


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How one model is asked, in text and tokens; pictures are not its business."""

    name: str
    model: PreTrainedModel
    processor: ProcessorMixin
    _answers: Recent[tuple[str, bool, str], Tensor] = field(default_factory=Recent, repr=False)
    """What answers to questions become."""

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""
        return self.processor.tokenizer

    @property
    def kind(self) -> str:
        """The type that transformers gives to the model."""
        return str(self.model.config.model_type)

    @property
    def padding(self) -> int:
        """The token of places that are masked; any will do."""
        pad, end = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        return int(end if pad is None else pad)

    def prompt(self, question: str, *, verbatim: bool = False) -> str:
        """Wraps a question the way the model expects it: its chat template, else its authors' form.

        Args:
            question: what is asked.
            verbatim: True if it is a whole prompt by itself, so that no words are put around it
                other than those that mark a user's turn.

        Raises:
            SpecError: if the model comes without a template and is of no type known here.
        """
        if self._template is None:
            kind = self.kind
            if kind not in _PROMPTS:
                raise SpecError(
                    f"model {self.name}: it comes without a chat template for questions about "
                    f"pictures, and how to ask a {kind!r} model is not known here (known: "
                    f"{', '.join(sorted(_PROMPTS))}). Save it with a processor that has a "
                    "chat_template."
                )
            bare = verbatim and kind in _BARE
            return question if bare else _PROMPTS[kind].format(question=question)
        return self._rendered(self._template, question)

    @cached_property
    def _template(self) -> str | None:
        """The chat template; the tokenizer's, if the processor has none and it is for pictures."""
        template = _named(getattr(self.processor, "chat_template", None))
        if template is None:
            template = _named(self.tokenizer.chat_template)
            # Some know text alone.
            if template is None or self._if_possible(template) is None:
                return None
        if self._rendered(template, _QUESTION).rstrip().endswith("<think>"):
            log.warning(
                "model %s: its chat template has it think before it answers, which it cannot end "
                "in the few tokens of an answer: scores will be near 0. Save its processor with a "
                "chat_template that does not open <think>.",
                self.name,
            )
        return template

    def _if_possible(self, template: str, reply: _Content | None = None) -> str | None:
        """What a template makes of messages of several parts; None if it fails or prints them."""
        try:
            written = self._rendered(template, _QUESTION, reply)
        except (TemplateError, TypeError):
            return None
        return None if "'type'" in written else written

    def _rendered(self, template: str, question: str, reply: _Content | None = None) -> str:
        """Writes a user's turn and opens the model's, or writes that as well."""
        content = [{"type": "image"}, {"type": "text", "text": question}]
        messages: list[Any] = [{"role": "user", "content": content}]
        if reply is not None:
            messages.append({"role": "assistant", "content": reply})
        options: dict[str, Any] = {}
        if "enable_thinking" in template:  # of a name that a template does not read, it is warned
            options["enable_thinking"] = False
        return self.processor.apply_chat_template(
            messages,
            chat_template=template,
            add_generation_prompt=reply is None,
            tokenize=False,
            **options,
        )

    @cached_property
    def _turn(self) -> tuple[str, str]:
        """What a chat template puts between its prompt and an answer, and at the answer's end."""
        if self._template is None:
            return "", ""
        turn = self._if_possible(self._template, [{"type": "text", "text": _ANSWER}])
        turn = turn or self._if_possible(self._template, _ANSWER) or ""
        before, found, behind = turn.rpartition(_ANSWER)
        if not found:  # it writes no turn of the model's
            return "", ""
        prompt = self._rendered(self._template, _QUESTION)
        lead = before.removeprefix(prompt) if before.startswith(prompt) else ""
        # Up to the first token that is no text: what follows is said by nobody.
        added = self.tokenizer.added_tokens_decoder.values()
        tokens = [str(token) for token in added if token.special and str(token) in behind]
        ends = [behind.index(token) + len(token) for token in tokens]
        return lead, behind[: min(ends)] if ends else behind.rstrip()

    def special(self, prompt: str) -> dict[str, bool]:
        """Options of tokenizers, for a prompt with the token that begins a text: no second one."""
        first = getattr(self.tokenizer, "bos_token", None)
        return {"add_special_tokens": False} if first and prompt.startswith(first) else {}

    def answer(self, example: Example) -> Int[Tensor, " time"]:
        """The tokens that the model should say, the one that ends its answer among them."""
        key = (example.question, example.verbatim, example.answer)
        found = self._answers.get(key)
        if found is None:
            ids = self._decoded(example.answer) if has_encoder(self.model) else self._said(example)
            found = torch.tensor(ids)
            self._answers.put(key, found)
        return found

    def _decoded(self, answer: str) -> list[int]:
        """What a decoder behind an encoder says: BART's begins with <s>, T5's with the answer."""
        ids, end = self.tokenizer(answer)["input_ids"], self.tokenizer.eos_token_id
        settings: Any = self.model.generation_config
        start = settings.decoder_start_token_id
        if ids[:1] == [settings.bos_token_id if start is None else start]:
            ids = ids[1:]
        return ids if ids[-1:] == [end] else [*ids, end]

    def _said(self, example: Example) -> list[int]:
        """What follows a prompt: there an answer may be other tokens than by itself."""
        prompt = self.prompt(example.question, verbatim=example.verbatim)
        lead, end = self._turn
        if self._template is None and prompt.endswith(_MARKS) and not example.answer[:1].isspace():
            lead = "" if self.kind in _ENDED else " "
        answer = lead + example.answer + end
        before, both, alone = (
            self.tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in (prompt, prompt + answer, answer)
        )
        ids = both[len(before) :] if both[: len(before)] == before else alone
        return ids if end else [*ids, self.tokenizer.eos_token_id]


def _named(template: str | dict[str, str] | None) -> str | None:
    """A template, of several by name the one for everything."""
    return template.get("default") if isinstance(template, dict) else template
