"""The landscape as a file: a picture, the report's page with the map alone, or a table."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ressa.errors import SpecError, StoreError
from ressa.landscape import figures
from ressa.landscape.charted import charts, map_table
from ressa.landscape.lines import line_table
from ressa.landscape.picture import draw
from ressa.landscape.tables import results_table
from ressa.store import SweepStore, parquet_bytes

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

_SUFFIXES = (".png", ".svg", ".pdf")


def plot(
    sweep: SweepStore,
    path: str | Path,
    *,
    show: str = "map",
    by: str | None = None,
    margin: float = 1.0,
) -> None:
    """Draws a sweep into a file.

    Args:
        sweep: what to draw.
        path: ends in .png, .svg or .pdf; .html is the report's page with the map alone; .parquet
            has what would be drawn as rows.
        show: map; lines: scores along lines of equal size, and the best there; layers of the best
            trial; curves of repair.
        by: of a map, an option of which each value gets maps of its own, such as repair.steps.
        margin: in points: what lies less than this below the best is as good.

    Raises:
        SpecError: the file's name ends in none of these; or no trial chose such an option.
        NotFoundError: there is nothing to draw.
        StoreError: the file cannot be written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".html":
        from ressa.landscape.report import gather, page, write_page

        write_page(path, page(gather(sweep, margin=margin), part="map"))
        return
    if suffix == ".parquet":
        content = parquet_bytes(_rows(sweep, show, margin))
        _write(path, lambda: path.write_bytes(content))
        return
    if suffix not in _SUFFIXES:
        raise SpecError(
            f"--out: {path.name!r} ends in none of {', '.join((*_SUFFIXES, '.html', '.parquet'))}."
        )
    import matplotlib

    figure = _drawn(sweep, show, by, margin)
    # With dates and random names left out, an unchanged sweep draws an unchanged file.
    with matplotlib.rc_context({"svg.hashsalt": "ressa"}):
        _write(
            path,
            lambda: figure.savefig(path, dpi=200, bbox_inches="tight", metadata=_undated(path)),
        )


def _write(path: Path, write: Callable[[], object]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write()
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error


def _rows(sweep: SweepStore, show: str, margin: float) -> "pandas.DataFrame":
    """What is shown, as rows."""
    frame = results_table(sweep)
    match show:
        case "lines":
            return line_table([sweep], margin=margin)
        case "layers":
            return figures.layers_of(sweep, frame)
        case "curves":
            return figures.curves_of(sweep, frame)
    return map_table(frame, charts(sweep, margin=margin))


def _drawn(sweep: SweepStore, show: str, by: str | None, margin: float) -> "Figure":
    frame = results_table(sweep)
    match show:
        case "lines":
            return figures.draw_lines(frame, charts(sweep, margin=margin))
        case "layers":
            return figures.draw_layers(sweep, frame)
        case "curves":
            return figures.draw_curves(sweep, frame)
    return draw(frame, charts(sweep, margin=margin) if by is None else {}, by=by)


def _undated(path: Path) -> dict[str, None]:
    return {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix.lower(), {})
