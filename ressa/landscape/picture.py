"""The landscape as a picture: before and after repair, on one scale, with lines of equal size."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ressa.errors import SpecError, StoreError
from ressa.landscape.render import percent
from ressa.landscape.tables import About, results_table
from ressa.store import SweepStore

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SUFFIXES = (".png", ".svg", ".pdf")
_COLOURS = "viridis"  # lightness rises evenly: the order survives in grey
_INK, _FAINT = "#222222", "#8a8a8a"
_ENOUGH = 6  # points, below which a background would be invented
_HALO = 2.2


def plot(sweep: SweepStore, path: str | Path) -> None:
    """Draws a sweep's landscape into a .png, .svg or .pdf file.

    Raises:
        SpecError: the file's name ends in none of these.
        StoreError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in _SUFFIXES:
        raise SpecError(f"--out: {path.name!r} ends in none of {', '.join(_SUFFIXES)}.")
    figure = draw(results_table(sweep))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
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
    scale = _scale(drawn, about, states)
    # A setting of svg alone, so that a shared page keeps its text as text.
    with matplotlib.rc_context({"svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(1.6 + 4.9 * len(states), 5.7), layout="constrained")
        panels = figure.subplots(1, len(states), sharex=True, sharey=True, squeeze=False)[0]
        for axes, state in zip(panels, states, strict=True):
            _draw_panel(axes, drawn, about, state, scale)
        panels[0].set_ylabel("language sparsity")
        _draw_scale(figure, panels, about, scale)
        figure.suptitle(_title(about), x=0.01, ha="left", fontsize=12, fontweight="bold")
        figure.supxlabel(_footnote(about, drawn), x=0.01, ha="left", fontsize=8, color="#555555")
    return figure


def _scale(drawn: "pandas.DataFrame", about: About, states: list[str]) -> tuple[float, float]:
    """The lowest and highest of all that is shown: one scale for both panels and the floors."""
    shown = [value for state in states for value in drawn[state]]
    shown += [about.dense, about.floor_majority, about.floor_dense_blank]
    known = [value for value in shown if value is not None and not math.isnan(value)]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    return (low, high) if high > low else (low - 0.01, high + 0.01)


def _draw_panel(
    axes: "Axes",
    drawn: "pandas.DataFrame",
    about: About,
    state: str,
    scale: tuple[float, float],
) -> None:
    axes.set_title({"pruned": "before repair", "repaired": "after repair"}[state], loc="left")
    axes.set(xlim=(-0.04, 1.04), ylim=(-0.04, 1.04), aspect="equal", xlabel="vision sparsity")
    axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    axes.spines[["top", "right"]].set_visible(False)
    searched = drawn[(drawn["role"] == "search") & drawn[state].notna()]
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
    from scipy.interpolate import RBFInterpolator
    from scipy.spatial import Delaunay, QhullError

    free = searched[~_is_pattern(searched)]
    means = free.groupby(["vision_sparsity", "language_sparsity"])[state].mean().reset_index()
    places = means[["vision_sparsity", "language_sparsity"]].to_numpy(float)
    if len(places) < _ENOUGH:
        return
    try:
        hull = Delaunay(places)
    except QhullError:  # all on one line: there is no surface
        return
    ticks = np.linspace(0, 1, 201)
    x, y = np.meshgrid(ticks, ticks)
    asked = np.column_stack([x.ravel(), y.ravel()])
    surface = RBFInterpolator(places, means[state].to_numpy(float), kernel="linear")(asked)
    surface[hull.find_simplex(asked, tol=1e-3) < 0] = np.nan
    levels = np.linspace(*scale, 41)
    grid = np.clip(surface, *scale).reshape(x.shape)
    axes.contourf(x, y, grid, levels=levels, cmap=_COLOURS, alpha=0.45, antialiased=True)


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
            f"{100 * budget:g} % of both",
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

    pattern = ":" in str(point["vision"]) or ":" in str(point["language"])
    marker, size = ("s", 42) if pattern else ("o", 46)
    if point["best"]:
        marker, size = "*", 230
    x, y = point["vision_sparsity"], point["language_sparsity"]
    axes.scatter(
        [x],
        [y],
        c=[point[state]],
        cmap=_COLOURS,
        vmin=scale[0],
        vmax=scale[1],
        s=size,
        marker=marker,
        edgecolors=_INK,
        linewidths=1.3 if point["best"] else 0.7,
        zorder=4 if point["best"] else 3,
        clip_on=False,
    )
    axes.annotate(
        label or percent(point[state]),
        (x, y),
        xytext=(7, -3) if label else (0, 9 if point["best"] else 6),
        textcoords="offset points",
        ha="left" if label else "center",
        fontsize=7.5,
        fontweight="bold" if point["best"] else "normal",
        color=_INK,
        path_effects=[withStroke(linewidth=_HALO, foreground="white")],
        zorder=5,
    )


def _draw_scale(figure: "Figure", panels: Any, about: About, scale: tuple[float, float]) -> None:
    """The colour bar, with what the scores stand on and fall from as its marks."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    bar = figure.colorbar(
        ScalarMappable(Normalize(*scale), cmap=_COLOURS), ax=list(panels), fraction=0.05, pad=0.015
    )
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}")
    bar.ax.yaxis.set_ticks_position("left")
    bar.outline.set_linewidth(0.5)  # type: ignore[operator]
    marks = {
        "dense": about.dense,
        "dense-repaired": about.dense_repaired,
        "majority answer": about.floor_majority,
        "dense, blank image": about.floor_dense_blank,
    }
    known = sorted((value, name) for name, value in marks.items() if value is not None)
    room = 0.045 * (scale[1] - scale[0])
    heights = _spread([value for value, _ in known], room)
    for (value, name), height in zip(known, heights, strict=True):
        bar.ax.axhline(value, color="white", linewidth=2.4)
        bar.ax.axhline(value, color=_INK, linewidth=1)
        bar.ax.annotate(
            f"{name} {percent(value)}",
            (1, value),
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
    """One point per allocation, the best there: trials that differ elsewhere would overprint."""
    kinds = ["vision", "language"]
    best_last = searched.sort_values("score")
    return best_last.groupby(kinds, as_index=False, dropna=False).tail(1).to_dict("records")


def _is_pattern(frame: "pandas.DataFrame") -> "pandas.Series":
    return frame["vision"].str.contains(":", na=False) | frame["language"].str.contains(
        ":", na=False
    )


def _title(about: About) -> str:
    parts = [about.model, about.methods, about.metric and f"{about.metric} in %"]
    return "  ·  ".join(part for part in parts if part) or about.sweep


def _footnote(about: About, drawn: "pandas.DataFrame") -> str:
    searched = drawn[drawn["role"] == "search"]
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
    said.append("dashed: equal size")
    if _is_pattern(searched).any():
        said.append("□ an N:M pattern")
    said.append("★ best")
    return "  ·  ".join(said)


def _undated(path: Path) -> dict[str, None]:
    """Leaves the date out, so that an unchanged sweep draws an unchanged file."""
    return {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix.lower(), {})
