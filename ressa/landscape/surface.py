"""What is shaded between the points of a map: a surrogate's mean, or what interpolates them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ressa.landscape.allocations import is_pattern
from ressa.landscape.charted import Charted
from ressa.landscape.points import COLOURS, INK

if TYPE_CHECKING:
    import numpy as np
    import pandas
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from ressa.landscape.items import Floats

_ENOUGH, _ENOUGH_AREA = 6, 0.01  # points and their hull: with less, a background is invented


@dataclass(frozen=True, slots=True, kw_only=True)
class Surface:
    """Values on a grid, where trials surround it."""

    vision: "Floats"
    language: "Floats"
    values: "Floats"
    """[vision language]"""
    hull: "Floats"
    """[corner tower]: what the trials surround."""

    def inside(self) -> "NDArray[np.bool_]":
        """[vision language]: whether trials surround a place."""
        import numpy as np
        from matplotlib.path import Path as Outline

        grid = np.stack(np.meshgrid(self.vision, self.language, indexing="ij"), axis=-1)
        found = Outline(self.hull).contains_points(grid.reshape(-1, 2), radius=1e-9)
        return found.reshape(grid.shape[:2])


def surface_of(searched: "pandas.DataFrame", state: str, charted: Charted | None) -> Surface | None:
    """What is shaded between unstructured points, inside their hull; patterns are off it.

    The surrogate's mean; without one, what interpolates.
    """
    import numpy as np
    from scipy.interpolate import RBFInterpolator

    free = searched[~is_pattern(searched)]
    means = free.groupby(["vision_sparsity", "language_sparsity"])[state].mean().reset_index()
    places = means[["vision_sparsity", "language_sparsity"]].to_numpy(float)
    hull = hull_of(places)
    if hull is None:
        return None
    if charted is not None:
        chart = charted.chart
        return Surface(vision=chart.vision, language=chart.language, values=chart.mean, hull=hull)
    ticks = [np.linspace(*ends, 101) for ends in zip(hull.min(0), hull.max(0), strict=True)]
    asked = np.stack(np.meshgrid(*ticks, indexing="ij"), axis=-1).reshape(-1, 2)
    values = RBFInterpolator(places, means[state].to_numpy(float), kernel="linear")(asked)
    return Surface(vision=ticks[0], language=ticks[1], values=values.reshape(101, 101), hull=hull)


def hull_of(places: "Floats") -> "Floats | None":
    """Returns the corners of what points [point tower] surround; None if it is next to nothing."""
    from scipy.spatial import ConvexHull, QhullError

    if len(places) < _ENOUGH:
        return None
    try:
        hull = ConvexHull(places)
    except QhullError:
        return None
    # Nearly on one line there is no surface.
    return None if hull.volume < _ENOUGH_AREA else places[hull.vertices]


def draw_surface(
    axes: "Axes",
    surface: Surface,
    scale: tuple[float, float],
    *,
    colours: str = COLOURS,
    alpha: float = 0.45,
    contours: bool = True,
) -> Any:
    """Shades a surface, and draws its contours with their values in %."""
    import numpy as np
    from matplotlib.patches import Polygon
    from matplotlib.ticker import MaxNLocator

    limits: dict[str, Any] = {"xlim": axes.get_xlim(), "ylim": axes.get_ylim()}
    half = [float(ticks[1] - ticks[0]) / 2 for ticks in (surface.vision, surface.language)]
    image = axes.imshow(
        surface.values.T,
        cmap=colours,
        vmin=scale[0],
        vmax=scale[1],
        alpha=alpha,
        extent=(
            surface.vision[0] - half[0],
            surface.vision[-1] + half[0],
            surface.language[0] - half[1],
            surface.language[-1] + half[1],
        ),
        origin="lower",
        interpolation="bilinear",
        zorder=0,
    )
    image.set_clip_path(Polygon(surface.hull, closed=True, transform=axes.transData))
    axes.set(**limits)
    if not contours:
        return image
    values = np.ma.masked_where(~surface.inside(), surface.values)
    ticks = MaxNLocator(7).tick_values(*scale)
    levels = [float(tick) for tick in ticks if values.min() < tick < values.max()]
    if levels:
        drawn = axes.contour(
            surface.vision,
            surface.language,
            values.T,
            levels=levels,
            colors=INK,
            linewidths=0.6,
            alpha=0.55,
            zorder=1,
        )
        axes.clabel(drawn, fmt=lambda value: f"{100 * value:g}", fontsize=6.5)
    return image
