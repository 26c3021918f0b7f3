"""Which allocation to try next: the only home of optuna."""

from ressa.search.learners import Seen
from ressa.search.proposer import Proposal, Proposer

__all__ = ["Proposal", "Proposer", "Seen"]
