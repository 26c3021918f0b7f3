"""The answer loss of each pocket model; a picture is encoded once for all its questions.

Dimensions: image, slot = questions about one picture, query = image tokens that the language model
sees, time = text tokens.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers.processing_utils import ProcessorMixin

from ressa.records import Example

AnswerLoss = Callable[
    [Any, ProcessorMixin, Tensor, Sequence[Sequence[Example]]], tuple[Tensor, Tensor]
]
_NO_LABEL = -100


def blip2_loss(
    model: Any,
    processor: ProcessorMixin,
    pixels: Float[Tensor, "image 3 64 64"],
    questions: Sequence[Sequence[Example]],
) -> tuple[Float[Tensor, ""], Float[Tensor, "image width"]]:
    """Returns the mean cross-entropy of the answer tokens, and the vision tower's class tokens."""
    encoded = model.get_image_features(pixels)
    slots = len(questions[0])
    encoded_per_question = encoded.pooler_output.repeat_interleave(slots, dim=0)
    tokenizer = processor.tokenizer
    asked = tokenizer([e.question for group in questions for e in group], padding=True)
    answered = tokenizer([e.answer for group in questions for e in group])
    query = encoded_per_question.shape[1]
    input_ids = torch.tensor(asked["input_ids"])
    image_ids = input_ids.new_full((len(input_ids), query), model.config.image_token_index)
    mask = torch.tensor(asked["attention_mask"])
    embeddings = model.get_input_embeddings()(torch.cat([image_ids, input_ids], dim=1))
    # The same as the model's own forward pass, which cannot take fewer pictures than questions.
    embeddings = torch.cat([encoded_per_question, embeddings[:, query:]], dim=1)
    output = model.language_model(
        inputs_embeds=embeddings,
        attention_mask=torch.cat([torch.ones_like(image_ids), mask], dim=1),
        labels=torch.tensor(answered["input_ids"]),
    )
    return output.loss, encoded.last_hidden_state[:, 0]


def llava_loss(
    model: Any,
    processor: ProcessorMixin,
    pixels: Float[Tensor, "image 3 64 64"],
    questions: Sequence[Sequence[Example]],
) -> tuple[Float[Tensor, ""], Float[Tensor, "image width"]]:
    """Returns the mean cross-entropy of the answers' tokens, and the vision tower's class tokens.

    All questions about a picture share its tokens: they follow one another in one sequence, where
    each sees the picture and itself and counts its positions from the picture's end. That equals
    one sequence per question at a third of the cost.
    """
    encoded = model.get_image_features(pixels)
    image_tokens = torch.stack(list(encoded.pooler_output))  # [image query hidden]
    packed = [_pack(processor, group) for group in questions]
    query = image_tokens.shape[1] + 1  # <s> comes first
    ids = pad_sequence([p[0] for p in packed], batch_first=True)
    slot = pad_sequence([p[1] for p in packed], batch_first=True, padding_value=_NO_LABEL)
    position = pad_sequence([p[2] for p in packed], batch_first=True)
    labels = pad_sequence([p[3] for p in packed], batch_first=True, padding_value=_NO_LABEL)
    embed = model.get_input_embeddings()
    start = embed(ids.new_full((len(ids), 1), processor.tokenizer.bos_token_id))
    hidden = model.model.language_model(
        inputs_embeds=torch.cat([start, image_tokens, embed(ids)], dim=1),
        attention_mask=_sees(slot, query),
        position_ids=torch.cat([torch.arange(query).expand(len(ids), -1), query + position], dim=1),
        use_cache=False,
    ).last_hidden_state[:, query:]
    kept = labels != _NO_LABEL
    loss = nn.functional.cross_entropy(model.lm_head(hidden[kept]), labels[kept])
    return loss, encoded.hidden_states[-1][:, 0]


def _pack(processor: ProcessorMixin, group: Sequence[Example]) -> tuple[Tensor, ...]:
    """Lays one picture's questions end to end: token ids, slots, positions in the slot, labels."""
    tokenizer = processor.tokenizer
    asked = tokenizer([e.question for e in group], add_special_tokens=False)["input_ids"]
    answered = tokenizer([e.answer for e in group], add_special_tokens=False)["input_ids"]
    ids: list[int] = []
    slots: list[int] = []
    positions: list[int] = []
    labels: list[int] = []
    for slot, (question, answer) in enumerate(zip(asked, answered, strict=True)):
        text = [*question, *answer]
        ids += text
        slots += [slot] * len(text)
        positions += range(len(text))
        labels += [_NO_LABEL] * (len(question) - 1) + [*answer, tokenizer.eos_token_id]
    return tuple(torch.tensor(column) for column in (ids, slots, positions, labels))


def _sees(slot: Tensor, query: int) -> Tensor:
    """Who attends to whom: everyone backwards, and among questions only within the own one."""
    images, time = slot.shape
    slots = torch.cat([slot.new_full((images, query), -1), slot], dim=1)  # [image token]
    same = slots[:, :, None] == slots[:, None, :]
    picture = (slots == -1)[:, None, :]
    causal = torch.ones(query + time, query + time, dtype=torch.bool).tril()
    return ((same | picture) & causal)[:, None]  # [image 1 token token]
