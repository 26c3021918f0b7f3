"""Which allocation to try next: the only home of optuna."""

from ressa.search.proposer import Proposal, Proposer, Seen

__all__ = ["Proposal", "Proposer", "Seen"]
