"""Frames as tables in the terminal; a results table says of what its percentages are."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ressa.landscape.allocations import without_run
from ressa.landscape.fitting import GAP, Column, fitting, wrapped
from ressa.landscape.tables import About
from ressa.store import is_null

if TYPE_CHECKING:
    import pandas

NOTHING = "–"


@dataclass(frozen=True, slots=True)
class _Column:
    """One column of a results table: its heading in two lines, and what fills it."""

    heading: str
    cell: Callable[[dict[str, Any]], str]
    name: str
    """What the column is called by --where, --sort and --columns."""
    least: int = 0
    """Where room is short, the highest goes first; 0 stays."""

    @property
    def short(self) -> str:
        """Its heading where it stands alone."""
        group = self.name.partition("_")[0] if self.name.startswith(("blank", "recovery")) else ""
        return f"{group} {self.heading.split(chr(10))[-1]}".strip()


def render_table(frame: "pandas.DataFrame", width: int = 100) -> Group:
    """Lays a `results_table` out; scores in percent, sparsities as fractions.

    Columns in which no row has anything are left out.

    Args:
        frame: what `results_table` returned.
        width: columns of the terminal; what it has no room for is left out, and that is said.
    """
    about: About = frame.attrs["about"]
    rows = frame.to_dict("records")
    shown, left_out, fits = _fitting(rows, width, chosen=bool((frame["options"] != "").any()))
    title = Text(_title(about), style="bold")
    caption = Text(_caption(about, frame, shown, left_out), style="dim")
    if not fits:
        cells = [Column(one.short, [one.cell(row) for row in rows], True) for one in shown]
        return Group(title, _upright(cells, width), caption)
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=0,
    )
    for column in shown:
        left = column.heading in (_TRIAL, _ALSO)
        table.add_column(
            column.heading,
            justify="left" if left else "right",
            vertical="bottom",
            no_wrap=column.heading != _ALSO,
            overflow="fold",
        )
    roles = [*frame["role"], None]
    for row, role, next_role in zip(rows, roles, roles[1:], strict=False):
        style = "bold" if row["best"] else "red" if row["state"] == "failed" else ""
        ends = role == "baseline" and next_role not in ("baseline", None)
        table.add_row(*(Text(one.cell(row)) for one in shown), style=style, end_section=ends)
    return Group(title, table, caption)


_TRIAL, _ALSO = "\ntrial", "\nalso"
_ALSO_WIDTH = 24  # it may take more lines
_COLUMNS = (
    _Column(_TRIAL, lambda row: _name(row), "trial"),
    _Column(
        "sparsity\nvision", lambda row: target(row["vision"], row["vision_sparsity"]), "vision"
    ),
    _Column(
        "\nlanguage", lambda row: target(row["language"], row["language_sparsity"]), "language"
    ),
    _Column("\nboth", lambda row: fraction(row["sparsity"]), "sparsity", least=1),
    _Column("\nwhole", lambda row: fraction(row["whole"]), "whole", least=8),
    _Column("score\nbefore", lambda row: percent(row["pruned"]), "pruned"),
    _Column("\nafter", lambda row: percent(row["repaired"]), "repaired"),
    _Column("\n±", lambda row: percent(row["standard_error"]), "standard_error", least=2),
    _Column("blank\nbefore", lambda row: percent(row["blank_pruned"]), "blank_pruned", least=4),
    _Column("\nafter", lambda row: percent(row["blank_repaired"]), "blank_repaired", least=5),
    _Column("recovery\nof dense", lambda row: fraction(row["recovery"], 2), "recovery", least=3),
    _Column(
        "\nof d.-r.",
        lambda row: fraction(row["recovery_repaired"], 2),
        "recovery_repaired",
        least=7,
    ),
    _Column("\ns", lambda row: fraction(row["seconds"], 0), "seconds", least=6),
)
_CHOSEN = _Column(_ALSO, lambda row: str(row["options"]), "options")


def _fitting(
    rows: list[dict[str, Any]], width: int, *, chosen: bool
) -> tuple[list[_Column], list[_Column], bool]:
    """Returns the columns that say something and have room, those that lack room, and whether the
    first do have it.
    """
    columns = [*_COLUMNS, *([_CHOSEN] if chosen else [])]
    cells = {column: [column.cell(row) for row in rows] for column in columns}
    shown = [column for column in columns if {*cells[column]} != {NOTHING}]
    widths = {
        column: max(map(len, (*column.heading.split("\n"), *cells[column]))) for column in shown
    }
    if chosen:
        widths[_CHOSEN] = min(widths[_CHOSEN], _ALSO_WIDTH)
    left_out = []
    for column in sorted(shown, key=lambda one: -one.least):
        if not column.least or sum(widths[one] + 1 for one in shown) - 1 <= width:
            break
        shown.remove(column)
        left_out.append(column)
    return shown, left_out, sum(widths[one] + 1 for one in shown) - 1 <= width


def _name(row: dict[str, Any]) -> str:
    """The trial, and how it ended unless it simply succeeded."""
    if row["state"] != "succeeded":
        return f"{row['trial']} {row['state']}"
    return f"{row['trial']} ★" if row["best"] else str(row["trial"])


def _title(about: About) -> str:
    questions = f"{about.items:,} questions" if about.items else None
    parts = (about.sweep, about.model, about.methods, about.metric, questions)
    return " · ".join(part for part in parts if part)


def _caption(
    about: About, frame: "pandas.DataFrame", shown: list[_Column], left_out: list[_Column]
) -> str:
    """What the columns are of: which floors a score stands on, which weights a sparsity counts."""
    lines, there = [], {column.name for column in shown}
    known = [f"{name} {percent(score)}" for name, score in about.yardsticks.items()]
    starred = frame[frame["best"]]
    if len(starred):
        lines.append(_star(about, starred))
    after = " and after" if "repaired" in there else ""
    lines.append(f"score: in %, before{after} repair, ± one standard error")
    if known:
        lines.append(f"beside them: {'; '.join(known)}")
    if about.vision_prunable and about.language_prunable:
        lines.append(
            f"sparsity: zeros; both: of {about.vision_prunable:,} prunable weights of vision "
            f"and {about.language_prunable:,} of language"
        )
    if about.whole_parameters and "whole" in there:
        lines.append(f"  whole: of all {about.whole_parameters:,} parameters of the model")
    if there & {"blank_pruned", "blank_repaired"}:
        lines.append("blank: the same on blank images, where there is nothing to see")
    if there & {"recovery", "recovery_repaired"}:
        also = "; d.-r.: dense-repaired for dense" if "recovery_repaired" in there else ""
        lines.append(
            f"recovery: (repaired − pruned) / (dense − pruned), {NOTHING} where pruning lost less "
            f"than two standard errors{also}"
        )
    if left_out:
        names = ", ".join(column.short for column in left_out)
        lines.append(f"no room here for {names}: -o csv has every column")
    others = ", ".join(
        f"{column.short} = {column.name}" for column in shown if column.short != column.name
    )
    lines.append(f"for --where, --sort and --columns: {others}")
    return "\n".join(lines)


def _star(about: About, starred: "pandas.DataFrame") -> str:
    """What a star marks."""
    if about.several_objectives:
        return "★ on the Pareto front: none is as good or better in every objective"
    of_runs = without_run(starred["options"]) != starred["options"].astype(str)
    each = " of each budget" if starred["budget"].nunique() > 1 else ""
    runs = ", by the mean over its runs" if of_runs.any() else ""
    return f"★ the best allocation{each}{runs}"


def plain_table(
    frame: "pandas.DataFrame", *, headings: bool = True, width: int | None = None
) -> Table:
    """Lays any frame out as it is: numbers to the right, gaps as –, times in UTC.

    Where it has no room, times go without year and seconds, headings and text are wrapped between
    words and their parts; where that is not enough, each row becomes a block of its own, a line a
    column.

    Args:
        frame: what to lay out.
        headings: whether it has any.
        width: columns of the terminal; None: as many as are needed.
    """
    columns = _columns(frame, headings=headings)
    widths = [column.widest for column in columns]
    if width is not None:
        if sum(column.widest + GAP for column in columns) - GAP > width:
            columns = _columns(frame, headings=headings, times=_SHORT_TIME)
        fitted = fitting(columns, width)
        if fitted is None and headings and len(columns) > 1:
            return _upright(_columns(frame, headings=True), width)
        widths = fitted or [column.least for column in columns]
    table = _simple(headings=headings)
    for column, room in zip(columns, widths, strict=True):
        table.add_column(
            wrapped(column.heading, room),
            justify="right" if column.is_number else "left",
            vertical="top",
            overflow="fold",
            no_wrap=True,
            width=room,
        )
    for row in zip(*(column.cells for column in columns), strict=True):
        cells = zip(row, widths, strict=True)
        table.add_row(*(Text(wrapped(cell, room)) for cell, room in cells))
    return table


_NUMBER = re.compile(rf"(?:[-+]?[\d.,:]+(?: %)?|{NOTHING}|)$")
_TIME, _SHORT_TIME = "%Y-%m-%d %H:%M:%S", "%m-%d %H:%M"


def _columns(frame: "pandas.DataFrame", *, headings: bool, times: str = _TIME) -> list[Column]:
    """The columns of a frame as text; where all of one are times, its heading says UTC."""
    import pandas as pd

    found = []
    for name, (_, values) in zip(frame.columns, frame.items(), strict=True):
        is_time = headings and pd.api.types.is_datetime64_any_dtype(values.dtype)
        cells = [
            value.strftime(times) if is_time and not is_null(value) else _plain(value)
            for value in values
        ]
        is_number = pd.api.types.is_numeric_dtype(values.dtype) or (
            bool(cells) and all(map(_NUMBER.match, cells))
        )
        heading = f"{name} (UTC)" if is_time else str(name)
        found.append(Column(heading if headings else "", cells, is_number or is_time))
    return found


def _upright(columns: list[Column], width: int) -> Table:
    names = [column.heading for column in columns]
    room = max(width - max(map(len, names)) - 1, 1)
    table = _simple(headings=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for row in zip(*(column.cells for column in columns), strict=True):
        for name, cell in zip(names, row, strict=True):
            table.add_row(name, Text(wrapped(cell, room)), end_section=name == names[-1])
    return table


def _simple(*, headings: bool) -> Table:
    return Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_header=headings,
        show_edge=False,
        pad_edge=False,
    )


def json_rows(frame: "pandas.DataFrame") -> str:
    """Writes any frame as a JSON list with one object a line; what JSON lacks is null or text."""
    return "[" + ",\n ".join(_objects(frame)) + "]"


def json_lines(frame: "pandas.DataFrame") -> str:
    """Writes any frame as `json_rows` does, but each object as a document of its own."""
    return "".join(f"{row}\n" for row in _objects(frame))


def _objects(frame: "pandas.DataFrame") -> list[str]:
    # Not by pandas: it cuts floats, refuses some frames, and dies of an interval.
    return [json.dumps(_jsonable(row), ensure_ascii=False) for row in frame.to_dict("records")]


_IN_LATEX = str.maketrans(
    {chr(code): None for code in (*range(9), 11, 12, *range(14, 32), 127)}  # never to be read
    | {mark: rf"\{mark}" for mark in "&%$#_{}"}
    | {mark: rf"{{{mark}}}" for mark in "[*"}  # at the start of a row an option of the one before
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
)


def latex_table(frame: "pandas.DataFrame") -> str:
    """Writes any frame as a LaTeX table by booktabs: numbers to the right, gaps as –."""
    import pandas as pd

    numeric = [pd.api.types.is_numeric_dtype(kind) for kind in frame.dtypes]
    rows = [frame.columns, *frame.itertuples(index=False, name=None)]
    head, *body = (
        " & ".join(_plain(value).translate(_IN_LATEX) for value in row) + r" \\" for row in rows
    )
    return "\n".join(
        (
            rf"\begin{{tabular}}{{{''.join('r' if is_number else 'l' for is_number in numeric)}}}",
            *(r"\toprule", head, r"\midrule", *body, r"\bottomrule"),
            r"\end{tabular}",
            "",
        )
    )


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if hasattr(value, "tolist"):  # numpy's arrays and numbers
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if is_null(value) or (isinstance(value, float) and math.isinf(value)):
        return None
    if isinstance(value, str | int | float):
        return value
    if isinstance(value, bytes):
        return value.hex()
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _plain(value: Any) -> str:
    if is_null(value):
        return NOTHING
    if hasattr(value, "strftime"):
        return str(value.strftime("%Y-%m-%d %H:%M:%S %Z")).strip()
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def percent(value: float | None) -> str:
    """Returns a fraction as percent with one decimal, without the sign: 0.9517 is 95.2.

    What would read 0.0 and is not 0, such as a likelihood, has two digits: 0.0000012 is 0.00012.
    """
    if value is None or is_null(value):
        return NOTHING
    return f"{100 * value:.2g}" if 0 < abs(value) < 0.0005 else f"{100 * value:.1f}"


def fraction(value: float | None, digits: int = 3) -> str:
    """Returns a fraction with a fixed number of decimals."""
    return NOTHING if value is None or is_null(value) else f"{value:.{digits}f}"


def target(text: Any, sparsity: float) -> str:
    """Returns what a tower was asked for, short enough for a table: 13/18 is 0.722.

    Where nothing was asked of it alone (`group: all`), what it came to.
    """
    if not isinstance(text, str):
        return fraction(sparsity)
    return text if len(text) <= 5 and "/" not in text else fraction(sparsity)
