"""Verbs that say what a store holds."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ressa.cli.app import (
    Name,
    OutputOption,
    StoreOption,
    app,
    command,
    examples,
    listed,
    marked,
    opened_store,
    say_edges,
    show_results,
    told,
)
from ressa.cli.relay import relayed
from ressa.errors import NotFoundError
from ressa.terminal import Output, draw, progress, say, show

if TYPE_CHECKING:
    from ressa.store import SweepStore


Shown = Literal["map", "lines", "layers", "curves"]
"""What `landscape` shows."""
Sampler = Literal["grid", "random", "qmc", "tpe", "gp", "nsga2", "map"]
"""Those of `search.sampler`, listed again: sweep files take long to import."""


@app.command(
    epilog=examples(
        'results quickstart --where "sparsity >= 0.6" --sort -score',
        "results quickstart --columns trial,vision,language,score -o csv",
    )
)
@relayed
def results(
    name: Name,
    where: Annotated[
        str | None,
        typer.Option(
            "--where",
            metavar="SQL",
            help='Only trials that meet an expression, such as "sparsity >= 0.5".',
        ),
    ] = None,
    sort: Annotated[
        str,
        typer.Option(
            "--sort",
            metavar="COLUMNS",
            help="Sorts by these, with commas between them; -score: best first.",
        ),
    ] = "",
    columns: Annotated[
        str,
        typer.Option(
            "--columns", metavar="COLUMNS", help="Shows only these, with commas between them."
        ),
    ] = "",
    store: StoreOption = "results",
    output: OutputOption = Output.table,
) -> None:
    """Shows a sweep's trials: sparsities, sizes, scores, costs."""
    sweep = opened_store(store).sweep(name)
    show_results(sweep, output, where=where, sort=listed(sort), columns=listed(columns))


@app.command(epilog=examples("replay quickstart --sampler gp --nearest"))
@relayed
def replay(
    name: Name,
    sampler: Annotated[
        Sampler, typer.Option("--sampler", help="Which sampler to ask about.", show_default=False)
    ],
    trials: Annotated[
        int | None,
        typer.Option("--trials", min=1, help="How many trials it may spend. Default: all."),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option("--seed", min=0, help="Seed of its proposals. Default: the sweep's."),
    ] = None,
    nearest: Annotated[
        bool,
        typer.Option("--nearest", help="The nearest recorded point answers for a missing one."),
    ] = False,
    store: StoreOption = "results",
    output: OutputOption = Output.table,
) -> None:
    """Says what another sampler would have cost. Recorded trials tell; nothing runs.

    A line a budget: when the search would have named its best. -o csv: trial by trial.
    """
    from ressa.sweep import replay as searches
    from ressa.sweep.driver import current_spec
    from ressa.sweep.plan import make_plan

    sweep = opened_store(store).sweep(name)
    plan, recorded = make_plan(current_spec(sweep)), sweep.trials().to_dict("records")
    own = searches.itself(plan, recorded)
    with progress(f"replaying {sweep.name} with {sampler}", trials or len(own)) as moved:
        found = searches.replay(
            plan, recorded, sampler=sampler, count=trials, seed=seed, nearest=nearest, moved=moved
        )
    if output is not Output.table:
        show([one.to_row() for one in found], output)
        return
    margin = plan.spec.verdict.margin
    show(searches.summary(sampler, found, own, margin=margin), output)
    say(searches.told(sampler, found, own, margin))


@app.command(
    epilog=examples(
        'query "SELECT trial, score FROM trials ORDER BY score DESC LIMIT 5"',
        'query "DESCRIBE trials"',
    )
)
@relayed
def query(
    sql: Annotated[
        str, typer.Argument(metavar="SQL", help="One SELECT statement.", show_default=False)
    ],
    store: StoreOption = "results",
    output: OutputOption = Output.table,
) -> None:
    """Asks the store in SQL.

    Tables: trials scores curves layers answers proposals rungs events data; views: attempts
    trial_scores allocations. `SHOW TABLES` and `DESCRIBE trials` tell more.
    """
    from ressa.store import query as ask

    show(ask(opened_store(store), sql), output)


@app.command(
    epilog=examples(
        "landscape quickstart --out map.png",
        "landscape quickstart --show layers --trial t003",
        "landscape quickstart --show lines -o csv",
    )
)
@relayed
def landscape(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="SWEEP...",
            help="The sweep; several that differ in sparsities and seeds alone make one map.",
            show_default=False,
        ),
    ],
    what: Annotated[
        Shown,
        typer.Option(
            "--show",
            help="The map; the best along lines of equal size; layers of the best trial; curves of"
            " repair of the best.",
        ),
    ] = "map",
    trials: Annotated[
        list[str] | None,
        typer.Option(
            "--trial",
            metavar="TRIAL",
            help="The layers of this trial; or its curve, and several may be named.",
            show_default=False,
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            "--by",
            metavar="FIELD",
            help="A map for each value that trials chose, such as repair.steps or prune.method.",
            show_default=False,
        ),
    ] = None,
    store: StoreOption = "results",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="Writes a picture (.png, .svg, .pdf), a page (.html), or the map's trials and grid"
            " as a table (.parquet).",
        ),
    ] = None,
    output: OutputOption = Output.table,
) -> None:
    """Draws the map of a sweep, or of several as one. -o writes the rows behind it."""
    from ressa.landscape import plot
    from ressa.landscape.saving import check_shown, shown_rows
    from ressa.sweep.driver import current_spec

    named = tuple(trials or ())
    check_shown(what, by, named)
    opened = opened_store(store)
    sweeps = [opened.sweep(name) for name in dict.fromkeys(names)]
    margin = current_spec(sweeps[0]).verdict.margin
    if what == "lines" or (what == "map" and out is not None and by is None):
        say("fitting the map …")
    if out is not None:
        plot(sweeps, out, show=what, by=by, trials=named, margin=margin)
    if output is Output.table:
        _draw_landscape(sweeps, what, by, named, margin)
    else:
        show(shown_rows(sweeps, what, by, named, margin, fitted=False), output)
    if out is not None:
        say(f"wrote {out}")


