"""Generation, likelihood, metrics and their standard errors."""

from ressa.evaluate.aggregates import aggregates
from ressa.evaluate.answers import Answer
from ressa.evaluate.measures import measure_of
from ressa.evaluate.metrics import Scores, score
from ressa.evaluate.predictions import predictions

__all__ = ["Answer", "Scores", "aggregates", "measure_of", "predictions", "score"]
