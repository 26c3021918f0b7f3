"""Lines over the map along which something stays equal, and where on them the best lies.

What "equal size" means decides what is compared: the sum of the two sparsities (as in the paper's
figure), the weights that stay, their packed bytes, or the multiply-accumulates with them. Each is a
sum of what the towers contribute, which falls evenly with a tower's sparsity; so each line is
straight on the map, and they differ in slope.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ressa.landscape.items import Floats
from ressa.landscape.maps import Fitted, fitted_to
from ressa.landscape.observed import mapped_trials
from ressa.landscape.surrogate import CONFIDENCE, Surrogate
from ressa.store import SweepStore

if TYPE_CHECKING:
    import pandas

Kind = Literal["sum", "parameters", "bytes", "operations"]
Edge = Literal["vision_low", "vision_high", "language_low", "language_high"]
"""An end of what was searched: the least or the largest sparsity of a tower."""
DRAWS = 2000
_PLACES = 61  # on a line
_COLUMNS: dict[Kind, str] = {"bytes": "packed_bytes", "operations": "macs"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Slope:
    """How a quantity depends on the sparsities: base + vision·(1 − v) + language·(1 − l)."""

    kind: Kind
    vision: float
    language: float
    base: float = 0.0

    def at(self, vision: Any, language: Any) -> Any:
        """Returns the quantity at sparsities: as many as there are."""
        return self.base + self.vision * (1 - vision) + self.language * (1 - language)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Places along which a quantity stays equal."""

    kind: Kind
    equal: float
    """Sparsity of the equal split that it goes through."""
    level: float
    """The quantity: sum of sparsities, or what stays: weights, bytes, multiply-accumulates."""
    vision: Floats
    """[place], rising."""
    language: Floats
    edges: tuple[Edge | None, Edge | None]
    """What of the map ends the line at its first and at its last place; None: a dense tower, or one
    without weights, beyond which there is nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LineBest:
    """The best of a line, for a table; scores and sparsities are fractions."""

    line: Kind
    level: float
    equal: float
    vision: float
    """Sparsities of the best: the highest expected score."""
    language: float
    vision_low: float
    """Between these lies the vision sparsity of the true best, with confidence `CONFIDENCE`."""
    vision_high: float
    score: float
    """Expected, over seeds."""
    low: float
    """Ends of its two-sided interval, over seeds and pictures."""
    high: float
    within_margin: float
    """Probability that this place lies less than the margin below the true best of the line."""
    equal_within_margin: float | None
    """The same of the equal split; None where the line's places do not reach it."""
    edge: Edge | None
    """The edge of what was searched, where the best lies at it: a better one may lie beyond."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """The map on a grid, for pictures; scores are fractions."""

    vision: Floats
    """[row]: sparsities."""
    language: Floats
    """[column]."""
    mean: Floats
    """[row column]: expected score of one more run."""
    deviation: Floats
    """[row column]: its standard deviation."""
    within_margin: Floats
    """[row column]: probability of lying less than the margin below the best place of the same
    size."""


def slopes(trials: "pandas.DataFrame") -> dict[Kind, Slope]:
    """Returns how each quantity depends on the sparsities, as the trials' counts have it.

    Bytes and operations are known where the trials recorded them, of two sparsities at least.

    Args:
        trials: rows as `observed.mapped_trials` gives them.
    """
    first = trials.iloc[0]
    prunable = {tower: float(first[f"{tower}_prunable"]) for tower in ("vision", "language")}
    found: dict[Kind, Slope] = {
        "sum": Slope(kind="sum", vision=-1.0, language=-1.0, base=2.0),
        "parameters": Slope(kind="parameters", **prunable),
    }
    for kind, column in _COLUMNS.items():
        vision, language = (_part(trials, tower, column) for tower in ("vision", "language"))
        if vision is not None and language is not None:
            base = vision[1] + language[1]
            found[kind] = Slope(kind=kind, vision=vision[0], language=language[0], base=base)
    return found


def _part(trials: "pandas.DataFrame", tower: str, column: str) -> tuple[float, float] | None:
    """What a tower's quantity gains with its density, and what it has at none.

    A dense tower is left out: it needs no bits that say which weights stay.
    """
    rows = trials[[tower, f"{tower}_{column}"]].dropna().astype(float)
    rows = rows[rows[tower] > 0].drop_duplicates()
    if rows[tower].nunique() < 2:
        return None
    slope, base = np.polyfit(1 - rows[tower], rows[f"{tower}_{column}"], 1)
    return float(slope), float(base)


def line_through(
    slope: Slope, equal: float, *, vision: tuple[float, float], language: tuple[float, float]
) -> Line | None:
    """Returns the line through an equal split, inside a part of the map; None if it misses it.

    Args:
        slope: what stays equal.
        equal: sparsity of both towers.
        vision: least and largest vision sparsity.
        language: the same of language.
    """
    share = slope.vision / slope.language
    ends = sorted(equal - (end - equal) / share for end in language)
    low, high = max(vision[0], ends[0], 0.0), min(vision[1], ends[1], 1.0)
    if low >= high:
        return None
    places = np.linspace(low, high, _PLACES)
    return Line(
        kind=slope.kind,
        equal=equal,
        level=float(slope.at(equal, equal)),
        vision=places,
        language=np.clip(equal - (places - equal) * share, 0.0, 1.0),
        edges=(
            _edge("vision_low", "language_high", low == vision[0], low > 0, language[1] < 1),
            _edge("vision_high", "language_low", high == vision[1], high < 1, language[0] > 0),
        ),
    )


def _edge(
    by_vision: Edge,
    by_language: Edge,
    is_vision: bool,
    vision_goes_on: bool,
    language_goes_on: bool,
) -> Edge | None:
    """Which tower's range ends a line, if sparsities go on beyond it."""
    if is_vision:
        return by_vision if vision_goes_on else None
    return by_language if language_goes_on and vision_goes_on else None


