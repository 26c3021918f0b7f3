"""Verbs that say what a sweep's results are worth."""

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ressa.cli.app import (
    Name,
    OutputOption,
    RayOption,
    StoreOption,
    app,
    command,
    examples,
    marked,
    opened_store,
    own_store,
    say_edges,
)
from ressa.cli.relay import relayed
from ressa.cli.running import board, interruptible
from ressa.terminal import Output, say, show, write

if TYPE_CHECKING:
    from ressa.cli.shortened import Row
    from ressa.store import SweepStore
    from ressa.sweep.confirm import Confirmation

ConfidenceOption = Annotated[
    float, typer.Option("--confidence", min=0.5, max=0.9999, help="Confidence of the intervals.")
]


@app.command(epilog=examples("best quickstart", "best quickstart --budget 0.6 --within 1se"))
@relayed
def best(
    name: Name,
    budget: Annotated[
        float | None,
        typer.Option("--budget", help="The best of this line alone.", show_default=False),
    ] = None,
    pareto: Annotated[
        bool,
        typer.Option("--pareto", help="All allocations that none beats in sparsity and score."),
    ] = False,
    within: Annotated[
        str,
        typer.Option(
            "--within", metavar="1se", help="All allocations so close to the best of their line."
        ),
    ] = "",
    store: StoreOption = "results",
    output: OutputOption = Output.table,
) -> None:
    """Shows the best allocation of each line."""
    from ressa.landscape import best_table
    from ressa.landscape.best import edge_of
    from ressa.sweep.driver import current_spec

    sweep = opened_store(store).sweep(name)
    found = best_table(sweep, budget=budget, pareto=pareto, within=within)
    spec = current_spec(sweep)
    found["edge"] = [
        edge_of(row, spec) if row["below_best"] == 0 and not pareto else None
        for row in found.to_dict("records")
    ]
    if output is not Output.table:
        show(found.drop(columns="best").dropna(axis="columns", how="all"), output)
        return
    if not len(found):
        say(f"no trial of {sweep.name} came to a result yet: {command('status', sweep)}")
        return
    apart = bool((found["below_best"] > 0).any())
    show([_allocated(row, apart=apart) for row in found.to_dict("records")], output)
    if within and found["standard_error"].isna().any():
        say("where no standard error is known (–), --within shows the best alone")
    say_edges(found["edge"], spec)
    say(
        "the best of noisy scores is biased upwards; again with fresh seeds, on test examples: "
        f"{_confirming(sweep)}"
    )


def _confirming(sweep: "SweepStore") -> str:
    """The command that confirms a sweep: the best of each line, where it has several."""
    from ressa.sweep.driver import current_spec

    several = len(current_spec(sweep).budget or ()) > 1
    return command("confirm", sweep, *(["--per-line"] if several else []))


def _allocated(row: dict[str, Any], *, apart: bool) -> dict[str, Any]:
    """An allocation for a terminal: scores in percent, sparsities as `results` has them."""
    from ressa.landscape.render import fraction, percent, target

    vision, language = marked(
        row["edge"], *(target(row[t], row[f"{t}_sparsity"]) for t in ("vision", "language"))
    )
    has_line, has_runs = row["budget"] == row["budget"], row["runs"] > 1
    return {
        **({"line": f"{row['budget']:g}"} if has_line else {}),
        "trial": row["trial"],
        "vision": vision,
        "language": language,
        "both": fraction(row["sparsity"]),
        "score": percent(row["score"]),
        "±": percent(row["standard_error"]),
        **({"runs": row["runs"], "spread": percent(row["spread"])} if has_runs else {}),
        **({"below best": percent(row["below_best"])} if apart else {}),
        **({"also": row["options"]} if row["options"] else {}),
    }


def _shown(
    rows: "list[Row]", output: Output, shorten: "Callable[[list[Row]], tuple[str, list[Row]]]"
) -> bool:
    """Writes rows, in a table shortened under a title; says whether it was one."""
    if output is not Output.table:
        show(rows, output)
        return False
    title, short = shorten(rows)
    show(short, output, title=title)
    return True


