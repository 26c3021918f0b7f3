"""Generation, likelihood, metrics and their standard errors."""

from ressa.evaluate.aggregates import aggregates
from ressa.evaluate.answers import Answer, Own
from ressa.evaluate.measures import measure_of
from ressa.evaluate.metrics import Scores, closed_scores
from ressa.evaluate.predictions import predictions

__all__ = ["Answer", "Own", "Scores", "aggregates", "closed_scores", "measure_of", "predictions"]
