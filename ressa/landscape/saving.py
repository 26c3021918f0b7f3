"""The landscape as a file: a picture, the report's page with the map alone, or a table."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ressa.errors import SpecError, StoreError
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
    margin: float = 1.0,
) -> None:
    """Draws one or several sweeps into a file, several as one map.

    Args:
        sweeps: what to draw: of one model, evaluation and recipe.
        path: ends in .png, .svg or .pdf; .html is the report's page with the map alone; .parquet
            has what would be drawn as rows.
        show: map; lines: scores along lines of equal size, and the best there; layers of the best
            trial; curves of repair.
        by: of a map, an option of which each value gets maps of its own, such as repair.steps.
        margin: in points: what lies less than this below the best is as good.

    Raises:
        SpecError: the file's name ends in none of these; or no trial chose such an option;
            or the sweeps differ in more than sparsities, seeds and `by`.
        NotFoundError: there is nothing to draw.
        StoreError: the file cannot be written.
    """
    check_shown(show, by)
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".html":
        from ressa.landscape.report import gather_map, page, write_page

        write_page(path, page(gather_map(sweeps, margin=margin, by=by)))
        return
    if suffix == ".parquet":
        content = parquet_bytes(_rows(sweeps, show, by, margin))
        _write(path, lambda: path.write_bytes(content))
        return
    if suffix not in _SUFFIXES:
        raise SpecError(
            f"--out: {path.name!r} ends in none of {', '.join((*_SUFFIXES, '.html', '.parquet'))}."
        )
    import matplotlib

    figure = _drawn(sweeps, show, by, margin)
    # With dates and random names left out, an unchanged sweep draws an unchanged file.
    with matplotlib.rc_context({"svg.hashsalt": "ressa"}):
        _write(
            path,
            lambda: figure.savefig(path, dpi=200, bbox_inches="tight", metadata=_undated(path)),
        )


def check_shown(show: str, by: str | None) -> None:
    """Refuses an option whose values maps are asked of, where no map is shown.

    Raises:
        SpecError: it names the option.
    """
    if by is not None and show != "map":
        raise SpecError(
            f"--by {by} draws a map for each of its values, and --show {show} has no map. Leave "
            "one of them out."
        )


def _write(path: Path, write: Callable[[], object]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write()
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error


def _rows(
    sweeps: Sequence[SweepStore], show: str, by: str | None, margin: float
) -> "pandas.DataFrame":
    """What is shown, as rows."""
    frame = results_of(sweeps, by=by)
    match show:
        case "lines":
            return line_table(sweeps, margin=margin)
        case "layers":
            return figures.layers_of(sweeps, frame)
        case "curves":
            return figures.curves_of(sweeps, frame)
    return map_table(frame, charts(sweeps, margin=margin))


def _drawn(sweeps: Sequence[SweepStore], show: str, by: str | None, margin: float) -> "Figure":
    frame = results_of(sweeps, by=by)
    match show:
        case "lines":
            return figures.draw_lines(frame, charts(sweeps, margin=margin))
        case "layers":
            return figures.draw_layers(sweeps, frame)
        case "curves":
            return figures.draw_curves(sweeps, frame)
    return draw(frame, charts(sweeps, margin=margin) if by is None else {}, by=by)


def _undated(path: Path) -> dict[str, None]:
    return {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix.lower(), {})
