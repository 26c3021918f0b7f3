"""The landscape as a picture: before and after repair, on one scale, with lines of equal size."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ressa.errors import SpecError, StoreError
from ressa.landscape.render import percent
from ressa.landscape.tables import About, colour_range, results_table
from ressa.store import SweepStore

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SUFFIXES = (".png", ".svg", ".pdf")
_COLOURS = "viridis"  # lightness rises evenly: the order survives in grey
_INK, _FAINT = "#222222", "#8a8a8a"
_ENOUGH, _ENOUGH_AREA = 6, 0.01  # points and their hull: with less, a background is invented
_HALO = 2.2
_ASIDE = 0.032
_LIMITS = (-0.04, 1.04)


def plot(sweep: SweepStore, path: str | Path) -> None:
    """Draws a sweep's landscape into a .png, .svg or .pdf file.

    Raises:
        SpecError: the file's name ends in none of these.
        StoreError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in _SUFFIXES:
        raise SpecError(f"--out: {path.name!r} ends in none of {', '.join(_SUFFIXES)}.")
    import matplotlib

    figure = draw(results_table(sweep))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # With dates and random names left out, an unchanged sweep draws an unchanged file.
        with matplotlib.rc_context({"svg.hashsalt": "ressa"}):
            figure.savefig(path, dpi=200, metadata=_undated(path))
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error


def draw(frame: "pandas.DataFrame") -> "Figure":
    """Draws a `results_table`; a sweep without repair has one panel, before."""
    import matplotlib
    from matplotlib.figure import Figure

    about: About = frame.attrs["about"]
    drawn = frame[frame["score"].notna()]
    states = ["pruned", "repaired"] if drawn["repaired"].notna().any() else ["pruned"]
    scale = colour_range(frame)
    with matplotlib.rc_context({"font.size": 9}):
        width = {1: 7.4, 2: 11.6}[len(states)]
        figure = Figure(figsize=(width, 5.5), layout="constrained")
        panels = figure.subplots(1, len(states), sharex=True, sharey=True, squeeze=False)[0]
        for axes, state in zip(panels, states, strict=True):
            _draw_panel(axes, drawn, about, state, scale)
        panels[0].set_ylabel("language sparsity")
        _draw_scale(figure, panels, about, scale)
        figure.suptitle(_title(about), x=0.01, ha="left", fontsize=12, fontweight="bold")
        footnote = _lines(_footnote(about, drawn), int(17 * width))
        figure.supxlabel(footnote, x=0.01, ha="left", fontsize=8, color="#555555")
    return figure


def _draw_panel(
    axes: "Axes",
    drawn: "pandas.DataFrame",
    about: About,
    state: str,
    scale: tuple[float, float],
) -> None:
    axes.set_title({"pruned": "before repair", "repaired": "after repair"}[state], loc="left")
    axes.set(xlim=_LIMITS, ylim=_LIMITS, aspect="equal", xlabel="vision sparsity")
    axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    axes.spines[["top", "right"]].set_visible(False)
    searched = drawn[(drawn["role"] != "baseline") & drawn[state].notna()]
    if searched.empty:
        axes.text(0.5, 0.5, "no trial has succeeded yet", ha="center", color=_FAINT)
        return
    _draw_background(axes, searched, state, scale)
    _draw_budgets(axes, searched, about)
    _draw_dense(axes, drawn, state, scale)
    for point in _visible(searched):
        _draw_point(axes, point, state, scale)