@app.command(epilog=examples("compare quickstart/t000 quickstart/t003", "compare sweep-a sweep-b"))
@relayed
def compare(
    one: Annotated[
        str, typer.Argument(metavar="A", help="A sweep, or SWEEP/TRIAL.", show_default=False)
    ],
    other: Annotated[
        str, typer.Argument(metavar="B", help="Another sweep, or SWEEP/TRIAL.", show_default=False)
    ],
    confidence: ConfidenceOption = 0.95,
    store: StoreOption = "results",
    output: OutputOption = Output.table,
) -> None:
    """Compares two trials, or two sweeps, question by question."""
    from ressa.cli.shortened import compared
    from ressa.landscape import compare as paired

    rows = paired(opened_store(store), one, other, confidence=confidence)
    if not _shown(rows, output, compared):
        return
    several = "; p_holm: p adjusted for all rows" if len(rows) > 1 else ""
    say(
        "scores in %; one − other: in points, between low and high with "
        f"{confidence:.0%} confidence{several}"
    )


@app.command(epilog=examples("order quickstart", "order SWEEP --by prune.method --winners"))
@relayed
def order(
    name: Name,
    other: Annotated[
        str | None,
        typer.Argument(metavar="OTHER", help="A sweep to compare it with.", show_default=False),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            "--by",
            metavar="FIELD",
            help="Compares what trials chose, such as prune.method or repair.steps; pattern: N:M "
            "with unstructured. Default: before repair with after it.",
            show_default=False,
        ),
    ] = None,
    winners: Annotated[
        bool, typer.Option("--winners", help="Asks of each line whether its best one holds.")
    ] = False,
    confidence: ConfidenceOption = 0.95,
    store: StoreOption = "results",
    output: OutputOption = Output.table,
) -> None:
    """Says how alike allocations are ranked, by Kendall's tau."""
    from ressa.cli.shortened import ordered, won
    from ressa.landscape import orders
    from ressa.sweep.driver import current_spec

    opened = opened_store(store)
    sweeps = [opened.sweep(one) for one in (name, other) if one is not None]
    found = orders(sweeps, by=by)
    if winners:
        margin = current_spec(sweeps[0]).verdict.margin
        told = found.winners(margin=margin, confidence=confidence)
        rows = [{"one": a, "other": b, **asdict(one)} for a, b, one in told]
        if not _shown(rows, output, lambda rows: won(rows, by)):
            return
        say(
            f"holds: the best of one is less than {margin:g} points below each under the other; "
            f"difference: the strongest of the others − it, in points; all answers together are "
            f"right with {confidence:.0%} confidence"
        )
        for why in dict.fromkeys(row["why"] for row in rows if row["difference_points"] is None):
            say(f"not decided: {why}")
        return
    rows = found.rows(confidence=confidence)
    if not _shown(rows, output, lambda rows: ordered(rows, by)):
        return
    say(
        f"tau: between low and high with {confidence:.0%} confidence; scope: all pairs of "
        "allocations, or those on one line; swapped_models: pairs shown to be swapped on other "
        "pictures too; swapped_allocations: with other seeds too"
    )


@app.command(epilog=examples("confirm quickstart --top 3 --per-line --dry-run"))
def confirm(
    name: Name,
    top: Annotated[int, typer.Option("--top", min=1, help="How many of the best.")] = 3,
    per_line: Annotated[
        bool, typer.Option("--per-line", help="So many of each budget, not in all.")
    ] = False,
    seeds: Annotated[int, typer.Option("--seeds", min=1, max=100, help="Runs of each.")] = 5,
    more: Annotated[
        int | None,
        typer.Option(
            "--more",
            min=1,
            max=100,
            help="So many more runs of what was confirmed already.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only says what would be run.")
    ] = False,
    store: StoreOption = "results",
    address: RayOption = None,
    output: OutputOption = Output.table,
) -> None:
    """Runs the best again: fresh seeds, test examples."""
    from ressa.sweep.confirm import check_unseen, confirmation, further
    from ressa.sweep.driver import start
    from ressa.sweep.plan import make_plan

    sweep = own_store(store).sweep(name)
    if more is not None:
        spec = further(sweep, more)
        say(f"{spec.name}: {len(spec.points or ())} allocations again, {more} more seeds of each")
    else:
        found = confirmation(sweep, top=top, per_line=per_line, seeds=seeds)
        spec = found.spec
        _announce(found)
        if not per_line and "--per-line" in _confirming(sweep):
            say("the best of all lines together; of each line: --per-line")
    check_unseen(sweep, make_plan(spec))
    if dry_run:
        return
    with interruptible(spec.name, spec.store), board(spec) as watcher:
        start(spec, watcher, address=address)
    _judge(sweep, output)


