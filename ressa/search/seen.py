"""What a proposal may look at."""

from dataclasses import dataclass

from ressa.spec import Point


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A trial that a proposal is conditioned on: its point, and its objectives if it has them."""

    point: Point
    values: tuple[float, ...] | None
    """One for each objective, larger is better. None while the trial is in flight or when it
    failed; `failed` tells which."""
    failed: bool = False
    system_attrs: str = "{}"
    """What the sampler noted when it proposed the trial."""
