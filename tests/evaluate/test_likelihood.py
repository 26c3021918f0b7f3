"""How likely a model finds answers, against transformers' own loss."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ressa.data.easy_vqa import EasyVQA
from ressa.evaluate import Answer
from ressa.evaluate.likelihood import Likelihood, choices_of, likelihoods
from ressa.evaluate.measures import Choices, TextLikelihood
from ressa.evaluate.predictions import batches
from ressa.models import load_vlm
from ressa.records import Example


@pytest.fixture(scope="module")
def task() -> EasyVQA:
    return EasyVQA()


@pytest.mark.parametrize("model", ["pocket-blip2", "pocket-llava"])
def test_a_log_probability_is_the_models_own_loss_over_the_answers_tokens(model, task):
    vlm, examples = load_vlm(model), task.examples("validation", 12)
    found = likelihoods(vlm, task, examples, batch_size=5)
    for example, one in zip(examples, found, strict=True):
        batch = vlm.encode([example], task.image, answers=True)
        with torch.no_grad():
            loss = vlm.model(**batch.inputs, labels=batch.labels).loss.item()
        assert one.tokens == int((batch.labels != -100).sum())
        assert one.per_token == pytest.approx(-loss, abs=1e-4)


def test_the_right_answer_is_likelier_than_another(task):
    vlm, example = load_vlm("pocket-blip2"), task.examples("validation", 1)[0]
    other = "circle" if example.answer != "circle" else "red"
    from dataclasses import replace

    both = choices_of(replace(example, choices=(other, example.answer)))
    wrong, right = likelihoods(vlm, task, both, batch_size=2)
    assert right.log_probability > wrong.log_probability


def test_batches_keep_pictures_together_and_texts_of_a_length(task):
    examples = task.examples("validation", 90)
    cut = list(batches(examples, 32))
    assert sorted(e.id for batch in cut for e in batch) == sorted(e.id for e in examples)
    assert all(len(batch) <= 32 for batch in cut)
    seen = [image for batch in cut for image in dict.fromkeys(e.image_id for e in batch)]
    assert len(seen) == len(set(seen))
    longest = [max(len(e.question) for e in batch) for batch in cut]
    assert longest == sorted(longest, reverse=True)


def _asked(number: int, image: str, **changes: object) -> Example:
    given = {"question": "?", "answer": "a", "kind": "any"} | changes
    return Example(id=str(number), image_id=image, **given)


def test_the_errors_of_likelihood_and_perplexity_are_those_of_a_ratio():
    """Two texts of one picture count as one: their influence is added before it is squared."""
    examples = [_asked(number, image) for number, image in enumerate("aabc")]
    totals, tokens = np.array([-3.0, -8.0, -2.0, -9.0]), np.array([3, 4, 2, 5])
    answers = [Answer("", pair) for pair in zip(totals, tokens, strict=True)]
    found, _ = TextLikelihood().score(None, examples, answers)
    mean = totals.sum() / tokens.sum()
    influence = (totals - mean * tokens) / tokens.sum()
    by_picture = np.array([influence[:2].sum(), influence[2], influence[3]])
    error = math.sqrt((by_picture**2).sum() * 3 / 2)
    assert found["perplexity"] == pytest.approx(math.exp(-mean))
    assert found["perplexity_standard_error"] == pytest.approx(math.exp(-mean) * error)
    assert found["likelihood_standard_error"] == pytest.approx(math.exp(mean) * error)


def test_a_choice_by_the_mean_of_its_tokens_is_scored_by_itself():
    examples = [_asked(number, str(number), choices=("a", "b")) for number in range(2)]
    answers = [Answer("b", (0,)), Answer("b", (1,))]
    found, _ = Choices().score(None, examples, answers)
    assert (found["accuracy"], found["accuracy_per_token"]) == (0, 0.5)


def test_of_logits_that_overflow_no_choice_is_the_likeliest(task, monkeypatch):
    """NaN is greater than nothing: of a list that begins with the right one, it was 100 %."""
    impossible = -math.inf
    sizes = (math.nan, math.nan, impossible, -1.0, impossible, impossible)
    found = [Likelihood(value, 1) for value in sizes]
    monkeypatch.setattr("ressa.evaluate.measures.likelihoods", lambda *_, **__: found)
    examples = [_asked(number, str(number), choices=("a", "b")) for number in range(3)]
    source = SimpleNamespace(batch_size=2)
    answers = Choices().part(None, SimpleNamespace(source=source), examples, blank=False, keep=None)
    scores, each = Choices().score(None, examples, answers)
    assert answers[1].text == "b"
    first, second, third = (own.value for own in each)
    assert math.isnan(first) and second == 0 and math.isnan(third)
    assert math.isnan(scores["accuracy"]) and math.isnan(scores["accuracy_per_token"])


def test_a_text_that_is_impossible_has_no_finite_perplexity():
    examples = [_asked(number, str(number)) for number in range(2)]
    answers = [Answer("", (value, 1)) for value in (-900.0, -800.0)]
    scores, _ = TextLikelihood().score(None, examples, answers)
    assert (scores["likelihood"], scores["perplexity"]) == (0, math.inf)
