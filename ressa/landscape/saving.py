"""The landscape as a file: a picture, the report's page with the map alone, or a table."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ressa.errors import SpecError, writing
from ressa.landscape import figures
from ressa.landscape.charted import charts, map_table
from ressa.landscape.lines import line_table
from ressa.landscape.picture import draw
from ressa.landscape.together import results_of
from ressa.store import SweepStore, parquet_bytes

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

_SUFFIXES = (".png", ".svg", ".pdf")


def plot(
    sweeps: Sequence[SweepStore],
    path: str | Path,
    *,
    show: str = "map",
    by: str | None = None,
    trials: Sequence[str] = (),
    margin: float = 1.0,
) -> None:
    """Draws one or several sweeps into a file, several as one map.

    Args:
        sweeps: what to draw: of one model, evaluation and recipe.
        path: ends in .png, .svg or .pdf; .html is the report's page with the map alone; .parquet
            has what would be drawn as rows.
        show: map; lines: scores along lines of equal size, and the best there; layers of a trial;
            curves of repair.
        by: of a map, an option of which each value gets maps of its own, such as repair.steps.
        trials: whose layers, or curves; by default those of the best.
        margin: in points: what lies less than this below the best is as good.

    Raises:
        SpecError: the file's name ends in none of these; or no trial chose such an option;
            or the sweeps differ in more than sparsities, seeds and `by`.
        NotFoundError: there is nothing to draw.
        StoreError: the file cannot be written.
    """
    check_shown(show, by, trials)
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".html":
        from ressa.landscape.report import gather_map, page, write_page

        write_page(path, page(gather_map(sweeps, margin=margin, by=by)))
        return
    if suffix == ".parquet":
        content = parquet_bytes(shown_rows(sweeps, show, by, trials, margin))
        with writing(path):
            path.write_bytes(content)
        return
    if suffix not in _SUFFIXES:
        raise SpecError(
            f"--out: {path.name!r} ends in none of {', '.join((*_SUFFIXES, '.html', '.parquet'))}."
        )
    import matplotlib

    # With dates and random names left out, an unchanged sweep draws an unchanged file. Names are no
    # formulae: two dollars in a folder's would be read as one.
    with matplotlib.rc_context({"svg.hashsalt": "ressa", "text.parse_math": False}):
        figure = _drawn(sweeps, show, by, trials, margin)
        with writing(path):
            figure.savefig(path, dpi=200, bbox_inches="tight", metadata=_undated(path))


def check_shown(show: str, by: str | None, trials: Sequence[str]) -> None:
    """Refuses an option whose values maps are asked of where no map is shown, and trials where one
    is.

    Raises:
        SpecError: it names the option.
    """
    if by is not None and show != "map":
        raise SpecError(
            f"--by {by} draws a map for each of its values, and --show {show} has no map. Leave "
            "one of them out."
        )
    if trials and show not in ("layers", "curves"):
        raise SpecError("--trial is of --show layers and --show curves; the others show them all.")


def shown_rows(
    sweeps: Sequence[SweepStore],
    show: str,
    by: str | None,
    trials: Sequence[str],
    margin: float,
    *,
    fitted: bool = True,
) -> "pandas.DataFrame":
    """Returns what `plot` would draw as rows; of a map with or without the fitted grid."""
    frame = results_of(sweeps, by=by)
    match show:
        case "lines":
            return line_table(sweeps, margin=margin)
        case "layers":
            return figures.layers_of(sweeps, frame, trials)
        case "curves":
            return figures.curves_of(sweeps, frame, trials)
    return map_table(frame, charts(sweeps, margin=margin) if fitted else {})


def _drawn(
    sweeps: Sequence[SweepStore], show: str, by: str | None, trials: Sequence[str], margin: float
) -> "Figure":
    frame = results_of(sweeps, by=by)
    match show:
        case "lines":
            return figures.draw_lines(frame, charts(sweeps, margin=margin))
        case "layers":
            return figures.draw_layers(sweeps, frame, trials)
        case "curves":
            return figures.draw_curves(sweeps, frame, trials)
    return draw(frame, charts(sweeps, margin=margin) if by is None else {}, by=by)


def _undated(path: Path) -> dict[str, None]:
    return {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix.lower(), {})
