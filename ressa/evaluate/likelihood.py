"""How likely a model finds answers: the log-probability of their tokens, with the one that ends."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from ressa.evaluate.predictions import batches, encoded
from ressa.memory import in_batches
from ressa.models.vlm import NO_LABEL, VLM, Pictures, evaluating
from ressa.records import Example


@dataclass(frozen=True, slots=True)
class Likelihood:
    """What a model makes of one answer."""

    log_probability: float
    """Of the whole answer, in nats, ≤ 0."""
    tokens: int
    """How many tokens that is the sum over."""

    @property
    def per_token(self) -> float:
        """Mean log-probability of its tokens."""
        return self.log_probability / self.tokens


@torch.no_grad()
def likelihoods(
    vlm: VLM,
    task: Pictures,
    examples: Sequence[Example],
    *,
    batch_size: int,
    blank: bool = False,
) -> list[Likelihood]:
    """Returns how likely each example's answer is, given its picture and question, in order.

    Args:
        vlm: the model, left as it is.
        task: opens the pictures.
        examples: the answers; those about one picture are next to each other.
        batch_size: how many at a time, fewer where memory is short. It changes a result only by
            rounding.
        blank: True shows the task's blank picture instead of each.
    """
    # Numbered, so that what comes back sorted by length finds its place again.
    numbered = [replace(example, id=str(number)) for number, example in enumerate(examples)]

    def likelihood_of(size: int) -> dict[int, Likelihood]:
        found: dict[int, Likelihood] = {}
        chunks = list(batches(numbered, size))
        asked = encoded(vlm, task, chunks, answers=True, blank=blank)
        for chunk, batch in zip(chunks, asked, strict=True):
            logits, targets = vlm.answer_logits(batch)
            losses = functional.cross_entropy(logits.float(), targets, reduction="none")
            assert isinstance(batch.labels, Tensor)
            counts = (batch.labels != NO_LABEL).sum(dim=1).tolist()
            for example, part in zip(chunk, losses.double().split(counts), strict=True):
                found[int(example.id)] = Likelihood(-part.sum().item(), len(part))
        return found

    with evaluating(vlm.model):
        found = in_batches(likelihood_of, batch_size)
    return [found[number] for number in range(len(examples))]


def choices_of(example: Example) -> list[Example]:
    """Returns an example for each of its choices, with that as its answer."""
    return [replace(example, answer=choice, choices=()) for choice in example.choices]
