"""The map's surrogate as pictures and the report show it: a chart, and the best of each line."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ressa.errors import NotFoundError, SpecError
from ressa.landscape.lines import Chart, Kind, Slope, chart, line_table, slopes
from ressa.landscape.observed import mapped_trials, observe
from ressa.landscape.surrogate import fit
from ressa.store import SweepStore

if TYPE_CHECKING:
    import pandas

KINDS: dict[Kind, str] = {
    "parameters": "equal weights",
    "sum": "equal sum of sparsities",
    "bytes": "equal packed bytes",
    "operations": "equal multiply-accumulates",
}
"""What stays equal along a line, in words."""
MOST_CELLS = 500
"""A Gaussian process of more allocations takes minutes: pictures do without."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Charted:
    """What a surrogate says of a sweep in one state."""

    chart: Chart
    bests: "pandas.DataFrame"
    """One row a line, with columns as `lines.LineBest`."""
    slopes: dict[Kind, Slope]
    margin: float
    """In points: what lies less than this below the best is as good."""

    def language(self, kind: Kind, equal: float, vision: float) -> float:
        """Returns where a line through an equal split is at a vision sparsity."""
        slope = self.slopes[kind]
        return equal - (vision - equal) * slope.vision / slope.language


def charted(sweep: SweepStore, state: str, *, margin: float) -> Charted | None:
    """Fits the surrogate and asks it; None where a sweep has no one map.

    That is where there are too few allocations, or too many, trials that differ in more than
    sparsity and seeds, or an objective that is no share.

    Args:
        sweep: whose trials.
        state: pruned or repaired.
        margin: in points.
    """
    try:
        (trials,) = mapped_trials([sweep], state=state).values()
        if len(trials[["vision", "language"]].drop_duplicates()) > MOST_CELLS:
            return None
        surrogate = fit(observe([sweep], state=state))
        bests = line_table([sweep], margin=margin, state=state)
    except (SpecError, NotFoundError):
        return None
    found = slopes(trials)
    return Charted(
        chart=chart(surrogate, found["parameters"], margin=margin),
        bests=bests,
        slopes=found,
        margin=margin,
    )
