"""How models are asked, by tokenizers and processors of transformers, made small and offline."""

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import RobertaProcessing, TemplateProcessing
from torch.testing import assert_close
from transformers import (
    CLIPImageProcessorPil,
    Gemma3Processor,
    LlavaProcessor,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm.processing_smolvlm import DEFAULT_CHAT_TEMPLATE as SMOLVLM

from benchmarks.zoo import stages
from benchmarks.zoo.configs import IMAGE, PATCH
from ressa.errors import SpecError
from ressa.models import NO_LABEL, VLM
from ressa.models import vlm as module
from ressa.records import Example
from ressa.spec import Decoding

pytestmark = pytest.mark.filterwarnings("ignore")
WORDS = ("what", "is", "this", "red", "blue", "yes", "no", "?", "user", "model")
SIZE = {"height": IMAGE, "width": IMAGE}

# As google/gemma-3-4b-it writes turns.
GEMMA3 = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn> "
    "{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{% for c in m['content'] %}{{ '<start_of_image> ' if c['type'] == 'image' else c['text'] }}"
    "{% endfor %}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn> model\n{% endif %}"
)
# As llava-hf/llava-1.5-7b-hf does: nothing ends an answer.
LLAVA = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}{% for c in m['content'] %}"
    "{{ '<image>\n' if c['type'] == 'image' else c['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
# Replies are text, not parts.
REPLY_AS_TEXT = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<image>{{ m['content'][1]['text'] }}|"
    "{% else %}{{ m['content'] + '<end>' }}{% endif %}{% endfor %}"
)
# A reply is not written as its turn is opened.
OPENED_OTHERWISE = (
    "<image>{% for m in messages %}[{{ m['role'] }}]"
    "{% for c in m['content'] %}{{ c['text'] }}{% endfor %}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]<quick>{% endif %}"
)
TEXT_ALONE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
TEXT_REQUIRED = "{% for m in messages %}{{ m['content'].strip() + eos_token }}{% endfor %}"


def example(answer: str = "red", question: str = "what is this") -> Example:
    return Example(
        id=answer, image_id="0", question=question, answer=answer, kind="", verbatim=True
    )


def picture(image_id: str) -> Image.Image:
    return Image.new("RGB", (IMAGE, IMAGE), "red")


