"""`python -m benchmarks.studies STORE`: the figures and tables of docs/studies.md, from sweeps.

STORE holds the sweeps of sweeps/studies. A value is a mean over three seeds of calibration and
repair, with their standard deviation.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas

from ressa.store import Store, open_store

FIGURE = Path(__file__).parent.parent / "docs" / "studies.png"
MODELS = ("blip2", "llava")
SEEDS = 3
STATES = {"score_pruned": "before repair", "score_repaired": "after repair"}
LINES = {
    "sum of 100 %": ("equal-sum-100", None),
    "sum of 120 %": ("equal-sum-120", None),
    "50 % of all": ("equal-size", "0.5"),
    "60 % of all": ("equal-size", "0.6"),
}


def main() -> None:
    """Prints the tables and draws the figure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.studies", description=__doc__)
    parser.add_argument("store", type=Path, help="where the sweeps of sweeps/studies lie")
    store = open_store(parser.parse_args().store)
    found = {(model, line): _line(store, model, *LINES[line]) for model in MODELS for line in LINES}
    for (model, line), values in found.items():
        print(f"\npocket-{model}, {line}\n")
        print(_table(values))
    _draw(found)


def _line(store: Store, model: str, name: str, budget: str | None) -> pandas.DataFrame:
    """Mean and spread over the seeds, by the vision tower's sparsity."""
    trials = store.sweep(f"{name}-{model}").trials()
    trials = trials[(trials["role"] == "search") & trials["state"].isin(["succeeded", "reused"])]
    if budget is not None:
        trials = trials[[json.loads(point)["budget"] == budget for point in trials["point"]]]
    rounded = trials.assign(vision=trials["vision_sparsity"].round(3))
    each = rounded.groupby("vision")
    assert (each.size() == SEEDS).all(), f"{name}-{model}: a seed is missing"
    values = 100 * each[list(STATES)].agg(["mean", "std"])
    values["language"] = each["language_sparsity"].mean()
    return values


def _table(values: pandas.DataFrame) -> str:
    def line(head: str, cells: Iterable[str]) -> str:
        return f"| {head} | {' | '.join(cells)} |"

    splits = [f"{100 * v:.0f}:{100 * row[('language', '')]:.0f}" for v, row in values.iterrows()]
    lines = [line("vision : language", splits), "|---" * (len(splits) + 1) + "|"]
    for state, words in STATES.items():
        pairs = zip(values[(state, "mean")], values[(state, "std")], strict=True)
        lines.append(line(words, (f"{mean:.1f} ± {spread:.1f}" for mean, spread in pairs)))
    return "\n".join(lines)


def _draw(found: dict[tuple[str, str], pandas.DataFrame]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.2), layout="constrained")
    panels: Any = figure.subplots(len(MODELS), 2, sharex=True, sharey="col")
    for row, model in zip(panels, MODELS, strict=True):
        for axes, (state, words) in zip(row, STATES.items(), strict=True):
            axes.set_title(f"pocket-{model}, {words}", loc="left", fontsize=10)
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(alpha=0.25)
            _draw_lines(axes, state, {line: found[model, line] for line in LINES})
    panels[0, 1].set_ylim(80, 100.5)
    for axes in panels[-1]:
        axes.set_xlabel("vision sparsity")
    for axes in panels[:, 0]:
        axes.set_ylabel("balanced accuracy (%)")
    panels[0, 0].legend(fontsize=8, loc="lower center")
    figure.supxlabel(
        "Mean ± standard deviation over three seeds; ring: equal split. Right: cut off at 80 %.",
        x=0.01, ha="left", fontsize=8,
    )  # fmt: skip
    figure.savefig(FIGURE, dpi=120, metadata={"Software": None})


def _draw_lines(axes: Any, state: str, lines: dict[str, pandas.DataFrame]) -> None:
    colours: Sequence[str] = ("#e08214", "#b35806", "#74a9cf", "#0570b0")
    for (line, values), colour in zip(lines.items(), colours, strict=True):
        mean, spread = values[(state, "mean")], values[(state, "std")]
        style = "--" if line.startswith("sum") else "-"
        axes.errorbar(
            values.index, mean, yerr=spread, label=line, color=colour, linestyle=style, capsize=2,
            linewidth=1.4, marker=".",
        )  # fmt: skip
        equal = (values["language"] - values.index).abs() < 0.01
        axes.plot(values.index[equal], mean[equal], "o", mfc="none", color=colour, markersize=9)


if __name__ == "__main__":
    main()
