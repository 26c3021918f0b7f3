"""The accuracy of visual question answering as its authors count it (arXiv:1505.00468).

An answer that ten people gave too counts 1, one that three gave too counts 0.9: for each of the
ten, min(1, how many of the other nine gave this answer / 3), and the mean over the ten. Fewer
answers are a list of right ones, of which one will do: so is GQA scored, of one. Answers are first
brought to one form: without punctuation and articles, numbers as digits, contractions
with their apostrophe; unless all ten said the very same, as the official code has it.
"""

import re
from collections.abc import Sequence

_PEOPLE = 10  # whose answers the rule is made for
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_PERIOD = re.compile(r"(?!<=\d)\.(?!\d)")
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_MOST_PERIODS = 32  # the official code hands re.sub its flag UNICODE, which is 32, as the count
_NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
} | {"none": "0"}
_ARTICLES = ("a", "an", "the")

# Right forms of contractions: a word that lacks one of its apostrophes is given it back.
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't
    mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've
    should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've
    someone'll someone's something'd something'd've something'll that's there'd there'd've there're
    there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll
    what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll
    why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll
    you're you've
"""


def _misspelt() -> dict[str, str]:
    """Maps each way to lose one apostrophe to the right form."""
    table = {
        right[:place] + right[place + 1 :]: right
        for right in _CONTRACTIONS.split()
        for place, letter in enumerate(right)
        if letter == "'"
    }
    # One entry of the official table goes the other way.
    return table | {"somebody'd": "somebodyd"}


_RIGHT_FORM = _misspelt()


def normalized(answer: str) -> str:
    """Brings an answer to the form in which answers are compared."""
    return _words(_without_marks(_one_line(answer)))


def accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Returns the share of agreement with people's answers, in [0, 1].

    Of fewer than ten answers each is right: 1 if the prediction is one of them in normal form,
    else 0.
    """
    given, said = [_one_line(answer) for answer in answers], _one_line(prediction)
    if len(given) < _PEOPLE:
        return float(normalized(said) in map(normalized, given))
    if len(set(given)) > 1:
        given, said = [normalized(answer) for answer in given], normalized(said)
    same = sum(answer == said for answer in given)
    own = min(1.0, (same - 1) / 3)  # for those who gave this answer: the others who did
    other = min(1.0, same / 3)
    return (same * own + (len(given) - same) * other) / len(given) if same else 0.0


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _without_marks(text: str) -> str:
    has_number = _COMMA_IN_NUMBER.search(text) is not None
    out = text
    for mark in _MARKS:
        beside_space = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if beside_space or has_number else " ")
    return _PERIOD.sub("", out, count=_MOST_PERIODS)


def _words(text: str) -> str:
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(_RIGHT_FORM.get(word, word) for word in words if word not in _ARTICLES)
