"""Generation, metrics and their standard errors."""

from ressa.evaluate.metrics import Scores, score
from ressa.evaluate.predictions import predictions

__all__ = ["Scores", "predictions", "score"]