def _draw_landscape(
    sweeps: "list[SweepStore]", what: Shown, by: str | None, trials: tuple[str, ...], margin: float
) -> None:
    from ressa.cli.shortened import curved, layered
    from ressa.landscape import heatmap, line_table, results_of
    from ressa.landscape.figures import curves_of, layers_of
    from ressa.landscape.parts import mixed, parted
    from ressa.landscape.points import colour_range
    from ressa.sweep.driver import current_spec

    frame = results_of(sweeps, by=by)
    match what:
        case "lines":
            table = line_table(sweeps, margin=margin)
            rows, alike = _apart([_line(row, margin) for row in table.to_dict("records")])
            show(rows, Output.table)
            for line, other in alike.items():
                say(f"{line}: as {other}, in every number")
            say_edges(table["edge"], current_spec(sweeps[0]))
            say(
                f"through: the equal split of a line; within {margin:g}: the chance that its best "
                "place here lies less than so many points below the true best; equal split: its "
                "chance"
            )
        case "layers":
            title, shown = layered(layers_of(sweeps, frame, trials), frame)
            show(shown, Output.table, title=title)
            say(
                "output_error: share of a layer's squared output that pruning loses, in %; of a "
                "block its layers' mean. Names within their block; whole ones: -o csv"
            )
        case "curves":
            title, shown = curved(curves_of(sweeps, frame, trials), frame, chosen=bool(trials))
            show(shown, Output.table, title=title)
            say("each is noisy, of one batch; every step: -o csv, a picture: --out curves.png")
        case "map":
            differ = mixed(frame) if by is None else None
            if differ is not None:
                field = differ.partition(":")[0]
                say(f"each place shows its best trial of several: {differ}. Apart: --by {field}")
            for value, part in parted(frame, by).items():
                if by is not None:
                    say(f"{by} = {value}")
                draw(heatmap(part, scale=colour_range(frame)))


def _apart(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Leaves out kinds of line whose rows are those of an earlier kind; returns which of which."""
    from ressa.landscape.charted import KINDS

    of: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for row in rows:
        of[row["line"]].append({name: value for name, value in row.items() if name != "line"})
    alike: dict[str, str] = {}
    shown: list[dict[str, Any]] = []
    for kind, own in of.items():
        same = next((k for k in of if k not in alike and own and of[k] == own), kind)
        if same == kind:
            shown += [{"line": kind} | row for row in own]
        else:
            alike[kind] = same
    return shown, alike


def _line(row: dict[str, Any], margin: float) -> dict[str, Any]:
    """The best of a line for a terminal, in percent."""
    shown = {
        name: 100 * value if isinstance(value, float) else value for name, value in row.items()
    }
    equal = row["equal_within_margin"]
    return {
        "line": row["line"],
        "through": f"{row['equal']:.3g}",
        "best": ":".join(marked(row["edge"], *(f"{shown[t]:.0f}" for t in ("vision", "language")))),
        "vision between": "{vision_low:.0f}–{vision_high:.0f}".format(**shown),
        "score": "{score:.1f}".format(**shown),
        "between": "{low:.1f}–{high:.1f}".format(**shown),
        f"within {margin:g}": "{within_margin:.0f} %".format(**shown),
        "equal split": "" if equal is None or equal != equal else f"{100 * equal:.0f} %",
    }


@app.command("ls")
@relayed
def list_sweeps(store: StoreOption = "results", output: OutputOption = Output.table) -> None:
    """Lists the sweeps of a store."""
    from ressa.landscape import short_row, sweep_row

    opened = opened_store(store)
    rows = [sweep_row(opened.sweep(name)) for name in opened.sweeps()]
    if not rows and _holds_others(opened.location):
        raise NotFoundError(f"{opened.location} holds other files and no sweep; is it the store?")
    if rows or output is not Output.table:
        show([short_row(row) for row in rows] if output is Output.table else rows, output)
        if output is Output.table and any(row["lines"] or row["front"] for row in rows):
            say("of several lines or objectives each has its best: ressa best SWEEP")
    else:
        say(f"no sweep in {opened.location} yet; `ressa run FILE` makes one.")


def _holds_others(place: str) -> bool:
    """Whether a folder has things in it, and nothing of a store."""
    found = {path.name for path in Path(place).iterdir()} if Path(place).is_dir() else set()
    return bool(found) and not found & {"sweeps", "stages"}


@app.command(epilog=examples("status quickstart"))
@relayed
def status(name: Name, store: StoreOption = "results", output: OutputOption = Output.table) -> None:
    """Says how far a sweep is, who drives it and what failed."""
    from ressa.landscape import failures, repair_order, results_table, sweep_row
    from ressa.sweep.shared import work_rows

    sweep = opened_store(store).sweep(name)
    row, failed = sweep_row(sweep), failures(sweep)
    row["repair_order"] = repair_order(results_table(sweep))
    if output is not Output.table:
        show([row], output)
        return
    show(told(sweep, row), output, headings=False)
    work = work_rows(sweep)
    if work:
        say("shared work: stages that its trials made, and how often they found one")
        show(work, output)
    if len(failed):
        show(failed, output)
        say(f"why: {command('logs', sweep, str(failed['trial'].iloc[0]))}")
        say(f"redo them: {command('resume', sweep, '--failed')}")
    if row["state"] in ("interrupted", "stopped", "cancelled"):
        say(f"go on: {command('resume', sweep)}")
