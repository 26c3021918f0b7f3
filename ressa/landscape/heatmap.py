"""The landscape in the terminal: vision sparsity across, language sparsity upwards.

Every cell holds its score as a number, so the map reads without colour, and is coloured by it.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.style import Style
from rich.text import Text

from ressa.landscape.allocations import named_pattern, of_search
from ressa.landscape.best import best_trials, over_runs
from ressa.landscape.points import colour_range
from ressa.landscape.render import percent, target
from ressa.landscape.tables import STATES, About, State, states_of

if TYPE_CHECKING:
    import pandas

_MOST_VALUES = 8
_WIDTHS = (0.1, 0.05)
_NEAR = 1e-3
_CELL = 6
# Nine steps of viridis: its lightness rises evenly, so the order survives in grey.
_COLOURS = (
    (68, 1, 84),
    (71, 45, 123),
    (59, 82, 139),
    (44, 114, 142),
    (33, 145, 140),
    (40, 174, 128),
    (94, 201, 98),
    (173, 220, 48),
    (253, 231, 37),
)


@dataclass(frozen=True, slots=True)
class _Level:
    """One row or column of the map: a pattern, a sparsity, or a range of sparsities."""

    low: float
    high: float
    label: str
    pattern: str | None = None

    def holds(self, sparsity: float, pattern: str | None) -> bool:
        return pattern == self.pattern and self.low <= sparsity <= self.high


def heatmap(frame: "pandas.DataFrame", *, scale: tuple[float, float] | None = None) -> "Heatmap":
    """Draws a `results_table` as one map before repair and one after, side by side if they fit.

    Args:
        frame: the trials.
        scale: the scores at which colours begin and end; None: those of the frame.
    """
    return Heatmap(frame, scale or colour_range(frame))


class Heatmap:
    """A map that rich can print. Made by `heatmap`."""

    def __init__(self, frame: "pandas.DataFrame", scale: tuple[float, float]) -> None:
        self.about: About = frame.attrs["about"]
        searched = over_runs(of_search(frame, scored="score"))
        self._points: list[dict[str, Any]] = searched.to_dict("records")
        self._rows = _levels(self._points, "language")[::-1]
        self._margin = max((len(level.label) for level in self._rows), default=0)
        self._columns: list[_Level] = []
        self._range = scale
        self._states = states_of(searched)
        several = self.about.several_objectives
        self._best = {
            state: best_trials(searched, state, several_objectives=several)
            for state in self._states
        }

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if not self._points:
            yield Text("no map yet: no trial of the search has succeeded", style="dim")
            return
        room = (options.max_width - self._margin - 1) // _CELL
        self._columns = _levels(self._points, "vision", most=room)
        maps = [list(self._map(state)) for state in self._states]
        gap = 3
        width = sum(max(line.cell_len for line in one) for one in maps) + gap * (len(maps) - 1)
        yield Text()
        if width <= options.max_width:
            for lines in zip(*maps, strict=True):
                row = Text(no_wrap=True)
                for at, line in enumerate(lines):
                    if at:
                        row.append(" " * gap)
                    row.append_text(line)
                yield row
        else:
            for one in maps:
                yield from (*one, Text())
        yield from self._legend()

    def _map(self, state: State) -> Iterator[Text]:
        """One map as lines of equal width."""
        margin = self._margin
        title, axes = f"{STATES[state]} (%)", "language ↑  vision →"
        width = max(margin + 1 + _CELL * len(self._columns), len(title), len(axes))
        yield Text(title.center(width), style="bold")
        for at, row in enumerate(self._rows):
            line = Text(f"{row.label:>{margin}} ", style="dim" if at % 2 else "")
            for column in self._columns:
                line.append_text(self._cell(row, column, state))
            line.pad_right(width - line.cell_len)
            yield line
        # A range takes two lines: side by side they would run into each other.
        parts = [level.label.partition("–") for level in self._columns]
        for texts in ([low for low, _, _ in parts], [dash + high for _, dash, high in parts]):
            if any(texts):
                labels = "".join(label.center(_CELL) for label in texts)
                yield Text(f"{'':{margin}} {labels}".ljust(width))
        yield Text(axes.center(width), style="dim")

    def _cell(self, row: _Level, column: _Level, state: State) -> Text:
        here = [
            point
            for point in self._points
            if row.holds(point["language_sparsity"], named_pattern(point["language"]))
            and column.holds(point["vision_sparsity"], named_pattern(point["vision"]))
            and not math.isnan(point[state])
        ]
        if not here:
            return Text("·".center(_CELL), style="dim")
        # Of several trials in one cell, the one that the objective prefers, in both maps.
        point = max(here, key=lambda one: one["score"])
        number = percent(point[state])
        is_best = point["trial"] in self._best[state]
        text = f"★{number}" if is_best else number
        colour = _colour(self._share(point[state]))
        return Text(text.center(_CELL), style=_on(colour) + Style(bold=is_best))

    def _share(self, score: float) -> float:
        low, high = self._range
        return (score - low) / (high - low)

    def _legend(self) -> Iterator[Text]:
        low, high = self._range
        below = any(p[state] < low for p in self._points for state in self._states)
        scale = Text(f"\n{'≤ ' if below else ''}{percent(low)} ")
        for step in range(24):
            scale.append(" ", style=_on(_colour(step / 23)))
        scale.append(f" {percent(high)} %  {self.about.metric}")
        yield scale
        last, *before = [self._starred(state) for state in reversed(self._states)]
        if self.about.several_objectives:
            top = max(last, key=lambda point: point["score"])
            yield Text(f"★ the Pareto front: {len(last)}, such as {_describe(top)}", style="bold")
            return
        for top in last:
            line, name = self._points, ""
            if not math.isnan(top["budget"]):
                line = [point for point in line if point["budget"] == top["budget"]]
                name = f"budget {top['budget']:g}: "
            yield Text(f"★ {name}{_describe(top)}, the best of {len(line)}", style="bold")
            for other in before[0] if before else []:
                same = other["budget"] == top["budget"] or not name
                if same and other["trial"] != top["trial"]:
                    yield Text(f"  before repair: {_describe(other, 'pruned')}")

    def _starred(self, state: State) -> list[dict[str, Any]]:
        """The best of each line, budgets rising."""
        found = [point for point in self._points if point["trial"] in self._best[state]]
        return sorted(found, key=lambda point: (point["budget"], -point["score"]))


def _describe(point: dict[str, Any], state: str | None = None) -> str:
    error = point["standard_error" if state is None else f"{state}_standard_error"]
    spread = "" if math.isnan(error) else f" ± {percent(error)}"
    vision = target(point["vision"], point["vision_sparsity"])
    language = target(point["language"], point["language_sparsity"])
    runs = f" over {point['runs']} runs" if point["runs"] > 1 else ""
    score = f"{percent(point['score' if state is None else state])}{spread}{runs}"
    return f"{point['trial']}  vision {vision} language {language}  {score}"


def _asked(point: dict[str, Any], tower: str) -> Any:
    """What was asked of a tower; where both were asked for one sparsity, what it came to."""
    return point[tower] if isinstance(point[tower], str) else point[f"{tower}_sparsity"]


def _levels(
    points: Sequence[dict[str, Any]], tower: str, *, most: int | None = None
) -> list[_Level]:
    """Returns an axis' levels, rising: each value if they are few, else ranges of one width.

    Ranges are as wide as they can be without two trials in one cell, but for what there is room
    for; a budget's solved sparsities lie on no grid.

    Args:
        points: the trials.
        tower: whose axis.
        most: how many levels there is room for; None: any.
    """
    patterns = {p[tower]: p[f"{tower}_sparsity"] for p in points if named_pattern(p[tower])}
    free = [point for point in points if not named_pattern(point[tower])]
    values = sorted({round(point[f"{tower}_sparsity"], 6) for point in free})
    levels = [_Level(sparsity, sparsity, str(name), name) for name, sparsity in patterns.items()]
    if len(values) <= _MOST_VALUES:
        levels += [_Level(value - 1e-6, value + 1e-6, f"{value:.3g}") for value in values]
    else:
        other = "language" if tower == "vision" else "vision"
        places = [(point[f"{tower}_sparsity"], _asked(point, other)) for point in free]
        width = next((w for w in _WIDTHS if not _collide(places, w)), _WIDTHS[0])
        first, last = _bin(values[0], width), _bin(values[-1], width)
        if most is not None and len(levels) + last - first >= most:
            width = _WIDTHS[0]
            first, last = _bin(values[0], width), _bin(values[-1], width)
        levels += [_range(at, width) for at in range(first, last + 1)]
    return sorted(levels, key=lambda level: (level.low, level.pattern or ""))


def _collide(places: list[tuple[float, Any]], width: float) -> bool:
    """Whether two different sparsities of one row or column would share a cell."""
    exact = {(round(sparsity, 6), other) for sparsity, other in places}
    return len({(_bin(sparsity, width), other) for sparsity, other in exact}) < len(exact)


def _bin(sparsity: float, width: float) -> int:
    # Counted in whole weights, 0.7 may be 0.69999; 1.0 belongs to the last range, as 0.95 does.
    return min(math.floor(sparsity / width + _NEAR), round(1 / width) - 1)


def _range(at: int, width: float) -> _Level:
    low, high = at * width, (at + 1) * width
    last = at == round(1 / width) - 1
    top = 1.0 if last else high - 1.001 * _NEAR * width
    return _Level(low - _NEAR * width, top, f"{low:.3g}–{high:.3g}")


def _colour(share: float) -> tuple[int, int, int]:
    """Returns the colour of a place on the scale: 0 dark, 1 bright."""
    at = min(max(share, 0.0), 1.0) * (len(_COLOURS) - 1)
    low = min(int(at), len(_COLOURS) - 2)
    one, other = _COLOURS[low], _COLOURS[low + 1]
    red, green, blue = (round(a + (b - a) * (at - low)) for a, b in zip(one, other, strict=True))
    return red, green, blue


def _on(colour: tuple[int, int, int]) -> Style:
    """Returns a style that is readable on a colour."""
    red, green, blue = colour
    bright = 0.299 * red + 0.587 * green + 0.114 * blue > 128
    return Style(
        color="#000000" if bright else "#ffffff", bgcolor=f"#{red:02x}{green:02x}{blue:02x}"
    )