def best_of(surrogate: Surrogate, line: Line, *, margin: float) -> LineBest:
    """Returns the best place of a line, and how sure that is.

    Args:
        surrogate: the map.
        line: where to look.
        margin: in points, 1 is 0.01.
    """
    has_equal = line.vision[0] <= line.equal <= line.vision[-1]
    vision, language = (
        np.append(places, line.equal) if has_equal else places
        for places in (line.vision, line.language)
    )
    drawn = surrogate.draws(vision, language, DRAWS)
    near = within(drawn, margin).mean(axis=0)
    mean = drawn.mean(axis=0)
    ends = (1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2
    best = int(mean.argmax())
    low, high = np.quantile(drawn[:, best], ends)
    vision_low, vision_high = np.quantile(vision[drawn.argmax(axis=1)], ends)
    at = {float(line.vision[0]): line.edges[0], float(line.vision[-1]): line.edges[1]}
    return LineBest(
        line=line.kind,
        level=line.level,
        equal=line.equal,
        vision=float(vision[best]),
        language=float(language[best]),
        vision_low=float(vision_low),
        vision_high=float(vision_high),
        score=float(mean[best]),
        low=float(low),
        high=float(high),
        within_margin=float(near[best]),
        equal_within_margin=float(near[-1]) if has_equal else None,
        edge=at.get(float(vision[best])),
    )


def within(drawn: Floats, margin: float) -> NDArray[np.bool_]:
    """Says which places lie less than a margin below the best one of their draw, [draw place].

    Args:
        drawn: scores, [draw place].
        margin: in points.
    """
    return np.asarray(drawn.max(axis=1, keepdims=True) - drawn < margin / 100)


def settled(
    surrogate: Surrogate, vision: Floats, language: Floats, ran: NDArray[np.bool_], margin: float
) -> float:
    """Returns how probable it is that the best allocation that ran is good enough for its line.

    That of the highest expected score, among those that ran, lies less than a margin below the best
    of all: over seeds, on the questions that the sweep asks. Other pictures are what `ressa
    confirm` is for: no further trial of the sweep says more of them.

    Args:
        surrogate: the map.
        vision: [place]: sparsities of every allocation of the line.
        language: [place].
        ran: [place].
        margin: in points.
    """
    if not ran.any():
        return 0.0
    drawn = surrogate.draws(vision, language, DRAWS, pictures=False)
    best = np.where(ran, drawn.mean(axis=0), -np.inf).argmax()
    return float(within(drawn, margin)[:, best].mean())


def line_table(sweeps: Sequence[SweepStore], *, margin: float) -> "pandas.DataFrame":
    """Returns the best of every line, one row each, with columns as `LineBest`.

    Lines go through the equal split of each of the sweeps' budgets; where they have none, of 20,
    30, … % as far as trials surround it.

    Args:
        sweeps: whose trials make the map: after repair where there is one.
        margin: in points.

    Raises:
        SpecError: there are too few allocations, or they cannot be on one map.
        NotFoundError: no trial has a score.
    """
    return best_rows(fitted_to(mapped_trials(sweeps)), margin=margin)


def best_rows(fitted: Fitted, *, margin: float) -> "pandas.DataFrame":
    """Returns the best of every line of a map, as `line_table` does."""
    import pandas as pd

    trials = fitted.trials
    spans = {t: (float(trials[t].min()), float(trials[t].max())) for t in ("vision", "language")}
    rows = [
        asdict(best_of(fitted.surrogate, line, margin=margin))
        for slope in slopes(trials).values()
        for equal in _levels(trials, spans)
        if (line := line_through(slope, equal, **spans)) is not None
    ]
    return pd.DataFrame(rows, columns=list(LineBest.__dataclass_fields__))


def _levels(trials: "pandas.DataFrame", spans: dict[str, tuple[float, float]]) -> list[float]:
    budgets = sorted(trials["budget"].dropna().astype(float).unique())
    low = max(low for low, _ in spans.values())
    high = min(high for _, high in spans.values())
    return [*budgets] or [step / 10 for step in range(2, 10) if low < step / 10 < high]


def chart(surrogate: Surrogate, size: Slope, *, margin: float, places: int = 31) -> Chart:
    """Returns the map on a grid over the part that its trials span.

    Args:
        surrogate: the map.
        size: what stays equal where places are compared.
        margin: in points.
        places: rows, and columns.
    """
    low, high = surrogate.cells.places.min(axis=0), surrogate.cells.places.max(axis=0)
    vision, language = (np.linspace(low[t], high[t], places) for t in (0, 1))
    at = np.meshgrid(vision, language, indexing="ij")
    predicted = surrogate.predict(at[0].ravel(), at[1].ravel())
    drawn = surrogate.draws(at[0].ravel(), at[1].ravel(), DRAWS // 5)
    drawn = drawn.reshape(-1, places, places)
    best = np.stack(
        [_best_of_size(drawn, vision, language, row, size) for row in range(places)], axis=1
    )  # [draw row column]
    return Chart(
        vision=vision,
        language=language,
        mean=predicted.mean.reshape(places, places),
        deviation=predicted.deviation.reshape(places, places),
        within_margin=(best - drawn < margin / 100).mean(axis=0),
    )


def _best_of_size(drawn: Floats, vision: Floats, language: Floats, row: int, size: Slope) -> Floats:
    """The highest score of the same size as each place of a row, interpolated, [draw column]."""
    share = size.vision / size.language
    step = language[1] - language[0]
    best = drawn[:, row].copy()
    for other, sparsity in enumerate(vision):
        wanted = (language + (vision[row] - sparsity) * share - language[0]) / step
        inside = (wanted >= 0) & (wanted <= len(language) - 1)
        below = np.minimum(wanted[inside].astype(int), len(language) - 2)
        rest = wanted[inside] - below
        found = drawn[:, other, below] * (1 - rest) + drawn[:, other, below + 1] * rest
        best[:, inside] = np.maximum(best[:, inside], found)
    return best
