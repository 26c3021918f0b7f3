"""The trials of a map as marks: one per allocation, with numbers where they have room."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from ressa.landscape.allocations import named_pattern
from ressa.landscape.render import percent
from ressa.landscape.tables import About

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

COLOURS = "viridis"  # lightness rises evenly: the order survives in grey
INK = "#222222"
HALO = 2.2
_ASIDE = 0.032
_LABEL = (18.0, 7.5)  # typographic points that a number beside a point takes


def colour_range(frame: "pandas.DataFrame") -> tuple[float, float]:
    """Returns the scores at which a map's colours begin and end, for all its panels.

    Below the lowest floor a model does worse than one that cannot see: colours are not spent there.
    """
    about: About = frame.attrs["about"]
    scores = frame[["pruned", "repaired"]].stack().dropna()
    tops = [score for score in (scores.max(), about.dense) if score is not None and score == score]
    floors = [f for f in (about.floor_majority, about.floor_dense_blank) if f is not None]
    high = max(tops, default=1.0)
    low = max([scores.min(), *([min(floors)] if floors else [])]) if len(scores) else 0.0
    return (low, high) if low < high else (max(high - 0.01, 0.0), high or 0.01)


def visible(searched: "pandas.DataFrame") -> list[dict[str, Any]]:
    """Returns one point per allocation, the best there: trials that differ otherwise overprint.

    A pattern that would cover an unstructured point gets an `aside` to stand next to it.
    """
    best_last = searched.sort_values("score")
    # Where both towers were asked for one sparsity together, an allocation is what came of it.
    places = [
        best_last[tower]
        .astype(object)
        .where(best_last[tower].notna(), best_last[f"{tower}_sparsity"])
        for tower in ("vision", "language")
    ]
    last = best_last.groupby(places, dropna=False).tail(1)
    kept: list[dict[str, Any]] = last.to_dict("records")
    taken = [_place(point) for point in kept if not _names_pattern(point)]
    for point in kept:
        if _names_pattern(point) and any(math.dist(_place(point), p) < _ASIDE for p in taken):
            point["aside"] = (
                -_ASIDE if named_pattern(point["vision"]) else 0.0,
                -_ASIDE if named_pattern(point["language"]) else 0.0,
            )
    return kept


def _place(point: dict[str, Any]) -> tuple[float, float]:
    return point["vision_sparsity"], point["language_sparsity"]


def _names_pattern(point: dict[str, Any]) -> bool:
    return bool(named_pattern(point["vision"]) or named_pattern(point["language"]))


def budget_ends(
    searched: "pandas.DataFrame", about: About
) -> dict[float, tuple[tuple[float, float], tuple[float, float]]]:
    """Returns by budget the ends of its line on the map: vision and language sparsity of each.

    A budget leaves as many weights wherever on its line it is spent: s_v P_v + s_l P_l = B P.
    """
    vision, language = about.vision_prunable, about.language_prunable
    if not vision or not language:
        return {}
    found = {}
    for budget in sorted(set(searched["budget"].dropna())):
        zeros = float(budget) * (vision + language)
        low, high = max(0.0, (zeros - language) / vision), min(1.0, zeros / vision)
        start, end = ((s, (zeros - s * vision) / language) for s in (low, high))
        found[float(budget)] = start, end
    return found


def with_room(points: Sequence[dict[str, Any]], unit: float) -> set[str]:
    """Returns the trials whose numbers have room: where two would overprint, the first one's.

    Args:
        points: of one map, those first whose numbers matter most.
        unit: sparsity that a typographic point is.
    """
    taken: list[tuple[float, float]] = []
    found = set()
    for point in points:
        (right, up), _ = _label_place(point, beside=False)
        x, y = _place(point)
        aside = point.get("aside", (0.0, 0.0))
        place = x + aside[0] + right * unit, y + aside[1] + up * unit
        wide, tall = _LABEL[0] * unit, _LABEL[1] * unit
        if all(abs(place[0] - a) >= wide or abs(place[1] - b) >= tall for a, b in taken):
            taken.append(place)
            found.add(str(point["trial"]))
    return found


def draw_dense(
    axes: "Axes", drawn: "pandas.DataFrame", state: str, scale: tuple[float, float]
) -> None:
    """Draws the dense model, as it is or repaired."""
    name = {"pruned": "dense", "repaired": "dense-repaired"}[state]
    row = drawn[(drawn["trial"] == name) & drawn["score"].notna()]
    if len(row):
        point = row.iloc[0].to_dict() | {"best": False, "vision": "0", "language": "0"}
        point[state] = point["score"]
        label = f"{name} {percent(point['score'])}"
        draw_point(axes, point, state, scale, label=label, beside=True)


def draw_point(
    axes: "Axes",
    point: dict[str, Any],
    state: str,
    scale: tuple[float, float],
    *,
    label: str,
    beside: bool = False,
) -> None:
    """Draws a trial, and its number above it or where it stands away from its neighbours."""
    from matplotlib.patheffects import withStroke

    best = bool(point["best"])
    marker, size = ("*", 230) if best else ("s", 40) if _names_pattern(point) else ("o", 46)
    right, up = point.get("aside", (0.0, 0.0))
    place = point["vision_sparsity"] + right, point["language_sparsity"] + up
    axes.scatter(
        [place[0]],
        [place[1]],
        c=[point[state]],
        cmap=COLOURS,
        vmin=scale[0],
        vmax=scale[1],
        s=size,
        marker=marker,
        edgecolors=INK,
        linewidths=1.3 if best else 0.7,
        zorder=4 if best else 3,
        clip_on=False,
    )
    offset, align = _label_place(point, beside=beside)
    axes.annotate(
        label,
        place,
        xytext=offset,
        textcoords="offset points",
        ha=align,
        fontsize=7.5,
        fontweight="bold" if best else "normal",
        color=INK,
        path_effects=[withStroke(linewidth=HALO, foreground="white")],
        zorder=5,
    )


def _label_place(
    point: dict[str, Any], *, beside: bool
) -> tuple[tuple[float, float], Literal["left", "center", "right"]]:
    """Where a point's number stands, in typographic points from it: away from its neighbours."""
    right, up = point.get("aside", (0.0, 0.0))
    if right:
        return (-6, -8 if up else -3), "right"
    if up or beside:
        return (7, -8 if up else -3), "left"
    return (0, 9 if point["best"] else 6), "center"
