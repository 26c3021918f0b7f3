"""Scores of captions, CIDEr and BLEU-4, by the code of the COCO caption challenge (pycocoevalcap).

Its tokenizer is Stanford's, in Java; here NLTK's Treebank tokenizer stands in for it, with the same
lower case and the same punctuation left out (docs/tasks.md says what that changes).
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
    tokens = _tokenizer().tokenize(" ".join(caption.split()), convert_parentheses=True)
    return " ".join(token.lower() for token in tokens if token not in _PUNCTUATION)


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
