"""Successive halving: who goes on at a rung."""

import math
from collections.abc import Sequence


def threshold(values: Sequence[float], reduction: float) -> float | None:
    """Returns the lowest of the best 1/reduction of the values; None if that is not even one."""
    best = math.floor(len(values) / reduction)
    return sorted(values, reverse=True)[best - 1] if best else None
