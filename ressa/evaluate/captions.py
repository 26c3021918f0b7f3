"""Scores of captions, CIDEr and BLEU-4, by the code of the COCO caption challenge (pycocoevalcap).

Its tokenizer is Stanford's, in Java; here NLTK's Treebank tokenizer stands in for it, with the same
lower case, the same punctuation left out and the same rule for full stops (docs/tasks.md says what
may still differ).
"""

import contextlib
import io
from collections.abc import Sequence
from functools import cache
from typing import Any

from ressa.errors import MissingExtraError

_PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
"""What the official code leaves out; its brackets, -lrb- and others, slip through in lower case."""


def words(caption: str) -> str:
    """Writes a caption as its tokens, in lower case and without punctuation, one blank between."""
    text = " ".join(caption.split())
    tokens = [t.lower() for t in _tokenizer().tokenize(text, convert_parentheses=True)]
    if len(tokens) > 1 and tokens[-1] == "." and _is_abbreviation(tokens[-2]):
        tokens[-2:] = [f"{tokens[-2]}."]  # NLTK splits the last full stop off whatever it ends
    found = []
    for token, following in zip(tokens, [*tokens[1:], ""], strict=True):
        word = token.rstrip(".")  # and leaves all others where they are
        if word != token and _is_abbreviation(word, following):
            word += "."
        if word and word not in _PUNCTUATION:
            found.append(word)
    return " ".join(found)


def _is_abbreviation(word: str, following: str = "") -> bool:
    """Whether Stanford's tokenizer keeps the full stop behind a word: behind letters with stops
    between, no. 5, and the usual abbreviations."""
    is_letters = all(len(part) == 1 and part.isalpha() for part in word.split("."))
    return is_letters or word in _ABBREVIATIONS or (word == "no" and following.isdecimal())


_STOPPED = """
    adm al ala apr ariz assn aug ave bldg blvd bros calif capt cf cmdr co col colo conn corp cpl dak
    dec dept dr esq est etc ext feb fla fri ft ga gen gov hon inc ind jan jr jul jun kan ky lt ltd
    maj mar md messrs mfg mich minn mlle mme mo mon mont mr mrs ms mt neb nev nov oct okla penn ph
    ph.d pres prof rd rep rev sen sep sept sgt sq sr st supt tel tenn thu thurs tue tues univ va vs
    vt wed wis wyo
"""
_ABBREVIATIONS = frozenset(_STOPPED.split())


def cider(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Returns each caption's CIDEr-D, ≥ 0, whose mean is the score; how rare words are is counted
    over all references given.

    Args:
        predictions: tokenised captions, as `words` writes them, one a picture.
        references: each picture's, tokenised alike.
    """
    scorer = _scorers()[0](n=4, sigma=6.0)
    for prediction, several in zip(predictions, references, strict=True):
        scorer += (prediction, list(several))
    _, each = scorer.compute_score()
    return [float(score) for score in each]


def bleu4(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Returns the BLEU-4 of all captions together, in [0, 1]; arguments as of `cider`."""
    scorer = _scorers()[1](n=4)
    for prediction, several in zip(predictions, references, strict=True):
        scorer += (prediction, list(several))
    with contextlib.redirect_stdout(io.StringIO()):  # it prints lengths
        scores, _ = scorer.compute_score(option="closest", verbose=0)
    return float(scores[3])


@cache
def _tokenizer() -> Any:
    try:
        from nltk.tokenize import NLTKWordTokenizer
    except ModuleNotFoundError as error:
        raise _missing("nltk") from error
    return NLTKWordTokenizer()


@cache
def _scorers() -> tuple[Any, Any]:
    try:
        from pycocoevalcap.bleu.bleu_scorer import BleuScorer
        from pycocoevalcap.cider.cider_scorer import CiderScorer
    except ModuleNotFoundError as error:
        raise _missing("pycocoevalcap") from error
    return CiderScorer, BleuScorer


def _missing(package: str) -> MissingExtraError:
    return MissingExtraError(
        f"captions are scored with the package {package!r}, which is not installed. "
        "Install it, in a checkout of ressa: pip install '.[run,tasks]' -c constraints.txt"
    )