def _announce(found: "Confirmation") -> None:
    """Says what will be run, why and at which cost."""
    from ressa.landscape.render import target
    from ressa.sparsity import TOWERS
    from ressa.sweep.confirm import rows
    from ressa.sweep.plan import make_plan

    spec = found.spec
    plan = make_plan(spec)
    lines = rows(found, plan)
    for row in lines:
        score = "" if row["score"] is None else f", {100 * row['score']:.1f} in the sweep"
        towers = {tower: target(row[tower], row[f"{tower}_sparsity"]) for tower in TOWERS}
        split = " ".join(f"{tower} {asked}" for tower, asked in towers.items())
        split = f"{split} {row['also']}".rstrip()
        say(f"{row['line']:<7g} {split}: {row['why']}{score}")
    for reason in found.left_out:
        say(f"left out: {reason}")
    trials = len(lines) * spec.replicates
    tests = [row for row in plan.data if row["purpose"] == "evaluate"]
    data = ", ".join(
        f"{row['samples']:,} questions of {row['task']}/{row['split']} on "
        f"{len(row['image_ids']):,} images"
        for row in tests
    )
    say(
        f"{spec.name}: {len(lines)} allocations × {spec.replicates} seeds = {trials} trials, and "
        f"the dense model; {data}; seeds from {spec.prune.calibration.seed} on"
    )
    if found.seconds is not None:
        minutes = found.seconds * trials / spec.search.parallel / 60
        say(
            f"about {minutes:.0f} min, {spec.search.parallel} at once, if a trial takes "
            f"{found.seconds:.0f} s as in the sweep, with as many questions to answer"
        )


@app.command(epilog=examples("verdict quickstart"))
@relayed
def verdict(
    name: Name, store: StoreOption = "results", output: OutputOption = Output.table
) -> None:
    """Says what was confirmed: yes, no or not decided."""
    _judge(opened_store(store).sweep(name), output)


def _confirmed(row: dict[str, Any]) -> dict[str, Any]:
    """A confirmed allocation for a terminal: scores in percent, differences in points."""
    from ressa.landscape.render import NOTHING, percent

    apart = row["minus_dense_repaired_points"]
    known = apart == apart
    return {
        "line": f"{row['line']:g}",
        "allocation": row["allocation"],
        "runs": row["runs"],
        "score": percent(row["score"]),
        "±": percent(row["standard_error"]),
        "− dense-repaired": f"{apart:+.2f}" if known else NOTHING,
        "between": f"{row['low_points']:.2f} and {row['high_points']:.2f}" if known else NOTHING,
    }


def _judge(sweep: "SweepStore", output: Output) -> None:
    from ressa.landscape import allocation_rows, confirmed, judge
    from ressa.sweep.confirm import confirmations, searched
    from ressa.sweep.driver import current_spec

    sweep = searched(sweep)
    asked = current_spec(sweep).verdict
    rounds = confirmations(sweep)
    found = confirmed(rounds)
    if not found:
        say(f"nothing of {sweep.name} is confirmed yet: {_confirming(sweep)}")
        say("--dry-run says what that would run and how long; it runs nothing")
        raise typer.Exit(1)
    verdicts = judge(found, margin=asked.margin, confidence=asked.confidence)
    if output is not Output.table:
        show([asdict(one) | {"sentence": one.sentence} for one in verdicts], output)
        return
    show([_confirmed(row) for row in allocation_rows(found, confidence=asked.confidence)], output)
    write("".join(f"{one.sentence}\n" for one in verdicts) or "no line has what to compare\n")
    say(
        f"from {', '.join(one.name for one in rounds)} alone: fresh seeds, test examples; all "
        f"verdicts together are right with {asked.confidence:.0%} confidence"
    )
    if any(one.more_trials and one.answer == "not decided" for one in verdicts):
        say(f"more seeds: {command('confirm', sweep, '--more', '3')}")
