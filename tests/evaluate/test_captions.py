"""CIDEr and BLEU-4, against the code of the COCO caption challenge with its own tokenizer."""

import pytest

from ressa.evaluate import Answer, captions
from ressa.evaluate.measures import Captions
from ressa.records import Example

REFERENCES = [
    ["A man's riding a wave on top of a surfboard.", "a surfer, in the ocean"],
    ["Two dogs don't run - they sleep (on a couch)", 'two "sleepy" dogs on the couch; cute!'],
    ["A black/white photo of 3 trains at 10:30 a.m.", "an old train: it's slow", "In the U.S."],
    ["a close-up of a half-eaten sandwich & fries", "the sandwich costs $5.00"],
]
OWN = [5.0, 5.391340769364177, 10 / 3, 5.2456099552069455]  # CIDEr of the first of each
GIVEN = [
    "a man's riding a wave in the ocean",
    "two dogs sleep on a couch",
    "a train at the station",
    "a half-eaten sandwich",
]


def tokenised() -> tuple[list[str], list[list[str]]]:
    return (
        [captions.words(text) for text in GIVEN],
        [[captions.words(text) for text in several] for several in REFERENCES],
    )


def test_captions_are_tokenised_as_stanfords_tokenizer_does():
    """What pycocoevalcap 1.2's PTBTokenizer (Java) wrote for these."""
    expected = {
        REFERENCES[0][0]: "a man 's riding a wave on top of a surfboard",
        REFERENCES[1][0]: "two dogs do n't run they sleep -lrb- on a couch -rrb-",
        REFERENCES[1][1]: "two sleepy dogs on the couch cute",
        REFERENCES[2][1]: "an old train it 's slow",
        REFERENCES[3][0]: "a close-up of a half-eaten sandwich & fries",
        REFERENCES[3][1]: "the sandwich costs $ 5.00",
        "A red flag. It runs fast.": "a red flag it runs fast",
        "He is at St. Louis. Mr. Brown eats.": "he is at st. louis mr. brown eats",
        "at 10:30 a.m. in the sun. warm": "at 10:30 a.m. in the sun warm",
        "a sign that says no. it is No. 5": "a sign that says no it is no. 5",
        "a 3.5 ft. tall man. U.S. flag in the U.S.": "a 3.5 ft. tall man u.s. flag in the u.s.",
        "she ate it...and left. bye": "she ate it and left bye",
        'he said stop. "go" now. ok.': "he said stop go now ok",
    }
    assert {text: captions.words(text) for text in expected} == expected


def test_cider_and_bleu_are_what_the_official_code_says():
    """Of pycocoevalcap 1.2 with its Java tokenizer."""
    each = captions.cider(*tokenised())
    official = [3.468699577281275, 1.7629442890289821, 0.3522508695854048, 1.834608854285669]
    assert each == pytest.approx(official, rel=1e-9)
    assert captions.bleu4(*tokenised()) == pytest.approx(0.4056675296450515, rel=1e-9)


def test_peoples_own_captions_are_scored_as_the_official_code_scores_them():
    """Of pycocoevalcap 1.2 with its Java tokenizer, of whole captions as they are written."""
    examples = [
        Example(id=str(n), image_id=str(n), question="", answer="", kind="", references=tuple(said))
        for n, said in enumerate(REFERENCES)
    ]
    given = [Answer(said[0]) for said in REFERENCES]
    scores, each = Captions().score(None, examples, given)
    assert [own.value for own in each] == pytest.approx(OWN, rel=1e-9)
    assert scores["cider"] == pytest.approx(sum(OWN) / 4)
    assert scores["bleu4"] == pytest.approx(1)


def test_a_caption_that_people_gave_scores_more_than_another_and_an_empty_one_nothing():
    given, references = tokenised()
    said, other = (
        captions.cider([references[0][0], *given[1:]], references),
        captions.cider([references[1][0], *given[1:]], references),
    )
    assert said[0] > other[0] >= 0
    assert captions.cider(["", *given[1:]], references)[0] == 0
    assert captions.bleu4([several[0] for several in references], references) == pytest.approx(1)
