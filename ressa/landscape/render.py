"""Frames as tables in the terminal; a results table says of what its percentages are."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from ressa.landscape.tables import About

if TYPE_CHECKING:
    import pandas

NOTHING = "–"


def render_table(frame: "pandas.DataFrame") -> Table:
    """Lays a `results_table` out for 100 columns; scores in percent, sparsities as fractions."""
    about: About = frame.attrs["about"]
    table = Table(
        title=_title(about),
        caption=_caption(about),
        title_justify="left",
        caption_justify="left",
        title_style="bold",
        caption_style="dim",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=0,
    )
    shown = _columns(chosen=bool((frame["options"] != "").any()))
    for heading, _ in shown:
        left = heading in (_TRIAL, _ALSO)
        table.add_column(
            heading,
            justify="left" if left else "right",
            vertical="bottom",
            no_wrap=heading != _ALSO,
            overflow="fold",
        )
    roles = [*frame["role"], None]
    for row, role, next_role in zip(frame.to_dict("records"), roles, roles[1:], strict=False):
        style = "bold" if row["best"] else "red" if row["state"] == "failed" else ""
        ends = role == "baseline" and next_role == "search"
        table.add_row(*(Text(cell(row)) for _, cell in shown), style=style, end_section=ends)
    return table


_TRIAL, _ALSO = "\ntrial", "\nalso"


def _columns(*, chosen: bool) -> list[tuple[str, Callable[[dict[str, Any]], str]]]:
    """Headings with what fills them; what the search chose besides sparsities takes room."""
    columns: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        (_TRIAL, _name),
        ("sparsity\nvision", lambda row: target(row["vision"], row["vision_sparsity"])),
        ("\nlanguage", lambda row: target(row["language"], row["language_sparsity"])),
        ("\nboth", lambda row: fraction(row["sparsity"])),
        ("\nwhole", lambda row: fraction(row["whole"])),
        ("score\nbefore", lambda row: percent(row["pruned"])),
        ("\nafter", lambda row: percent(row["repaired"])),
        ("\n±", lambda row: percent(row["standard_error"])),
        ("blank\nbefore", lambda row: percent(row["blank_pruned"])),
        ("\nafter", lambda row: percent(row["blank_repaired"])),
        ("recovery\nof dense", lambda row: fraction(row["recovery"], 2)),
        ("\nof d.-r.", lambda row: fraction(row["recovery_repaired"], 2)),
        ("\ns", lambda row: NOTHING if _missing(row["seconds"]) else f"{row['seconds']:.0f}"),
    ]
    if not chosen:
        return columns
    left_out = ("\nwhole", "\nof d.-r.")
    kept = [column for column in columns if column[0] not in left_out]
    return [*kept, (_ALSO, lambda row: str(row["options"]))]


def _name(row: dict[str, Any]) -> str:
    """The trial, and how it ended unless it simply succeeded."""
    if row["state"] != "succeeded":
        return f"{row['trial']} {row['state']}"
    return f"{row['trial']} ★" if row["best"] else str(row["trial"])


def _title(about: About) -> Text:
    questions = f"{about.items:,} questions" if about.items else None
    parts = (about.sweep, about.model, about.methods, about.metric, questions)
    return Text(" · ".join(part for part in parts if part))


def _caption(about: About) -> Text:
    """What the columns are of: which floors a score stands on, which weights a sparsity counts."""
    lines = []
    scores = {
        "dense": about.dense,
        "dense-repaired": about.dense_repaired,
        "majority answer": about.floor_majority,
        "dense on blank images": about.floor_dense_blank,
    }
    known = [f"{name} {percent(value)}" for name, value in scores.items() if value is not None]
    lines.append("score: in %, before and after repair, ± one standard error")
    if known:
        lines.append(f"beside them: {', '.join(known)}")
    if about.vision_prunable and about.language_prunable:
        lines.append(
            f"sparsity: zeros; both: of {about.vision_prunable:,} prunable weights of vision "
            f"and {about.language_prunable:,} of language"
        )
    if about.whole_parameters:
        lines.append(f"  whole: of all {about.whole_parameters:,} parameters of the model")
    lines.append("blank: the same on blank images, where there is nothing to see")
    lines.append(
        "recovery: (repaired − pruned) / (dense − pruned); d.-r.: dense-repaired for dense;"
    )
    lines.append(f"  {NOTHING} where pruning lost less than two standard errors")
    return Text("\n".join(lines))


def plain_table(frame: "pandas.DataFrame") -> Table:
    """Lays any frame out as it is: numbers to the right, times to the second, gaps as –."""
    import pandas as pd

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for at, name in enumerate(frame.columns):
        numeric = pd.api.types.is_numeric_dtype(frame.dtypes.iloc[at])
        table.add_column(str(name), justify="right" if numeric else "left", overflow="fold")
    for row in frame.itertuples(index=False, name=None):
        table.add_row(*(Text(_plain(value)) for value in row))
    return table


def _plain(value: Any) -> str:
    if _missing(value):
        return NOTHING
    if hasattr(value, "strftime"):
        return str(value.strftime("%Y-%m-%d %H:%M:%S"))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def percent(value: float | None) -> str:
    """Returns a fraction as percent with one decimal, without the sign: 0.9517 is 95.2."""
    return NOTHING if value is None or _missing(value) else f"{100 * value:.1f}"


def fraction(value: float | None, digits: int = 3) -> str:
    """Returns a fraction with a fixed number of decimals."""
    return NOTHING if value is None or _missing(value) else f"{value:.{digits}f}"


def target(text: Any, sparsity: float) -> str:
    """Returns what a tower was asked for, short enough for a table: 98304/196608 is 0.500."""
    if not isinstance(text, str):
        return NOTHING
    return text if len(text) <= 5 else fraction(sparsity)


def _missing(value: Any) -> bool:
    import pandas as pd

    return value is None or (pd.api.types.is_scalar(value) and bool(pd.isna(value)))