def _draw_background(
    axes: "Axes", searched: "pandas.DataFrame", state: str, scale: tuple[float, float]
) -> None:
    """Interpolates between unstructured points, inside their hull; patterns are off it."""
    import numpy as np
    from matplotlib.patches import Polygon
    from scipy.interpolate import RBFInterpolator
    from scipy.spatial import ConvexHull, QhullError

    free = searched[~_is_pattern(searched)]
    means = free.groupby(["vision_sparsity", "language_sparsity"])[state].mean().reset_index()
    places = means[["vision_sparsity", "language_sparsity"]].to_numpy(float)
    if len(places) < _ENOUGH:
        return
    try:
        hull = ConvexHull(places)
    except QhullError:
        return
    if hull.volume < _ENOUGH_AREA:  # nearly on one line: there is no surface
        return
    ticks = (np.arange(200) + 0.5) / 200
    asked = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)
    surface = RBFInterpolator(places, means[state].to_numpy(float), kernel="linear")(asked)
    image = axes.imshow(
        surface.reshape(200, 200),
        cmap=_COLOURS,
        vmin=scale[0],
        vmax=scale[1],
        alpha=0.45,
        extent=(0, 1, 0, 1),
        origin="lower",
        interpolation="bilinear",
        zorder=0,
    )
    image.set_clip_path(Polygon(places[hull.vertices], closed=True, transform=axes.transData))
    axes.set(xlim=_LIMITS, ylim=_LIMITS)


def _draw_budgets(axes: "Axes", searched: "pandas.DataFrame", about: About) -> None:
    """Draws, per budget, every allocation that leaves as many weights: s_v P_v + s_l P_l = B P."""
    vision, language = about.vision_prunable, about.language_prunable
    if not vision or not language:
        return
    for budget in sorted(set(searched["budget"].dropna())):
        zeros = budget * (vision + language)
        ends = [
            (s, (zeros - s * vision) / language)
            for s in (max(0.0, (zeros - language) / vision), min(1.0, zeros / vision))
        ]
        axes.plot(*zip(*ends, strict=True), color=_INK, linewidth=0.8, linestyle=(0, (5, 4)))
        axes.annotate(
            f"budget {budget:g}",
            ends[1],
            xytext=(-2, 5),
            textcoords="offset points",
            ha="right",
            fontsize=7.5,
            color=_INK,
            rotation=-math.degrees(math.atan2(vision, language)),
            rotation_mode="anchor",
        )


def _draw_dense(
    axes: "Axes", drawn: "pandas.DataFrame", state: str, scale: tuple[float, float]
) -> None:
    name = {"pruned": "dense", "repaired": "dense-repaired"}[state]
    row = drawn[(drawn["trial"] == name) & drawn["score"].notna()]
    if len(row):
        point = row.iloc[0].to_dict() | {"best": False, "vision": "0", "language": "0"}
        point[state] = point["score"]
        _draw_point(axes, point, state, scale, label=f"{name} {percent(point['score'])}")


