"""Pictures beside the map: scores along lines of equal size, errors by layer, curves of repair.

Colours are Okabe and Ito's, which the colour-blind tell apart; dashes and marks do so in grey.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ressa.errors import NotFoundError, SpecError, did_you_mean
from ressa.landscape.allocations import is_pattern, of_search, without_run
from ressa.landscape.best import ranked
from ressa.landscape.charted import KINDS, Charted
from ressa.landscape.picture import (
    ROOM,
    diamonds,
    draw_bests,
    prepare,
    span_of,
    title_of,
)
from ressa.landscape.tables import STATES, states_of
from ressa.landscape.together import owner
from ressa.store import SweepStore

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

_HUES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5a5a5a")
_DASHES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (7, 2)), (0, (1, 1)), (0, (4, 1, 1, 1, 1, 1)))
_MARKS = "osD^vP*"
_LEAST = 3  # allocations that make a line
_CURVES = 5


def draw_lines(frame: "pandas.DataFrame", charts: Mapping[str, Charted]) -> "Figure":
    """Draws scores along lines by the vision tower's sparsity, as the paper's figure does.

    A line is a budget, or without budgets an equal sum of sparsities. Below, where there is a
    surrogate, the lines along which each kind of size stays equal, with the best of each.

    Raises:
        NotFoundError: no line has three allocations.
    """
    from matplotlib.figure import Figure

    states, lines = states_of(frame), [*lines_of(frame)]
    if not lines:
        raise NotFoundError(
            f"no line of {frame.attrs['about'].sweep}, of one budget or one sum of sparsities, has "
            f"{_LEAST} allocations."
        )
    chart = charts.get(states[-1])
    figure = Figure(figsize=(11.6, 8.8 if chart else 5.4), layout="constrained")
    heights = [1.5, 1.0] if chart else [1.0]
    above, *below = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    panels = above.subplots(1, len(states), sharex=True, squeeze=False)[0]
    for axes, state in zip(panels, states, strict=True):
        axes.set_title(STATES[state], loc="left")
        axes.set(xlabel="vision sparsity", ylabel=f"{frame.attrs['about'].metric} (%)")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        for at, (name, rows) in enumerate(lines):
            axes.errorbar(
                rows["vision"],
                100 * rows[state],
                yerr=100 * rows[f"{state}_error"],
                label=name,
                color=_HUES[at],
                linestyle=_DASHES[at],
                marker=_MARKS[at],
                markersize=5,
                capsize=2,
                linewidth=1.5,
            )
    panels[0].legend(fontsize=8)
    if chart is not None:
        kinds = [kind for kind in KINDS if (chart.bests["line"] == kind).any()]
        places = (
            of_search(frame, scored="score")[["vision_sparsity", "language_sparsity"]]
            .drop_duplicates()
            .to_numpy(float)
            .T
        )
        maps = below[0].subplots(1, len(kinds), sharey=True, squeeze=False)[0]
        for axes, kind in zip(maps, kinds, strict=True):
            prepare(axes, "", span_of(frame, ROOM))
            axes.set_title(KINDS[kind], loc="left", fontsize=10)
            axes.plot(*places, ".", color="#9a9a9a", markersize=2.5, zorder=1)
            draw_bests(axes, chart, kind)
        maps[0].set_ylabel("language sparsity")
    figure.suptitle(title_of(frame), x=0.01, ha="left", fontsize=12, fontweight="bold")
    said = "bars: standard deviation over runs, or with one run ± one standard error"
    if chart is not None:
        said += f"\nbelow: {diamonds(chart, [*KINDS])}"
    figure.get_layout_engine().set(h_pad=0.1)  # type: ignore[union-attr, call-arg]
    figure.supxlabel(said, x=0.01, ha="left", fontsize=8, color="#555555")
    return figure


def lines_of(frame: "pandas.DataFrame") -> "Iterator[tuple[str, pandas.DataFrame]]":
    """Yields the lines of a `results_table` with most allocations, rising, each with its name.

    Rows are allocations by vision sparsity: means over runs as fractions, with an error each.
    """
    import pandas as pd

    scored = of_search(frame, scored="score")
    if scored.empty:
        return
    sums = (scored["vision_sparsity"] + scored["language_sparsity"]).round(3)
    has_budgets = bool(scored["budget"].notna().any())
    named = scored.assign(
        line=scored["budget"] if has_budgets else sums,
        rest=without_run(scored["options"]),
        regime=is_pattern(scored).map({True: "N:M", False: ""}),
        place=scored["vision_sparsity"].round(3),
    )
    found = []
    for (line, regime, rest), rows in named.groupby(["line", "regime", "rest"]):
        places = rows.groupby("place")
        made = {"vision": places["vision_sparsity"].mean()}
        for state in STATES:
            spread = places[state].std().fillna(places[f"{state}_standard_error"].mean())
            made |= {state: places[state].mean(), f"{state}_error": spread}
        if len(places) >= _LEAST:
            size = f"{100 * line:g} %"
            name = f"budget {line:g}" if has_budgets else f"sum of {size}"
            table = pd.DataFrame(made).astype(float)
            found.append((" ".join(filter(None, (name, regime, rest))), line, table))
    most = sorted(found, key=lambda one: -len(one[2]))[: len(_HUES)]
    yield from ((name, table) for name, _, table in sorted(most, key=lambda one: one[:2][::-1]))


def layers_of(
    sweeps: Sequence[SweepStore], frame: "pandas.DataFrame", trials: Sequence[str] = ()
) -> "pandas.DataFrame":
    """Returns the layers of a trial, by default the best: sparsity and error, as fractions.

    Raises:
        NotFoundError: there are none, or no such trial.
        SpecError: several trials were named.
    """
    if len(trials) > 1:
        raise SpecError(f"the layers of one trial are shown, got {', '.join(trials)}.")
    (trial,) = _named(frame, trials) or _best(sweeps, frame, 1)
    columns = ["trial", "tower", "block", "name", "weights", "zeros", "sparsity", "output_error"]
    sweep, own = owner(sweeps, trial)
    read = [*columns, "rows", "columns"]
    read.remove("weights")
    layers = sweep.read("layers", columns=read, where={"trial": own}).to_pandas()
    if layers.empty:
        raise NotFoundError(f"{sweep.name} has no layers of {own}: nothing of it was pruned.")
    return layers.assign(trial=trial, weights=layers["rows"] * layers["columns"])[columns]


def curves_of(
    sweeps: Sequence[SweepStore], frame: "pandas.DataFrame", trials: Sequence[str]
) -> "pandas.DataFrame":
    """Returns the loss over the steps of repair, by default of the dense model and the best five.

    Raises:
        NotFoundError: there is no curve of them, or no such trial.
    """
    import pandas as pd

    wanted = _named(frame, trials) or ["dense-repaired", *_best(sweeps, frame, _CURVES)]
    columns = ["trial", "step", "loss"]
    curves = []
    for trial in wanted:
        sweep, own = owner(sweeps, trial)
        found = sweep.read("curves", columns=columns, where={"trial": own}).to_pandas()
        curves.append(found.assign(trial=trial))
    joined = pd.concat(curves)
    if joined.empty:
        raise NotFoundError(f"{_names(sweeps)} has no curves of repair of {', '.join(wanted)}.")
    return joined.reset_index(drop=True)


def _named(frame: "pandas.DataFrame", trials: Sequence[str]) -> list[str]:
    """Checks the names of trials that were asked for; those of several sweeps are SWEEP/TRIAL."""
    known = frame["trial"].tolist()
    for trial in trials:
        if trial not in known:
            about = frame.attrs["about"].sweep
            raise NotFoundError(f"{about} has no trial {trial!r}.{did_you_mean(trial, known)}")
    return list(dict.fromkeys(trials))


def split_of(row: Mapping[str, Any]) -> str:
    """A row of a `results_table` in short: vision and language sparsity in percent, and options."""
    if row["role"] == "baseline":
        return ""
    split = f"{100 * row['vision_sparsity']:.0f}:{100 * row['language_sparsity']:.0f}"
    return f"{split} {row['options']}".strip()


def draw_layers(
    sweeps: Sequence[SweepStore], frame: "pandas.DataFrame", trials: Sequence[str]
) -> "Figure":
    """Draws what pruning does to each layer of a trial: its error, or else its sparsity."""
    from matplotlib.figure import Figure

    layers = layers_of(sweeps, frame, trials)
    trial = layers["trial"].iloc[0]
    figure = Figure(figsize=(11.6, 6.4), layout="constrained")
    for axes, tower in zip(figure.subplots(2, 1, sharey=True), ("vision", "language"), strict=True):
        own = layers[layers["tower"] == tower].reset_index(drop=True)
        knows = bool(own["output_error"].notna().any())
        values = 100 * own["output_error" if knows else "sparsity"].astype(float)
        blocks = own["block"].drop_duplicates().tolist()
        odd = own["block"].map(blocks.index) % 2
        axes.bar(own.index, values, color=odd.map({0: _HUES[0], 1: _HUES[5]}).tolist(), width=0.8)
        middles = own.index.to_series().groupby(own["block"]).mean()
        axes.set_xticks(middles.tolist(), [f"block {block}" for block in middles.index])
        said = "share of its output that pruning loses" if knows else "sparsity"
        axes.set_title(f"{tower}: {said}, layer by layer (%)", loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    row = frame[frame["trial"] == trial].iloc[0]
    where = f"vision {row['vision_sparsity']:.3f}, language {row['language_sparsity']:.3f}"
    figure.suptitle(
        f"{title_of(frame)}  ·  {trial}, {where}", x=0.01, ha="left", fontsize=12, fontweight="bold"
    )
    return figure


def draw_curves(
    sweeps: Sequence[SweepStore], frame: "pandas.DataFrame", trials: Sequence[str]
) -> "Figure":
    """Draws the loss over the steps of repair, by default of the dense model and the best."""
    from matplotlib.figure import Figure

    curves = curves_of(sweeps, frame, trials)
    figure = Figure(figsize=(9, 5.4), layout="constrained")
    axes = figure.subplots()
    rows = frame.set_index("trial")
    for at, (trial, own) in enumerate(curves.groupby("trial", sort=False)):
        row = rows.loc[trial]
        score = f"{100 * row['score']:.1f} %"
        name = ", ".join(filter(None, (str(trial), split_of(row), score)))
        style = {"color": _HUES[at % len(_HUES)], "linestyle": _DASHES[at % len(_DASHES)]}
        own = own.sort_values("step")
        axes.plot(own["step"], own["loss"], label=name, linewidth=1.3, **style)
    axes.set(xlabel="step of repair", ylabel="training loss", ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    figure.suptitle(title_of(frame), x=0.01, ha="left", fontsize=12, fontweight="bold")
    return figure


def _best(sweeps: Sequence[SweepStore], frame: "pandas.DataFrame", count: int) -> list[str]:
    found = ranked(frame[frame["state"] == "succeeded"])
    if not found:
        raise NotFoundError(f"no trial of {_names(sweeps)} has succeeded yet.")
    return found[:count]


def _names(sweeps: Sequence[SweepStore]) -> str:
    return " and ".join(sweep.name for sweep in sweeps)
