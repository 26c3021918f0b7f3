"""Which allocation to try next: the only home of optuna."""

from ressa.search.proposer import Proposal, Proposer
from ressa.search.seen import Seen

__all__ = ["Proposal", "Proposer", "Seen"]
