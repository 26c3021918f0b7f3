"""The map's surrogate as pictures and the report show it: a chart, and the best of each line."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

from ressa.errors import NotFoundError, SpecError
from ressa.landscape.lines import Chart, Kind, Slope, best_rows, chart, line_through, slopes
from ressa.landscape.maps import Fitted, fitted_to
from ressa.landscape.observed import mapped_trials
from ressa.landscape.surrogate import LEAST_CELLS
from ressa.landscape.tables import STATES
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


@dataclass(frozen=True, eq=False)
class Charted:
    """What a surrogate says of trials in one state; what nobody asks for is not worked out."""

    fitted: Fitted
    margin: float
    """In points: what lies less than this below the best is as good."""

    @cached_property
    def slopes(self) -> dict[Kind, Slope]:
        """What may stay equal along a line."""
        return slopes(self.fitted.trials)

    @cached_property
    def chart(self) -> Chart:
        """The map on a grid."""
        size = self.slopes["parameters"]
        return chart(self.fitted.surrogate, size, margin=self.margin)

    @cached_property
    def bests(self) -> "pandas.DataFrame":
        """One row a line, with columns as `lines.LineBest`."""
        return best_rows(self.fitted, margin=self.margin)

    def language(self, kind: Kind, equal: float, vision: float) -> float:
        """Returns where a line through an equal split is at a vision sparsity."""
        slope = self.slopes[kind]
        return equal - (vision - equal) * slope.vision / slope.language

    def ends(self, kind: Kind, equal: float) -> list[tuple[float, float]]:
        """Returns where a line through an equal split enters and leaves the map: upper left end
        first, vision and language sparsity."""
        spans = [
            (float(axis[0]), float(axis[-1])) for axis in (self.chart.vision, self.chart.language)
        ]
        line = line_through(self.slopes[kind], equal, vision=spans[0], language=spans[1])
        if line is None:
            return []
        return [(float(line.vision[at]), float(line.language[at])) for at in (0, -1)]


def charts(sweeps: Sequence[SweepStore], *, margin: float) -> dict[str, Charted]:
    """Fits the surrogate to each state and asks it; what has no one map is left out.

    That is where there are too few allocations, or too many, trials that differ in more than
    sparsity and seeds, an objective that is no share, or no scikit-learn.

    Args:
        sweeps: whose trials.
        margin: in points.
    """
    import pandas as pd

    found: dict[str, Charted] = {}
    for state in STATES:
        try:
            rows = mapped_trials(sweeps, state=state)
            cells = len(pd.concat(rows.values())[["vision", "language"]].drop_duplicates())
            if LEAST_CELLS <= cells <= MOST_CELLS:
                found[state] = _charted(fitted_to(rows), margin)
        except (SpecError, NotFoundError, ModuleNotFoundError):
            continue
    return found


@lru_cache(maxsize=4)  # a report that is kept fresh asks again and again
def _charted(fitted: Fitted, margin: float) -> Charted:
    return Charted(fitted, margin)


def map_table(frame: "pandas.DataFrame", charts: Mapping[str, Charted]) -> "pandas.DataFrame":
    """Returns a map as one table: its trials in each state, then places of its surrogate's grid.

    Columns: kind (trial, place), state, trial, vision, language (what was asked), vision_sparsity,
    language_sparsity, budget, options, score, standard_error (a trial's, over pictures), deviation
    (a place's, of one more run) and within_margin (its chance to be as good as the best of its
    size).

    Args:
        frame: a `results_table`.
        charts: by state, what surrogates say.
    """
    import numpy as np
    import pandas as pd

    about = ["trial", "vision", "language", "vision_sparsity", "language_sparsity", "budget"]
    parts = []
    for state in STATES:
        scored = frame[frame[state].notna()]
        scores = {"score": scored[state], "standard_error": scored[f"{state}_standard_error"]}
        part = scored[[*about, "options"]].assign(kind="trial", state=state, **scores)
        parts.append(part)
        if state in charts:
            chart = charts[state].chart
            vision, language = np.meshgrid(chart.vision, chart.language, indexing="ij")
            columns = {"vision_sparsity": vision, "language_sparsity": language}
            columns |= {"score": chart.mean, "deviation": chart.deviation}
            columns |= {"within_margin": chart.within_margin}
            flat = {name: values.ravel() for name, values in columns.items()}
            parts.append(pd.DataFrame(flat).assign(kind="place", state=state))
    # What only trials have has no type where there are none.
    found = pd.concat([part.astype(object) for part in parts]).infer_objects()
    order = ["kind", "state", *about, "options", "score", "standard_error"]
    return found.reindex(columns=[*order, "deviation", "within_margin"]).reset_index(drop=True)
