import math
import random

import pytest

from ressa.evaluate import closed_scores
from ressa.evaluate.metrics import averaged
from ressa.records import Example

ANSWERS = ("circle", "no", "red", "yes")


def example(number: int, answer: str, kind: str = "yes-no", image: str = "") -> Example:
    return Example(
        id=str(number), image_id=image or f"image {number}", question="?", answer=answer, kind=kind
    )


def test_a_case_worked_by_hand() -> None:
    examples = [
        example(0, "yes"),
        example(1, "yes"),
        example(2, "no"),
        example(3, "circle", kind="shape"),
    ]
    scores = closed_scores(examples, ["yes", "no", "no", "circles"], ANSWERS)
    assert scores["exact_match"] == 0.5
    assert scores["balanced_accuracy"] == pytest.approx((0.5 + 1 + 0) / 3)
    assert scores["malformed"] == 0.25
    assert scores["exact_match/yes-no"] == pytest.approx(2 / 3)
    assert scores["exact_match/shape"] == 0


def test_always_the_same_answer_gets_one_class_in_balanced_accuracy() -> None:
    examples = [example(i, "yes") for i in range(8)] + [example(9, "no"), example(10, "red")]
    scores = closed_scores(examples, ["yes"] * 10, ANSWERS)
    assert scores["exact_match"] == 0.8
    assert scores["balanced_accuracy"] == pytest.approx(1 / 3)


def test_an_answer_within_a_longer_one_does_not_count() -> None:
    assert closed_scores([example(0, "red")], ["red red"], ANSWERS)["exact_match"] == 0
    assert closed_scores([example(0, "red")], [""], ANSWERS)["malformed"] == 1


def test_the_error_of_exact_match_is_the_textbook_one_when_each_picture_has_one_question() -> None:
    right = [1, 1, 0, 1, 0, 1, 1, 1, 0, 1]
    examples = [example(i, "yes") for i in range(10)]
    scores = closed_scores(examples, ["yes" if x else "no" for x in right], ANSWERS)
    mean = sum(right) / 10
    variance = sum((x - mean) ** 2 for x in right) / 9
    assert scores["exact_match_standard_error"] == pytest.approx(math.sqrt(variance / 10))


def test_repeating_each_question_does_not_make_the_score_more_certain() -> None:
    examples = [example(i, "yes") for i in range(6)]
    answers = ["yes", "no", "yes", "yes", "no", "yes"]
    once, thrice = (
        closed_scores(examples, answers, ANSWERS),
        closed_scores(examples * 3, answers * 3, ANSWERS),
    )
    for name in ("exact_match_standard_error", "balanced_accuracy_standard_error"):
        assert thrice[name] == pytest.approx(once[name])


def test_errors_agree_with_a_bootstrap_over_pictures() -> None:
    draw = random.Random(0)
    groups = []
    for number in range(150):
        bias = draw.random()  # pictures differ in difficulty, so their questions hang together
        group = []
        for _ in range(draw.randint(2, 9)):
            answer = draw.choice(["yes", "no", "red"])
            given = answer if draw.random() < bias else "circle"
            group.append((example(number, answer, image=f"image {number}"), given))
        groups.append(group)

    def scores(chosen: list) -> dict[str, float]:
        pairs = [pair for group in chosen for pair in group]
        return closed_scores([e for e, _ in pairs], [p for _, p in pairs], ANSWERS)

    whole = scores(groups)
    resampled = [scores(draw.choices(groups, k=len(groups))) for _ in range(300)]
    for name in ("exact_match", "balanced_accuracy"):
        values = [s[name] for s in resampled]
        mean = sum(values) / len(values)
        spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
        assert whole[f"{name}_standard_error"] == pytest.approx(spread, rel=0.2)


def test_one_picture_has_no_standard_error() -> None:
    examples = [example(i, "yes", image="one") for i in range(3)]
    assert math.isnan(closed_scores(examples, ["yes"] * 3, ANSWERS)["exact_match_standard_error"])


def test_nothing_to_score_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing"):
        closed_scores([], [], ANSWERS)


def test_the_error_of_balanced_accuracy_weighs_each_answer_alike():
    truth = ["yes"] * 90 + ["no"] * 10
    given = ["yes"] * 60 + ["red"] * 30 + ["no"] * 5 + ["red"] * 5
    found = closed_scores([example(i, one) for i, one in enumerate(truth)], given, ANSWERS)
    variance = ((2 / 3) * (1 / 3) / 90 + 0.25 / 10) / 4
    error = math.sqrt(variance * 100 / 99)
    assert found["balanced_accuracy_standard_error"] == pytest.approx(error)


def test_repeating_each_question_does_not_make_a_mean_more_certain():
    values, examples = [0.0, 1.0, 0.3, 0.9], [example(i, "yes") for i in range(4)]
    once = averaged("x", values, examples)["x_standard_error"]
    again = [example(9 + i, "yes", image=one.image_id) for i, one in enumerate(examples)]
    twice = averaged("x", values * 2, examples + again)["x_standard_error"]
    assert twice == pytest.approx(once)
