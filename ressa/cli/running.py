"""Verbs that run sweeps and steer them."""

import math
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ressa.cli.app import (
    File,
    Name,
    OutputOption,
    RayOption,
    Sets,
    StoreOption,
    app,
    client,
    command,
    examples,
    load,
    opened_store,
    show_results,
    warn_of_idle_gpus,
)
from ressa.cli.relay import ADDRESS, Wait, relay, relayed, resume_there
from ressa.sparsity import TOWERS, Target
from ressa.terminal import Output, draw, explain, say, show, words

if TYPE_CHECKING:
    from ressa.spec import SweepSpec
    from ressa.store import Holder, SweepStore, Wish
    from ressa.sweep.board import Board


Replaced = Annotated[
    str | None, typer.Option("--store", metavar="PLACE", help="Replaces the file's `store`.")
]


@app.command()
def validate(file: File, set_: Sets = None) -> None:
    """Checks a sweep file: every fault at once, with its line. Nothing is run."""
    spec = load(file, set_)
    from ressa.spec import left_out

    count, points = left_out(spec)
    rest = f" {count:,} of its {points:,} points are left out: ressa plan {file}" if count else ""
    say(f"{file}: sweep {spec.name!r} is valid.{rest}")


@app.command(epilog=examples("plan sweep.yaml --set search.trials=20"))
def plan(
    file: File, set_: Sets = None, store: Replaced = None, output: OutputOption = Output.table
) -> None:
    """Shows what a sweep would run. Points that cannot be, shared work and data are said too."""
    from ressa.sweep.location import placed
    from ressa.sweep.preview import preview

    spec = load(file, set_)
    place = placed(spec.store) if store is None else store
    found = preview(spec.model_copy(update={"store": place}))
    if output is not Output.table:
        show(found.points, output)
    else:
        if len(found.points):
            show([_planned(row) for row in found.points.to_dict("records")], output)
        explain(found.facts)
    if found.is_refused:
        raise typer.Exit(1)


def _planned(row: dict[str, Any]) -> dict[str, Any]:
    """A point for a terminal: sparsities short, counts with separators."""
    import pandas

    from ressa.landscape.render import fraction, target

    shown = dict(row)
    for tower in TOWERS:
        text = row[tower]
        shown[tower] = target(text, float(Target.parse(text).sparsity) if text else math.nan)
        zeros = row[f"{tower}_zeros"]
        shown[f"{tower}_zeros"] = None if pandas.isna(zeros) else f"{zeros:,.0f}"
    return shown | {name: fraction(row[name]) for name in ("sparsity", "whole_sparsity")}


@app.command(
    epilog=examples("run sweep.yaml", "run sweep.yaml --set repair.steps=50 --set name=short")
)
def run(
    file: File,
    set_: Sets = None,
    store: Replaced = None,
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh", help="Lets each trial do all of its work itself; results are equal."
        ),
    ] = False,
    address: RayOption = None,
    output: OutputOption = Output.table,
) -> None:
    """Runs a sweep here, on a Ray of its own. Run again, it goes on where it was."""
    spec = load(file, set_, store)
    from ressa.doctor import gpus
    from ressa.sweep.driver import start
    from ressa.sweep.location import at_its_place

    if store is None:
        spec = at_its_place(spec)

    if address is None:
        warn_of_idle_gpus(spec.resources, gpus())

    # The board is gone before anything is said: it would wipe the words away with itself.
    with interruptible(spec.name, spec.store), board(spec) as watcher:
        sweep = start(spec, watcher, fresh=fresh, address=address)
    _report(sweep, output, ran=watcher.has_started)


@app.command(epilog=examples("resume quickstart", "resume quickstart --failed --dry-run"))
def resume(
    context: typer.Context,
    name: Name,
    trials: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TRIAL…", help="Trials that failed, to redo too.", show_default=False
        ),
    ] = None,
    failed: Annotated[
        bool, typer.Option("--failed", help="Also redoes all trials that failed or were lost.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only says what would be done.")
    ] = False,
    wait: Wait = False,
    store: StoreOption = "results",
    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            metavar="URL",
            envvar=ADDRESS,
            help="A cluster to go on at, http://HEAD:8265, or a Ray to join, HOST:PORT.",
            show_default=False,
        ),
    ] = None,
    output: OutputOption = Output.table,
) -> None:
    """Goes on with a stored sweep. No trial that succeeded runs again."""
    if address is not None and "://" in address:
        if dry_run:
            relay(address, context)
        else:
            redoes = failed or bool(trials)
            resume_there(address, context, name, store, redoes=redoes, wait=wait, output=output)
        return
    from ressa.sweep.driver import current_spec, foretell
    from ressa.sweep.driver import resume as continue_sweep
    from ressa.sweep.ledger import Redo

    redo = Redo(all=failed, trials=frozenset(trials or ()))
    opened = opened_store(store)
    with interruptible(name, store), board(current_spec(opened.sweep(name))) as watcher:
        if dry_run:
            foretell(opened, name, watcher, redo=redo)
            return
        sweep = continue_sweep(opened, name, watcher, redo=redo, address=address)
    _report(sweep, output, ran=watcher.has_started)


