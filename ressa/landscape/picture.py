"""The landscape as a picture: before and after repair, on one scale, with lines of equal size.

Where a sweep's trials make one map, its surrogate is what is shaded, with how sure it is below.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ressa.landscape.allocations import is_pattern, of_search
from ressa.landscape.best import best_trials, over_runs
from ressa.landscape.charted import Charted
from ressa.landscape.parts import parted
from ressa.landscape.points import (
    COLOURS,
    HALO,
    INK,
    budget_ends,
    colour_range,
    draw_dense,
    draw_point,
    visible,
    with_room,
)
from ressa.landscape.render import percent
from ressa.landscape.surface import Surface, draw_surface, hull_of, surface_of
from ressa.landscape.tables import STATES, About, State, states_of

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_FAINT = "#8a8a8a"
ROOM = 0.14
"""What the numbers at the ends of lines take, in sparsity."""
_LIMITS = (-0.04, 1.04)
_NARROW, _WIDE = 290.0, 520.0  # typographic points that a map's side takes, about


@dataclass(frozen=True, slots=True, kw_only=True)
class _Panel:
    """One map: some trials in one state."""

    title: str
    trials: "pandas.DataFrame"
    state: State
    charted: Charted | None = None


def draw(
    frame: "pandas.DataFrame",
    charted: Mapping[str, Charted] | None = None,
    *,
    by: str | None = None,
) -> "Figure":
    """Draws maps of a `results_table`; a sweep without repair has one panel, before.

    Args:
        frame: the trials.
        charted: by state, what surrogates say: shaded, and how sure it is drawn below.
        by: an option of which each value gets maps of its own.

    Raises:
        SpecError: no trial chose such an option.
    """
    import matplotlib

    about: About = frame.attrs["about"]
    scored = frame[frame["score"].notna()]
    # Parted first: a seed may be what parts them, and means over runs have none.
    parts = {value: over_runs(part) for value, part in parted(scored, by).items()}
    drawn = parts[""] if by is None else over_runs(scored)
    # Maps of one option leave the dense model out, and have room for numbers beside points.
    span = _LIMITS if by is None else span_of(drawn)
    states = states_of(frame)
    panels = _panels(parts, states, charted or {}, by)
    scale = colour_range(frame)
    last = (charted or {}).get(states[-1])
    with matplotlib.rc_context({"font.size": 9}):
        figure, maps, below = _laid_out(len(panels), last is not None)
        side = _WIDE if last is not None and len(panels) == 1 else _NARROW
        are_shaded = [
            _draw_panel(axes, panel, drawn, about, scale, span, side)
            for axes, panel in zip(maps, panels, strict=False)
        ]
        for axes in maps[len(panels) :]:
            axes.set_axis_off()
        _draw_scale(figure, maps, about, scale)
        if last is not None:
            _draw_sureness(figure, below, panels[-1], last, alone=len(panels) == 1)
        figure.suptitle(title_of(frame), x=0.01, ha="left", fontsize=12, fontweight="bold")
        said = _footnote(about, drawn, last, is_shaded=any(are_shaded))
        footnote = _lines(said, int(17 * figure.get_figwidth()))
        figure.supxlabel(footnote, x=0.01, ha="left", fontsize=8, color="#555555")
    return figure


def _laid_out(panels: int, has_below: bool) -> "tuple[Figure, list[Axes], list[Axes]]":
    """Lays out the maps, and where there is a surrogate what stands below them.

    Of one map alone that stands beside it.
    """
    from matplotlib.figure import Figure

    if has_below and panels == 1:
        figure = Figure(figsize=(13.2, 8.4), layout="constrained")
        parts = figure.subplot_mosaic([["map", "±"], ["map", "chance"]], width_ratios=[2.0, 1.0])
        for axes in parts.values():
            axes.set_ylabel("language sparsity")
        return figure, [parts["map"]], [parts["±"], parts["chance"]]
    columns = max(panels if panels < 5 else -(-panels // 2), 2 if has_below else 1)
    rows = -(-panels // columns) + has_below
    width = {1: 7.4, 2: 11.6}.get(columns, 4.2 * columns + 1.2)
    figure = Figure(figsize=(width, 0.9 + 4.6 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharex="row", sharey="row", squeeze=False)
    for row in grid:
        row[0].set_ylabel("language sparsity")
    return figure, [*grid[: rows - has_below].flat], [*grid[-1]] if has_below else []


def _panels(
    parts: "Mapping[str, pandas.DataFrame]",
    states: Sequence[State],
    charted: Mapping[str, Charted],
    by: str | None,
) -> list[_Panel]:
    """The maps: before and after repair; or those of each value of an option, in order.

    What repair does is not seen before it: there is one map before, and one after for each value.
    """
    if by is None:
        return [
            _Panel(title=STATES[s], trials=parts[""], state=s, charted=charted.get(s))
            for s in states
        ]
    if by.startswith("repair."):
        first = _Panel(title=STATES["pruned"], trials=next(iter(parts.values())), state="pruned")
        after = [
            _Panel(title=f"{by} = {value}", trials=part, state="repaired")
            for value, part in parts.items()
        ]
        return [first, *after] if "repaired" in states else [first]
    return [
        _Panel(title=f"{value}, {STATES[state]}", trials=part, state=state)
        for state in states
        for value, part in parts.items()
    ]


def _draw_panel(
    axes: "Axes",
    panel: _Panel,
    drawn: "pandas.DataFrame",
    about: About,
    scale: tuple[float, float],
    span: tuple[float, float],
    side: float,
) -> bool:
    """Draws one map; returns whether there are enough points to shade what is between them."""
    prepare(axes, panel.title, span)
    state = panel.state
    searched = of_search(panel.trials, scored=state)
    if searched.empty:
        axes.text(0.5, 0.5, "no trial has succeeded yet", ha="center", color=_FAINT)
        return False
    surface = surface_of(searched, state, panel.charted)
    if surface is not None:
        draw_surface(axes, surface, scale)
    _draw_budgets(axes, searched, about)
    if span is _LIMITS:
        draw_dense(axes, drawn, state, scale)
    points = visible(searched)
    best = best_trials(searched, state, several_objectives=about.several_objectives)
    points = [point | {"best": point["trial"] in best} for point in points]
    foremost = sorted(points, key=lambda point: (not point["best"], -point[state]))
    labelled = with_room(foremost, (span[1] - span[0]) / side)
    for point in points:
        label = percent(point[state]) if point["trial"] in labelled else ""
        draw_point(axes, point, state, scale, label=label)
    return surface is not None


def prepare(axes: "Axes", title: str, span: tuple[float, float] = _LIMITS) -> None:
    """Sets up a map: vision sparsity across, language sparsity upwards.

    Args:
        axes: where.
        title: above it.
        span: least and largest sparsity that it shows, of both towers.
    """
    axes.set_title(title, loc="left")
    axes.set(xlim=span, ylim=span, aspect="equal", xlabel="vision sparsity")
    ticks = [n / 10 for n in range(0, 11, 2 if span[1] - span[0] > 0.6 else 1)]
    shown = [tick for tick in ticks if span[0] <= tick <= span[1]]
    axes.set(xticks=shown, yticks=shown)
    axes.spines[["top", "right"]].set_visible(False)


def span_of(trials: "pandas.DataFrame", room: float = 0.06) -> tuple[float, float]:
    """Returns the sparsities between which all trials of a search lie, with room around them."""
    values = of_search(trials)[["vision_sparsity", "language_sparsity"]].stack().astype(float)
    if values.empty:
        return _LIMITS
    return max(-room, values.min() - room), min(_LIMITS[1], values.max() + room)


def _draw_sureness(
    figure: "Figure",
    panels: Sequence["Axes"],
    panel: _Panel,
    charted: Charted,
    *,
    alone: bool,
) -> None:
    """Draws how far one more run would scatter, and where one is as good as the best of its size.

    The second has the lines of equal weights, with the best of each and between where it lies.
    """
    searched = of_search(panel.trials)
    free = searched[~is_pattern(searched) & searched[panel.state].notna()]
    places = free[["vision_sparsity", "language_sparsity"]].drop_duplicates().to_numpy(float)
    hull, chart, span = hull_of(places), charted.chart, span_of(searched, ROOM)
    shown = (
        ("± of one more run, in points", 100 * chart.deviation, "Greys", None),
        (
            f"chance to lie within {charted.margin:g} of the best of its size",
            chart.within_margin,
            "cividis",
            (0.0, 1.0),
        ),
    )
    for axes, (title, values, colours, scale) in zip(panels, shown, strict=False):
        prepare(axes, title if alone else f"{title}, {panel.title}", span)
        axes.plot(*places.T, ".", color=INK, markersize=3, zorder=3)
        if hull is None:
            continue
        surface = Surface(vision=chart.vision, language=chart.language, values=values, hull=hull)
        image = draw_surface(
            axes,
            surface,
            scale or (0.0, float(values[surface.inside()].max())),
            colours=colours,
            alpha=0.85,
            contours=False,
        )
        figure.colorbar(image, ax=axes, fraction=0.05, pad=0.015)
    for axes in panels[2:]:
        axes.set_axis_off()
    draw_bests(panels[1], charted, "parameters")


def diamonds(charted: Charted, kinds: Sequence[str] = ("parameters",)) -> str:
    """Says what `draw_bests` draws."""
    shown = charted.bests[charted.bests["line"].isin(kinds)]
    at_edge = ", ◆ at the edge of the search" if shown["edge"].notna().any() else ""
    bold = "bold where it lies with 90 % probability, its score at its end"
    return f"◇ the best of a line{at_edge}, {bold}"


def draw_bests(axes: "Axes", charted: Charted, kind: Any) -> None:
    """Draws lines of one kind: the best of each, and in bold where it may lie."""
    from matplotlib.patheffects import withStroke

    rows = charted.bests[charted.bests["line"] == kind].to_dict("records")
    halo = [withStroke(linewidth=4.2, foreground="white")]
    for row in rows:
        start, end = charted.ends(kind, row["equal"])
        axes.plot(*zip(start, end, strict=True), color=INK, linewidth=0.7, linestyle=(0, (5, 4)))
        where = [row["vision_low"], row["vision_high"]]
        sure = [(v, charted.language(kind, row["equal"], v)) for v in where]
        axes.plot(*zip(*sure, strict=True), color=INK, linewidth=2.2, path_effects=halo, zorder=4)
        axes.plot(
            row["vision"],
            row["language"],
            marker="D",
            markersize=5,
            color=INK if isinstance(row["edge"], str) else "white",
            markeredgecolor=INK,
            zorder=5,
        )
        # At the line's end, where no other line is near: the best ones lie side by side.
        angle = math.atan2(end[1] - start[1], end[0] - start[0])
        axes.annotate(
            percent(row["score"]),
            end,
            xytext=(4 * math.cos(angle), 4 * math.sin(angle)),
            textcoords="offset points",
            va="center",
            rotation=math.degrees(angle),
            rotation_mode="anchor",
            fontsize=7.5,
            color=INK,
            path_effects=[withStroke(linewidth=HALO, foreground="white")],
            zorder=6,
        )


def _draw_budgets(axes: "Axes", searched: "pandas.DataFrame", about: About) -> None:
    """Draws, per budget, every allocation that leaves as many weights."""
    places = searched[["vision_sparsity", "language_sparsity"]].to_numpy(float).tolist()
    for budget, ends in budget_ends(searched, about).items():
        axes.plot(*zip(*ends, strict=True), color=INK, linewidth=0.8, linestyle=(0, (5, 4)))
        # At the end that is farther from all points.
        free = [min(math.dist(end, place) for place in places) for end in ends]
        at_left = free[0] > free[1]
        axes.annotate(
            f"budget {budget:g}",
            ends[0 if at_left else 1],
            xytext=(2 if at_left else -2, 5),
            textcoords="offset points",
            ha="left" if at_left else "right",
            fontsize=7.5,
            color=INK,
            rotation=math.degrees(math.atan2(ends[1][1] - ends[0][1], ends[1][0] - ends[0][0])),
            rotation_mode="anchor",
        )


def _draw_scale(figure: "Figure", panels: Any, about: About, scale: tuple[float, float]) -> None:
    """The colour bar, with what the scores stand on and fall from as its marks."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    bar = figure.colorbar(
        ScalarMappable(Normalize(*scale), cmap=COLOURS),
        ax=list(panels),
        fraction=0.05,
        pad=0.015,
        extend="min",
    )
    decimals = max(0, math.ceil(1 - math.log10(100 * (scale[1] - scale[0]))))
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.{decimals}f}")
    bar.ax.yaxis.set_ticks_position("left")
    known = sorted((value, name) for name, value in about.yardsticks.items())
    room = 0.045 * (scale[1] - scale[0])
    inside = [min(max(value, scale[0]), scale[1]) for value, _ in known]
    for (value, name), at, height in zip(known, inside, _spread(inside, room), strict=True):
        bar.ax.axhline(at, color="white", linewidth=2.4)
        bar.ax.axhline(at, color=INK, linewidth=1)
        bar.ax.annotate(
            f"{name} {percent(value)}{' ↓' if value < scale[0] else ''}",
            (1, at),
            xytext=(1.9, height),
            textcoords=bar.ax.get_yaxis_transform(),
            va="center",
            fontsize=8,
            arrowprops={"arrowstyle": "-", "linewidth": 0.6, "color": INK, "shrinkA": 0},
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


def title_of(frame: "pandas.DataFrame") -> str:
    """Names model, methods and metric of a `results_table`."""
    about: About = frame.attrs["about"]
    parts = [about.model, about.methods, about.metric and f"{about.metric} in %"]
    return "  ·  ".join(part for part in parts if part) or about.sweep


def _footnote(
    about: About, drawn: "pandas.DataFrame", charted: Charted | None, *, is_shaded: bool
) -> list[str]:
    searched = of_search(drawn)
    said = []
    if about.items and len(searched):
        error = searched["standard_error"].median()
        spread = "" if math.isnan(error) else f", standard error about {percent(error)}"
        fewest, most = int(searched["runs"].min()), int(searched["runs"].max())
        of_runs = "" if most == 1 else f", means of {'up to ' if fewest < most else ''}{most} runs"
        said.append(f"{about.sweep}: {about.items:,} questions a point{of_runs}{spread}")
    if about.vision_prunable and about.language_prunable:
        said.append(
            f"sparsity: share of zeros in {about.vision_prunable:,} vision and "
            f"{about.language_prunable:,} language weights"
        )
    if searched["budget"].notna().any():
        said.append("dashed: equal size")
    if is_pattern(searched).any():
        said.append("□ N:M, set aside where it would cover a point")
    if charted is not None:
        said.append(diamonds(charted))
    shaded = "interpolates" if charted is None else "and contours: Gaussian process"
    several = not about.several_objectives and searched["budget"].nunique() > 1
    best = "on the Pareto front" if about.several_objectives else "the best of a map"
    said.append(f"★ {'the best of a budget' if several else best}")
    return [*said, f"shading {shaded}"] if is_shaded else said


def _lines(phrases: list[str], width: int) -> str:
    """Sets phrases one after the other, in lines of at most so many characters."""
    lines = [phrases[0]]
    for phrase in phrases[1:]:
        longer = f"{lines[-1]}  ·  {phrase}"
        lines = [*lines[:-1], longer] if len(longer) <= width else [*lines, phrase]
    return "\n".join(lines)
