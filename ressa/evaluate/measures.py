"""How each kind of task is answered and scored: one measure a kind, found by its name."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from ressa.errors import UnknownNameError
from ressa.evaluate import captions, vqa
from ressa.evaluate.answers import Answer, Measure, Own
from ressa.evaluate.likelihood import choices_of, likelihoods
from ressa.evaluate.metrics import Scores, averaged, closed_scores, clustered_error, mean
from ressa.evaluate.predictions import Keep, generated, predictions
from ressa.evaluate.retrieval import RetrievalMeasure
from ressa.models.vlm import VLM
from ressa.records import Example
from ressa.workers import spread

EASY_BATCH = 256  # questions per forward pass; scores depend on it only by rounding


def measure_of(task: Any) -> Measure:
    """Returns a task's measure: `task.measure` names it; without it, closed answers.

    Raises:
        UnknownNameError: there is no such measure.
    """
    name = getattr(task, "measure", "closed")
    if name not in _MEASURES:
        raise UnknownNameError("measure", name, known=_MEASURES)
    return _MEASURES[name]


class _Shared(Measure):
    """Each worker answers its part of the examples by itself."""

    def answer(
        self,
        vlm: VLM,
        task: Any,
        examples: Sequence[Example],
        *,
        blank: bool,
        keep: Keep | None = None,
    ) -> list[Answer]:
        """See `Measure`."""
        return spread(examples, lambda own: self.part(vlm, task, own, blank=blank, keep=keep))

    @abstractmethod
    def part(
        self, vlm: VLM, task: Any, own: Sequence[Example], *, blank: bool, keep: Keep | None
    ) -> list[Answer]:
        """Answers one worker's part of the examples; arguments as of `answer`."""


class Closed(_Shared):
    """Questions with few answers, all known: easy-VQA, and tasks of plug-ins."""

    def part(
        self, vlm: VLM, task: Any, own: Sequence[Example], *, blank: bool, keep: Keep | None
    ) -> list[Answer]:
        """Answers greedily."""
        given = predictions(vlm, task, own, batch_size=EASY_BATCH, blank=blank, keep=keep)
        return [Answer(text) for text in given]

    def score(
        self, task: Any, examples: Sequence[Example], answers: Sequence[Answer]
    ) -> tuple[Scores, list[Own]]:
        """Counts answers that are exactly right."""
        texts = [answer.text for answer in answers]
        right = [float(e.answer == text) for e, text in zip(examples, texts, strict=True)]
        return closed_scores(examples, texts, task.answers), [*map(Own, right)]


class _Generated(_Shared):
    """Open answers, generated as the data set's `decoding` says."""

    def part(
        self, vlm: VLM, task: Any, own: Sequence[Example], *, blank: bool, keep: Keep | None
    ) -> list[Answer]:
        """Generates an answer to each example."""
        decoding, size = task.source.decoding, task.source.batch_size
        given = generated(vlm, task, own, decoding, batch_size=size, blank=blank)
        return [Answer(text) for text in given]


class OpenAnswers(_Generated):
    """Open questions, by agreement with people's answers."""

    def score(
        self, task: Any, examples: Sequence[Example], answers: Sequence[Answer]
    ) -> tuple[Scores, list[Own]]:
        """Returns `accuracy`, the official one, `exact_match` in normal form, and `empty`."""
        texts = [answer.text for answer in answers]
        pairs = list(zip(examples, texts, strict=True))
        agreement = [vqa.accuracy(text, e.references) for e, text in pairs]
        exact = [float(vqa.normalized(text) == vqa.normalized(e.answer)) for e, text in pairs]
        scores = {
            **averaged("accuracy", agreement, examples),
            **averaged("exact_match", exact, examples),
            "empty": mean([float(not text) for text in texts]),
        }
        return scores, [*map(Own, agreement)]


