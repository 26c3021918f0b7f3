"""Scores of answers, with standard errors that know that one picture's questions hang together.

A standard error is the sandwich estimate clustered by picture: the influence of each example on the
score is summed over its picture before squaring,

    se² = G / (G - 1) · Σ_g (Σ_{i in g} ψ_i)²,   G pictures,

with ψ_i = (x_i - mean) / n for exact match, and ψ_i = (x_i - recall_k) / (K n_k) for the mean
recall over K answers, where example i has answer k. Needs no resampling, and hence no seed.
"""

import math
from collections import defaultdict
from collections.abc import Collection, Sequence

from ressa.records import Example

Scores = dict[str, float]
"""Values by metric; `<metric>_standard_error` beside it where there is one (NaN for a single
picture), and `<metric>/<kind>` over the examples of one kind."""


def closed_scores(
    examples: Sequence[Example], predictions: Sequence[str], answers: Collection[str]
) -> Scores:
    """Scores answers against the right ones.

    Args:
        examples: the questions, at least one.
        predictions: one answer a question.
        answers: what counts as a well-formed answer in this task.

    Returns:
        `exact_match`, `balanced_accuracy`, `malformed` and `exact_match/<kind>`, fractions in
        [0, 1]. Balanced accuracy is the mean recall over the answers that occur in
        `examples`, so that always guessing the commonest answer gains nothing.
    """
    if not examples:
        raise ValueError("there is nothing to score")
    right = [
        float(example.answer == prediction)
        for example, prediction in zip(examples, predictions, strict=True)
    ]
    images = [example.image_id for example in examples]
    overall, error = mean_and_error(right, images)
    by_answer = grouped(right, [example.answer for example in examples])
    recalls = {answer: mean(values) for answer, values in by_answer.items()}
    balanced_influence = [
        (x - recalls[e.answer]) / (len(recalls) * len(by_answer[e.answer]))
        for x, e in zip(right, examples, strict=True)
    ]
    by_kind = grouped(right, [example.kind for example in examples])
    known = frozenset(answers)
    return {
        "exact_match": overall,
        "exact_match_standard_error": error,
        "balanced_accuracy": mean(list(recalls.values())),
        "balanced_accuracy_standard_error": clustered_error(balanced_influence, images),
        "malformed": mean([float(prediction not in known) for prediction in predictions]),
        **{f"exact_match/{kind}": mean(by_kind[kind]) for kind in sorted(by_kind)},
    }


def averaged(metric: str, values: Sequence[float], examples: Sequence[Example]) -> Scores:
    """Returns the mean of a value of each example under a metric's name.

    Its standard error is clustered by picture; kinds have their means where there are several.
    """
    middle, error = mean_and_error(values, [example.image_id for example in examples])
    by_kind = grouped(values, [example.kind for example in examples])
    return {
        metric: middle,
        f"{metric}_standard_error": error,
        **(
            {f"{metric}/{kind}": mean(by_kind[kind]) for kind in sorted(by_kind)}
            if len(by_kind) > 1
            else {}
        ),
    }


def mean_and_error(values: Sequence[float], images: Sequence[str]) -> tuple[float, float]:
    """Returns the mean of some values, each of a picture, and its standard error."""
    middle = mean(values)
    return middle, clustered_error([(value - middle) / len(values) for value in values], images)


def clustered_error(influence: Sequence[float], images: Sequence[str]) -> float:
    """Returns the sandwich estimate of a score's standard error; NaN for a single picture."""
    clusters = grouped(influence, images)
    if len(clusters) < 2:
        return math.nan
    square = math.fsum(math.fsum(values) ** 2 for values in clusters.values())
    return math.sqrt(square * len(clusters) / (len(clusters) - 1))


def grouped(values: Sequence[float], keys: Sequence[str]) -> dict[str, list[float]]:
    """Returns the values of each key."""
    groups: dict[str, list[float]] = defaultdict(list)
    for value, key in zip(values, keys, strict=True):
        groups[key].append(value)
    return groups


def mean(values: Sequence[float]) -> float:
    """Returns the mean, summed exactly."""
    return math.fsum(values) / len(values)