def of_words(*special: str, post: Any = None, **options: Any) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words."""
    names = ["<pad>", "<eos>", "<bos>", "<unk>", *special]
    vocabulary = {word: number for number, word in enumerate([*names, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if post is not None:
        tokenizer.post_processor = post
    return fast(tokenizer, **options)


def of_bytes(*special: str) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes, as GPT-2's without its merges: blanks belong to words."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = ["<pad>", "<eos>", "<bos>", "<unk>", *special]
    vocabulary = {letter: number for number, letter in enumerate([*names, *letters])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return fast(tokenizer, extra_special_tokens={f"s{n}": name for n, name in enumerate(special)})


def fast(tokenizer: Tokenizer, **options: Any) -> PreTrainedTokenizerFast:
    names = {f"{name}_token": f"<{name}>" for name in ("pad", "eos", "bos", "unk")}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{**names, **options})


def build(kind: str) -> VLM:
    """A small random model of a type."""
    stages.quiet()
    vlm = stages.build(kind)
    vlm.model.to("cpu")
    return vlm


def with_processor(kind: str, processor: Any, image_token: int) -> VLM:
    """A small random model of a type, asked by a processor."""
    vlm = replace(build(kind), processor=processor)
    vlm.model.config.image_token_id = image_token
    return vlm


def said(vlm: VLM, *examples: Example) -> list[list[str]]:
    """The tokens that are labels."""
    labels = vlm.encode(examples, picture, answers=True).labels
    assert labels is not None
    convert = vlm.processor.tokenizer.convert_ids_to_tokens
    return [convert(row[row != NO_LABEL]) for row in labels]


@pytest.fixture
def paligemma() -> VLM:
    pixels = SiglipImageProcessorPil(size=SIZE)
    pixels.image_seq_length = (IMAGE // PATCH) ** 2
    processor = PaliGemmaProcessor(pixels, of_words("<image>"))
    # Its processor adds a thousand tokens for places and segments.
    vlm = with_processor("paligemma", processor, processor.image_token_id)
    vlm.model.resize_token_embeddings(len(processor.tokenizer))
    return vlm


def test_a_prefix_models_questions_and_answers_are_what_its_processor_makes_of_both(
    paligemma: VLM,
) -> None:
    batch = paligemma.encode([example("red blue")], picture, answers=True)
    wanted = paligemma.processor(
        images=[picture("0")],
        text=["<image>what is this"],
        suffix=["red blue"],
        return_tensors="pt",
    )
    assert wanted["token_type_ids"][0, -4:].tolist() == [0, 1, 1, 1]
    for name in ("input_ids", "token_type_ids", "attention_mask"):
        assert batch.inputs[name].equal(wanted[name]), name
    assert batch.labels is not None
    assert batch.labels.equal(wanted["labels"])


@torch.no_grad()
def test_a_prefix_model_does_not_see_the_answer_that_it_predicts(paligemma: VLM) -> None:
    one, other = (
        paligemma.answer_logits(paligemma.encode([example(answer)], picture, answers=True))[0]
        for answer in ("red blue", "red yes")
    )
    assert_close(one[:2], other[:2])
    assert not torch.allclose(one[2], other[2], atol=1e-3)


@torch.no_grad()
def test_labels_that_a_processor_makes_stay_out_of_the_model(
    paligemma: VLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = paligemma.encode([example("red blue"), example("yes")], picture, answers=True)
    everywhere, tokens = paligemma.answer_logits(batch)
    monkeypatch.setattr(module, "_ALL_LOGITS", 0)
    there, same = paligemma.answer_logits(batch)
    assert_close(there, everywhere)
    assert same.equal(tokens)


@pytest.fixture
def gemma3() -> VLM:
    special = ("<image>", "<start_of_image>", "<end_of_image>", "<start_of_turn>", "<end_of_turn>")
    names = ("image_token", "boi_token", "eoi_token", "start", "end")
    tokenizer = of_words(
        *special,
        post=TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)]),
        extra_special_tokens=dict(zip(names, special, strict=True)),
    )
    processor = Gemma3Processor(
        Gemma3ImageProcessorPil(size=SIZE), tokenizer, chat_template=GEMMA3, image_seq_length=4
    )
    return with_processor("gemma3", processor, processor.image_token_id)


def test_a_chat_models_turns_are_those_of_transformers_token_by_token(gemma3: VLM) -> None:
    asked = [example("red", "what is this ?"), example("yes", "is this red ?")]
    asked += [example("no", "is this"), example("blue red", "what")]  # the last by tokens alone
    questions = gemma3.encode(asked, picture, answers=False).inputs
    both = gemma3.encode(asked, picture, answers=True).inputs
    tokenizer = gemma3.processor.tokenizer
    for row, one in enumerate(asked):
        content = [{"type": "image", "image": picture("0")}, {"type": "text", "text": one.question}]
        turns: list[Any] = [{"role": "user", "content": content}]
        reply = {"role": "assistant", "content": [{"type": "text", "text": one.answer}]}
        options: dict[str, Any] = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
        given = questions["input_ids"][row][questions["attention_mask"][row].bool()]
        ask = gemma3.processor.apply_chat_template
        wanted = ask(turns, add_generation_prompt=True, **options)["input_ids"][0]
        assert tokenizer.convert_ids_to_tokens(given) == tokenizer.convert_ids_to_tokens(wanted)
        given = both["input_ids"][row][both["attention_mask"][row].bool()]
        wanted = ask([*turns, reply], **options)["input_ids"][0]
        assert tokenizer.convert_ids_to_tokens(given) == tokenizer.convert_ids_to_tokens(wanted)


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        (SMOLVLM, ["Ġ", "y", "e", "s", "<end_of_utterance>"]),
        (LLAVA, ["Ġ", "y", "e", "s", "<eos>"]),
        (REPLY_AS_TEXT, ["y", "e", "s", "<end>"]),
        (OPENED_OTHERWISE, ["y", "e", "s", "<end>"]),
    ],
    ids=["smolvlm", "llava", "reply as text", "opened otherwise"],
)
def test_an_answer_begins_and_ends_as_the_template_writes_it(
    template: str, wanted: list[str]
) -> None:
    tokenizer = of_bytes("<image>", "<end_of_utterance>", "<end>")
    assert said(llava(tokenizer, template), example("yes")) == [wanted]


def llava(tokenizer: PreTrainedTokenizerFast, template: str | None = None) -> VLM:
    tokenizer.image_token, tokenizer.image_token_id = "<image>", 4
    pixels = CLIPImageProcessorPil(size=SIZE, crop_size=SIZE)
    processor = LlavaProcessor(
        pixels,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )
    return with_processor("llava", processor, 4)


def test_a_blank_comes_before_an_answer_but_not_in_half_a_word_or_behind_a_line_break() -> None:
    for kind, question, answer, first in (
        ("blip-2", "Question: what? Answer:", "yes", "Ġ"),  # OPT's tokenizer is one of bytes
        ("blip-2", "a man ri", "ding a bike", "d"),
        ("blip-2", "a man", " riding a bike", "Ġ"),
        ("blip-2", "", "a man", "a"),
        ("paligemma", "what?", "yes", "y"),
    ):
        vlm = build(kind)
        vlm.processor.tokenizer, vlm.processor.chat_template = of_bytes(), None
        ids = vlm._answer(example(answer, question))
        tokens = vlm.processor.tokenizer.convert_ids_to_tokens(ids)
        letters = [letter for letter in answer if letter != " "]
        assert tokens[0] == first
        assert [token for token in tokens if token != "Ġ"] == [*letters, "<eos>"]


@pytest.mark.parametrize(
    ("kind", "post", "start", "wanted"),
    [
        ("florence2", RobertaProcessing(("<eos>", 1), ("<bos>", 2)), 1, ["<bos>", "yes", "<eos>"]),
        ("blip-2:t5", TemplateProcessing("$A <eos>", None, [("<eos>", 1)]), 0, ["yes", "<eos>"]),
        ("t5gemma2", TemplateProcessing("<bos> $A", None, [("<bos>", 2)]), None, ["yes", "<eos>"]),
    ],
)
def test_a_decoder_is_taught_what_follows_the_token_that_it_starts_from(
    kind: str, post: Any, start: int | None, wanted: list[str]
) -> None:
    vlm = build(kind)
    vlm.processor.tokenizer = of_words(post=post)
    vlm.model.generation_config.decoder_start_token_id = start
    ids = vlm._answer(example("yes"))
    assert vlm.processor.tokenizer.convert_ids_to_tokens(ids) == wanted


@pytest.mark.parametrize("kind", ["instructblip", "llava"])
def test_repetition_is_counted_in_what_a_decoder_said_not_in_the_question(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm = build(kind)
    red, yes = vlm.processor.tokenizer("red yes")["input_ids"]
    monkeypatch.setattr(
        vlm.processor, "batch_decode", lambda rows, **_: [str(row.tolist()) for row in rows], False
    )
    wish = torch.zeros(96)
    wish[red], wish[yes] = 50, 45
    vlm.model.get_output_embeddings().register_forward_hook(lambda *call: call[2] + wish)
    batch = vlm.encode([example(question="is this red")], picture, answers=False)
    assert vlm.generate(batch, 2) == [f"[{red}, {red}]"]
    penalised = Decoding(max_new_tokens=2, repetition_penalty=1.5)
    assert vlm.generate(batch, 2, penalised) == [f"[{red}, {yes}]"]


def test_a_tokenizer_without_a_token_for_padding_pads_all_the_same() -> None:
    vlm = build("llava")
    asked = [example("red blue", "what is this"), example("yes", "is")]
    wanted = vlm.answer_logits(vlm.encode(asked, picture, answers=True))[0]
    vlm.processor.tokenizer.pad_token_id = None
    assert_close(vlm.answer_logits(vlm.encode(asked, picture, answers=True))[0], wanted)


@pytest.mark.parametrize("template", [TEXT_ALONE, TEXT_REQUIRED])
def test_a_tokenizers_template_that_knows_text_alone_is_not_used(template: str) -> None:
    tokenizer = of_words("<image>")
    tokenizer.chat_template = template
    vlm = llava(tokenizer)
    assert vlm.prompt("why?") == "USER: <image>\nwhy? ASSISTANT:"
    vlm.model.config.model_type = "another"
    with pytest.raises(SpecError, match="without a chat template for questions about pictures"):
        vlm.prompt("why?")


THINKING = (
    "{% for m in messages %}{% for c in m['content'] %}{{ c['text'] }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}<think>\n"
)
SWITCH = "{% if enable_thinking is defined and not enable_thinking %}\n</think>\n\n{% endif %}"


def test_a_model_that_can_answer_without_thinking_does() -> None:
    vlm = llava(of_words("<image>"), THINKING + SWITCH + "{% endif %}")
    assert vlm.prompt("why?") == "why?<think>\n</think>\n\n"


def test_a_model_that_thinks_first_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    vlm = llava(of_words("<image>"), THINKING + "{% endif %}")
    with caplog.at_level(logging.WARNING, "ressa"):
        assert vlm.prompt("why?") == vlm.prompt("why?") == "why?<think>\n"
    assert [("think before it answers" in text) for text in caplog.messages] == [True]