class Captions(_Generated):
    """Captions, against people's."""

    def score(
        self, task: Any, examples: Sequence[Example], answers: Sequence[Answer]
    ) -> tuple[Scores, list[Own]]:
        """Returns `cider` and `bleu4`, in hundredths of what is often printed, and `empty`."""
        texts = [captions.words(answer.text) for answer in answers]
        references = [[captions.words(text) for text in e.references] for e in examples]
        each = captions.cider(texts, references)
        scores = averaged("cider", each, examples)
        scores["bleu4"] = captions.bleu4(texts, references)
        scores["empty"] = mean([float(not text) for text in texts])
        return scores, [*map(Own, each)]


class Choices(_Shared):
    """Questions with choices, of which the likeliest is the answer."""

    def part(
        self, vlm: VLM, task: Any, own: Sequence[Example], *, blank: bool, keep: Keep | None
    ) -> list[Answer]:
        """Takes each example's likeliest choice; its value is the likeliest per token, a number.

        Of logits that overflow, and of choices that are all impossible, none is the likeliest:
        there is no answer, its value is NaN.
        """
        every = [choice for example in own for choice in choices_of(example)]
        size = task.source.batch_size
        found = iter(likelihoods(vlm, task, every, batch_size=size, blank=blank))
        answers = []
        for example in own:
            each = [next(found) for _ in example.choices]
            sizes = [one.log_probability for one in each]
            if any(map(math.isnan, sizes)) or max(sizes) == -math.inf:
                answers.append(Answer("", (math.nan,)))
                continue
            best = sizes.index(max(sizes))
            per_token = max(range(len(each)), key=lambda i: each[i].per_token)
            answers.append(Answer(example.choices[best], (per_token,)))
        return answers

    def score(
        self, task: Any, examples: Sequence[Example], answers: Sequence[Answer]
    ) -> tuple[Scores, list[Own]]:
        """Returns `accuracy`, and `accuracy_per_token` by mean log-probability of the tokens."""
        pairs = list(zip(examples, answers, strict=True))
        right, per_token = [], []
        for example, answer in pairs:
            (number,) = answer.values
            if math.isnan(number):
                right.append(math.nan)
                per_token.append(math.nan)
                continue
            right.append(float(answer.text == example.answer))
            per_token.append(float(example.choices[int(number)] == example.answer))
        scores = {
            **averaged("accuracy", right, examples),
            **averaged("accuracy_per_token", per_token, examples),
        }
        return scores, [*map(Own, right)]


class TextLikelihood(_Shared):
    """Texts, by how likely the model finds them."""

    def part(
        self, vlm: VLM, task: Any, own: Sequence[Example], *, blank: bool, keep: Keep | None
    ) -> list[Answer]:
        """Gives each text's log-probability and number of tokens; there is no answer."""
        found = likelihoods(vlm, task, own, batch_size=task.source.batch_size, blank=blank)
        return [Answer("", (each.log_probability, each.tokens)) for each in found]

    def score(
        self, task: Any, examples: Sequence[Example], answers: Sequence[Answer]
    ) -> tuple[Scores, list[Own]]:
        """Returns `perplexity`, and `likelihood`, its inverse, which is better when larger.

        Over all tokens: exp(∓ Σ log p / Σ tokens). Standard errors are carried over from the mean
        log-probability of a token, a ratio of two sums, in first order.
        """
        total, tokens = zip(*(answer.values for answer in answers), strict=True)
        middle = math.fsum(total) / sum(tokens)
        influence = [
            (value - middle * count) / sum(tokens)
            for value, count in zip(total, tokens, strict=True)
        ]
        error = clustered_error(influence, [example.image_id for example in examples])
        likelihood, perplexity = (_exponential(sign * middle) for sign in (1, -1))
        scores = {
            "likelihood": likelihood,
            "likelihood_standard_error": likelihood * error,
            "perplexity": perplexity,
            "perplexity_standard_error": perplexity * error,
        }
        return scores, [*map(Own, total, tokens)]


def _exponential(value: float) -> float:
    """Returns e to a power; infinity where that is no number that a float holds."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


_MEASURES: dict[str, Measure] = {
    "closed": Closed(),
    "vqa": OpenAnswers(),
    "captions": Captions(),
    "choices": Choices(),
    "likelihood": TextLikelihood(),
    "retrieval": RetrievalMeasure(),
}