def _draw_point(
    axes: "Axes",
    point: dict[str, Any],
    state: str,
    scale: tuple[float, float],
    *,
    label: str | None = None,
) -> None:
    from matplotlib.patheffects import withStroke

    best = bool(point["best"])
    marker, size = ("*", 230) if best else ("s", 40) if _names_pattern(point) else ("o", 46)
    right, up = point.get("aside", (0.0, 0.0))
    place = point["vision_sparsity"] + right, point["language_sparsity"] + up
    axes.scatter(
        [place[0]],
        [place[1]],
        c=[point[state]],
        cmap=_COLOURS,
        vmin=scale[0],
        vmax=scale[1],
        s=size,
        marker=marker,
        edgecolors=_INK,
        linewidths=1.3 if best else 0.7,
        zorder=4 if best else 3,
        clip_on=False,
    )
    offset, align = _label_place(point, beside=label is not None)
    axes.annotate(
        label or percent(point[state]),
        place,
        xytext=offset,
        textcoords="offset points",
        ha=align,
        fontsize=7.5,
        fontweight="bold" if best else "normal",
        color=_INK,
        path_effects=[withStroke(linewidth=_HALO, foreground="white")],
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


def _draw_scale(figure: "Figure", panels: Any, about: About, scale: tuple[float, float]) -> None:
    """The colour bar, with what the scores stand on and fall from as its marks."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    bar = figure.colorbar(
        ScalarMappable(Normalize(*scale), cmap=_COLOURS),
        ax=list(panels),
        fraction=0.05,
        pad=0.015,
        extend="min",
    )
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}")
    bar.ax.yaxis.set_ticks_position("left")
    marks = {
        "dense": about.dense,
        "dense-repaired": about.dense_repaired,
        "majority answer": about.floor_majority,
        "dense, blank image": about.floor_dense_blank,
    }
    known = sorted((value, name) for name, value in marks.items() if value is not None)
    room = 0.045 * (scale[1] - scale[0])
    inside = [min(max(value, scale[0]), scale[1]) for value, _ in known]
    for (value, name), at, height in zip(known, inside, _spread(inside, room), strict=True):
        bar.ax.axhline(at, color="white", linewidth=2.4)
        bar.ax.axhline(at, color=_INK, linewidth=1)
        bar.ax.annotate(
            f"{name} {percent(value)}{' ↓' if value < scale[0] else ''}",
            (1, at),
            xytext=(1.9, height),
            textcoords=bar.ax.get_yaxis_transform(),
            va="center",
            fontsize=8,
            arrowprops={"arrowstyle": "-", "linewidth": 0.6, "color": _INK, "shrinkA": 0},
            annotation_clip=False,
        )


def _spread(values: list[float], room: float) -> list[float]:
    """Returns heights for labels of rising values, moved apart to leave room for each."""
    heights = list(values)
    for _ in range(20):
        for at in range(len(heights) - 1):
            overlap = room - (heights[at + 1] - heights[at])
            if overlap > 0:
                heights[at] -= overlap / 2
                heights[at + 1] += overlap / 2
    return heights


def _visible(searched: "pandas.DataFrame") -> list[dict[str, Any]]:
    """One point per allocation, the best there: trials that differ elsewhere would overprint.

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
                -_ASIDE if ":" in str(point["vision"]) else 0.0,
                -_ASIDE if ":" in str(point["language"]) else 0.0,
            )
    return kept


def _place(point: dict[str, Any]) -> tuple[float, float]:
    return point["vision_sparsity"], point["language_sparsity"]


def _names_pattern(point: dict[str, Any]) -> bool:
    return ":" in str(point["vision"]) or ":" in str(point["language"])


def _is_pattern(frame: "pandas.DataFrame") -> "pandas.Series":
    return frame["vision"].str.contains(":", na=False) | frame["language"].str.contains(
        ":", na=False
    )


def _title(about: About) -> str:
    parts = [about.model, about.methods, about.metric and f"{about.metric} in %"]
    return "  ·  ".join(part for part in parts if part) or about.sweep


def _footnote(about: About, drawn: "pandas.DataFrame") -> list[str]:
    searched = drawn[drawn["role"] != "baseline"]
    said = []
    if about.items:
        error = searched["standard_error"].median()
        spread = "" if math.isnan(error) else f", standard error about {percent(error)}"
        said.append(f"{about.items:,} questions a point{spread}")
    if about.vision_prunable and about.language_prunable:
        said.append(
            f"sparsity: share of zeros in {about.vision_prunable:,} vision and "
            f"{about.language_prunable:,} language weights"
        )
    if searched["budget"].notna().any():
        said.append("dashed: equal size")
    if _is_pattern(searched).any():
        said.append("□ N:M, set aside where it would cover a point")
    return [*said, "★ best", "shading interpolates"]


def _lines(phrases: list[str], width: int) -> str:
    """Sets phrases one after the other, in lines of at most so many characters."""
    lines = [phrases[0]]
    for phrase in phrases[1:]:
        longer = f"{lines[-1]}  ·  {phrase}"
        lines = [*lines[:-1], longer] if len(longer) <= width else [*lines, phrase]
    return "\n".join(lines)


def _undated(path: Path) -> dict[str, None]:
    return {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix.lower(), {})