@app.command()
@relayed
def stop(
    name: Name,
    wait: Annotated[
        bool, typer.Option("--wait", help="Returns when the running trials have finished.")
    ] = False,
    store: StoreOption = "results",
) -> None:
    """Ends a sweep when its running trials are done."""
    _steer(opened_store(store).sweep(name), "stop", wait=wait)


@app.command()
@relayed
def cancel(name: Name, store: StoreOption = "results") -> None:
    """Ends a sweep and its running trials now, wherever it runs."""
    _steer(opened_store(store).sweep(name), "cancel", wait=True)


def board(spec: "SweepSpec") -> "Board":
    """Shows on stderr how a sweep goes, for the length of a `with` block.

    A client elsewhere, when there is one, is told that its sweep is in good hands.
    """
    from ressa.sweep.board import Board

    return Board(spec, words(), started=client.taken)


@contextmanager
def interruptible(name: str, store: str) -> Iterator[None]:
    """Says how a sweep goes on that the user interrupts, and exits with 130."""
    try:
        yield
    except KeyboardInterrupt as interruption:
        where = ["--address", client.address] if client.address is not None else []
        again = shlex.join(["ressa", "resume", name, "--store", store, *where])
        how = str(interruption) or "stopped"
        say(f"\n{how}; nothing that finished is lost. Go on with:\n  {again}")
        raise typer.Exit(130) from None


def _steer(sweep: "SweepStore", wish: "Wish", *, wait: bool) -> None:
    """Says what became of a wish to stop or cancel; exit 1 if nobody can tell."""
    from ressa.sweep.steer import steer

    def asked(driver: "Holder") -> None:
        say(f"asked process {driver.pid} on {driver.host} to {wish} {sweep.name} …")

    answer = steer(sweep, wish, wait=wait, asked=asked)
    state = sweep.status()
    finished = state.done - state.counts.get("cancelled", 0)
    done = f"{finished} of {state.planned} trials are finished"
    again = f"go on: {command('resume', sweep)}"
    if answer.kind == "idle":
        say(f"no driver works on {sweep.name}: it is {state.state}, {done}. Nothing to {wish}.")
    elif answer.kind == "heard":
        say(f"nothing new starts; still running: {', '.join(state.running) or 'nothing'}. {done}.")
        say(f"wait for the end: {command('stop', sweep, '--wait')}")
    elif answer.kind == "ended":
        say(f"{sweep.name} is {state.state}: {done}.")
        if state.state != "finished":
            say(again)
    else:
        say(
            "its driver shows no life, so nobody can tell whether its trials run. "
            f"It has been asked in case it comes back; {command('resume', sweep)} takes over.",
            "error:",
            "bold red",
        )
        raise typer.Exit(1)


def _report(sweep: "SweepStore", output: Output, *, ran: bool) -> None:
    """What a run ends with: table, map, picture, where things are and what to do next.

    Of a sweep that was finished before, where its results are shown.
    """
    from ressa.landscape import failures, heatmap, plot, results_table

    unsuccessful = len(failures(sweep))
    if ran or output is not Output.table:
        show_results(sweep, output)
    if not ran:
        say(f"finished: nothing is left to run. What it found: {command('results', sweep)}")
        said = []
    else:
        if output is Output.table and (sweep.trials(["role"])["role"] != "baseline").any():
            draw(heatmap(results_table(sweep)))
        why = sweep.status().why
        said = [f"ended by   {why}"] if why is not None else []
        said.append(f"rows       {sweep.store.location}/sweeps/{sweep.name}/")
        if sweep.store.folder is not None:
            picture = sweep.store.folder / "sweeps" / sweep.name / "landscape.png"
            plot([sweep], picture)
            said.append(f"picture    {picture}")
        said += [
            f"results    {command('results', sweep, '-o', 'csv')}",
            f"map        {command('landscape', sweep, '--out', 'map.svg')}",
            f"lines      {command('landscape', sweep, '--show', 'lines')}",
            f"report     {command('report', sweep, '--out', 'report.html')}",
        ]
    if unsuccessful:
        said.append(f"failed     {unsuccessful}; {command('resume', sweep, '--failed')}")
    if said:
        say("\n".join(said))
    if unsuccessful:
        raise typer.Exit(1)
