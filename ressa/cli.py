"""The `ressa` command: each verb parses, calls and prints. Data go to stdout, words to stderr."""

import json
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ressa import __version__
from ressa.errors import MissingExtraError, RessaError, SpecError
from ressa.terminal import Output, draw, prepare, say, show, width, words, write

if TYPE_CHECKING:
    from ressa.spec import SweepSpec
    from ressa.store import Holder, Store, SweepStore, Wish


class Sampler(StrEnum):
    """The samplers, as the command line takes them."""

    grid = "grid"
    random = "random"
    qmc = "qmc"
    tpe = "tpe"
    gp = "gp"
    nsga2 = "nsga2"


app = typer.Typer(
    help="Split the sparsity of a vision-language model between vision and language, repair it, "
    "and map the landscape.",
    epilog="Exit codes: 0 done · 1 trials failed or a run-time error · 2 bad usage or sweep file · "
    "3 not found · 4 conflict · 5 store or Ray unreachable, full or not writable · "
    "130 interrupted. Data go to stdout, words to stderr.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
stages = typer.Typer(help="Looks after the work that trials share.", no_args_is_help=True)
app.add_typer(stages, name="stages")


File = Annotated[Path, typer.Argument(metavar="FILE", help="The sweep file.", show_default=False)]
Name = Annotated[
    str, typer.Argument(metavar="SWEEP", help="Name of the sweep.", show_default=False)
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Changes a field, such as repair.steps=50."),
]
StoreOption = Annotated[
    str,
    typer.Option("--store", metavar="PLACE", envvar="RESSA_STORE", help="Where the sweeps are."),
]
OutputOption = Annotated[Output, typer.Option("-o", "--output", help="How rows are written.")]


def main() -> None:
    """Runs the command; an error becomes one message and its documented exit code."""
    prepare()
    try:
        with _extras_explained():
            # Without typer's own mode an early exit comes back as its code.
            sys.exit(app(standalone_mode=False) or 0)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except RessaError as error:
        faults = error.faults if isinstance(error, SpecError) else ()
        count = f"{len(faults)} faults\n" if len(faults) > 1 else ""
        say(f"{count}{error}", "error:", "bold red")
        sys.exit(error.exit_code)
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        # typer's own usage errors: an unknown option, a missing argument.
        context = getattr(error, "ctx", None)
        if context is not None:
            say(context.get_usage())
        say(error.format_message(), "error:", "bold red")
        sys.exit(2)


@app.callback(invoke_without_command=True)
def ressa(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Shows the help when no verb is given, or the version."""
    if version:
        write(f"ressa {__version__}\n")
    elif context.invoked_subcommand is None:
        write(context.get_help() + "\n")


@app.command()
def validate(file: File, set_: Sets = None) -> None:
    """Checks a sweep file: every fault at once, with its line. Nothing is run."""
    spec = _load(file, set_)
    say(f"{file}: sweep {spec.name!r} is valid.")


@app.command()
def plan(file: File, set_: Sets = None, output: OutputOption = Output.table) -> None:
    """Shows what a sweep would run. Points that cannot be, shared work and data are said too."""
    from ressa.sweep.preview import preview

    found = preview(_load(file, set_))
    if len(found.points) or output is not Output.table:
        show(found.points, output)
    if output is Output.table:
        say("\n".join(found.words))


@app.command()
def run(
    file: File,
    set_: Sets = None,
    store: Annotated[
        str | None, typer.Option("--store", metavar="PLACE", help="Replaces the file's `store`.")
    ] = None,
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh", help="Lets each trial do all of its work itself; results are equal."
        ),
    ] = False,
    output: OutputOption = Output.table,
) -> None:
    """Runs a sweep here, on a Ray of its own. Run again, it goes on where it was."""
    sets = [*(set_ or []), *([f"store={json.dumps(store)}"] if store is not None else [])]
    spec = _load(file, sets)
    from ressa.sweep.driver import start

    # The board is gone before anything is said: it would wipe the words away with itself.
    with _interruptible(spec.name, spec.store), _board(spec) as board:
        sweep = start(spec, board, fresh=fresh)
    _report(sweep, output)


@app.command()
def resume(
    name: Name,
    trials: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TRIAL…]", help="Trials that failed, to redo too.", show_default=False
        ),
    ] = None,
    failed: Annotated[
        bool, typer.Option("--failed", help="Also redo all trials that failed or were lost.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done.")
    ] = False,
    store: StoreOption = "results",
    output: OutputOption = Output.table,
) -> None:
    """Goes on with a stored sweep. No trial that succeeded runs again."""
    from ressa.sweep.driver import current_spec, foretell
    from ressa.sweep.driver import resume as continue_sweep
    from ressa.sweep.ledger import Redo

    redo = Redo(all=failed, trials=frozenset(trials or ()))
    opened = _open(store)
    with _interruptible(name, store), _board(current_spec(opened.sweep(name))) as board:
        if dry_run:
            foretell(opened, name, board, redo=redo)
            return
        sweep = continue_sweep(opened, name, board, redo=redo)
    _report(sweep, output)


@app.command()
def stop(
    name: Name,
    wait: Annotated[
        bool, typer.Option("--wait", help="Return when the running trials have finished.")
    ] = False,
    store: StoreOption = "results",
) -> None:
    """Ends a sweep when its running trials are done."""
    _steer(_open(store).sweep(name), "stop", wait=wait)


@app.command()
def cancel(name: Name, store: StoreOption = "results") -> None:
    """Ends a sweep and its running trials now, wherever it runs."""
    _steer(_open(store).sweep(name), "cancel", wait=True)


@app.command()
def results(
    name: Name, store: StoreOption = "results", output: OutputOption = Output.table
) -> None:
    """Shows a sweep's trials: sparsities and scores."""
    _results(_open(store).sweep(name), output)


@app.command()
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
        int | None, typer.Option("--seed", min=0, help="Of its proposals. Default: the sweep's.")
    ] = None,
    nearest: Annotated[
        bool,
        typer.Option("--nearest", help="The nearest recorded point answers for a missing one."),
    ] = False,
    store: StoreOption = "results",
    output: OutputOption = Output.table,
) -> None:
    """Says what another sampler would have cost. Recorded trials tell; nothing runs."""
    from ressa.sweep.driver import current_spec
    from ressa.sweep.plan import make_plan
    from ressa.sweep.replay import replay as search_again
    from ressa.sweep.replay import told

    sweep = _open(store).sweep(name)
    plan, recorded = make_plan(current_spec(sweep)), sweep.trials().to_dict("records")
    found = search_again(
        plan, recorded, sampler=sampler.value, count=trials, seed=seed, nearest=nearest
    )
    show([asdict(one) for one in found], output)
    if output is Output.table:
        say(told(sampler.value, found, recorded))


@app.command()
def query(
    sql: Annotated[str, typer.Argument(help="One SELECT statement.", show_default=False)],
    store: StoreOption = "results",
    output: OutputOption = Output.table,
) -> None:
    """Asks the store in SQL.

    Tables: trials scores curves layers answers proposals events data; `SHOW TABLES` and
    `DESCRIBE trials` tell more.
    """
    from ressa.store import query as ask

    show(ask(_open(store), sql), output)


@app.command()
def landscape(
    name: Name,
    store: StoreOption = "results",
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="PICTURE", help="Writes a picture too: .png, .svg or .pdf."),
    ] = None,
) -> None:
    """Draws a sweep's map over vision and language sparsity."""
    from ressa.landscape import heatmap, plot, results_table

    sweep = _open(store).sweep(name)
    if out is not None:
        plot(sweep, out)
    draw(heatmap(results_table(sweep)))
    if out is not None:
        say(f"wrote {out}")


@app.command("ls")
def list_sweeps(store: StoreOption = "results", output: OutputOption = Output.table) -> None:
    """Lists the sweeps of a store."""
    from ressa.landscape import short_row, sweep_row

    opened = _open(store)
    rows = [sweep_row(opened.sweep(name)) for name in opened.sweeps()]
    if rows or output is not Output.table:
        show([short_row(row) for row in rows] if output is Output.table else rows, output)
    else:
        say(f"no sweep in {opened.location} yet; `ressa run FILE` makes one.")


@app.command()
def status(name: Name, store: StoreOption = "results", output: OutputOption = Output.table) -> None:
    """Says how far a sweep is, who drives it and what failed."""
    from ressa.landscape import failures, repair_order, results_table, sweep_row
    from ressa.sweep.shared import work_rows

    sweep = _open(store).sweep(name)
    row, failed = sweep_row(sweep), failures(sweep)
    row["repair_order"] = repair_order(results_table(sweep))
    if output is not Output.table:
        show([row], output)
        return
    show([{"what": k, "value": v} for k, v in row.items() if v is not None], output, headings=False)
    work = work_rows(sweep)
    if work:
        say("shared work: stages that its trials made, and how often they found one")
        show(work, output)
    if len(failed):
        show(failed, output)
        say(f"redo them: {_command('resume', sweep, '--failed')}")
    if row["state"] in ("interrupted", "stopped", "cancelled"):
        say(f"go on: {_command('resume', sweep)}")


@stages.command("ls")
def list_stages(store: StoreOption = "results", output: OutputOption = Output.table) -> None:
    """Lists the stages of a store: size, last use, which sweeps used and which need each."""
    from ressa.sweep.shared import needs_of, uses_of

    opened = _open(store)
    found = uses_of(opened, needs_of(opened))
    if found or output is not Output.table:
        show([use.row() for use in found], output)
    if output is Output.table:
        size = sum(use.stored.size for use in found) / 2**20
        say(f"{len(found)} stages in {opened.location}, {size:.1f} MiB")


@stages.command("gc")
def collect_stages(
    older_than: Annotated[
        str,
        typer.Option("--older-than", metavar="TIME", help="Since the last use: 0, 30m, 12h, 7d."),
    ] = "7d",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only says what would go.")] = False,
    store: StoreOption = "results",
    output: OutputOption = Output.table,
) -> None:
    """Removes stages that no unfinished sweep needs; later trials make them again if they must.

    Rows stay, and with them all results. Drivers may run meanwhile.
    """
    from ressa.sweep.shared import collect

    opened = _open(store)
    removed = collect(opened, older_than=_duration(older_than), dry_run=dry_run)
    if removed or output is not Output.table:
        show([use.row() for use in removed], output)
    size = sum(use.stored.size for use in removed) / 2**20
    say(f"{'would remove' if dry_run else 'removed'} {len(removed)} stages, {size:.1f} MiB")


def _duration(text: str) -> timedelta:
    found = re.fullmatch(r"(\d{1,6})([smhd]?)", text.strip())
    if found is None or (found[1].strip("0") and not found[2]):
        raise SpecError(
            f"--older-than: a number with s, m, h or d, such as 12h or 7d; got {text!r}."
        )
    unit = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}[found[2] or "s"]
    return timedelta(**{unit: int(found[1])})


@app.command()
def doctor(output: OutputOption = Output.table) -> None:
    """Says whether this machine can run trials. If not, it says what to do."""
    from ressa.doctor import examine

    rows = [
        {"what": f.what, "state": "ok" if f.ok else "broken", "found": f.found, "advice": f.advice}
        for f in examine()
    ]
    show(rows, output)
    if any(row["state"] != "ok" for row in rows):
        raise typer.Exit(1)


@app.command()
def models(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="A name, a folder or a hub id, to see its towers.",
            show_default=False,
        ),
    ] = None,
    output: OutputOption = Output.table,
) -> None:
    """Lists the models that come with ressa, or the parts of one."""
    from ressa.sweep.preview import catalog_rows, model_rows

    show(catalog_rows() if model is None else model_rows(model), output)


data = typer.Typer(help="Looks at data sets that lie in files.")
app.add_typer(data, name="data")


@data.command("check")
def check_data(
    task: Annotated[
        str,
        typer.Argument(
            metavar="TASK",
            help="vqa, captioning, retrieval, multiple_choice or perplexity.",
            show_default=False,
        ),
    ],
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="The folder of its files.", show_default=False)
    ],
    layout: Annotated[
        str | None,
        typer.Option("--format", help="Layout of the files; found out if it is not given."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A field of data, as columns.image=photo."),
    ] = None,
    decode: Annotated[
        bool, typer.Option(help="Decode every picture, or look at its ends alone.")
    ] = True,
    output: OutputOption = Output.table,
) -> None:
    """Counts a data set's examples and pictures, and names what is wrong with it."""
    from ressa.data.check import check
    from ressa.data.files import named

    report = check(task, path, layout, _fields(set_ or []), decode=decode)
    show(report.rows, output)
    say("\n".join(report.words))
    if report.bad:
        say(f"bad      {named(report.bad)}", style="bold red")
        raise typer.Exit(1)


def _fields(sets: list[str]) -> dict[str, Any]:
    """Reads KEY=VALUE pairs with dotted keys into nested values."""
    from ressa.spec.space import parse_scalar

    found: dict[str, Any] = {}
    for text in sets:
        key, equals, value = text.partition("=")
        if not equals or not all(key.split(".")):
            raise SpecError(f"--set {text}: write it as key=value, such as columns.image=photo.")
        *parents, last = key.split(".")
        inner = found
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = parse_scalar(value)
    return found


def _load(file: Path, sets: list[str] | None) -> "SweepSpec":
    from ressa.spec import load_spec

    loaded = load_spec(file, sets or ())
    for warning in loaded.warnings:
        say(warning, "warning:", "yellow")
    if loaded.inventory is None:
        from ressa.spec import check_inventory
        from ressa.sweep.plan import inventory_of

        say(f"reading the layers of {loaded.spec.model.id} …")
        loaded.refuse(check_inventory(loaded.spec, inventory_of(loaded.spec.model)))
    return loaded.spec


def _open(store: str) -> "Store":
    from ressa.store import open_store

    return open_store(store)


@contextmanager
def _board(spec: "SweepSpec") -> Iterator[Any]:
    from ressa.sweep.board import Board

    with Board(spec, words()) as board:
        yield board


@contextmanager
def _interruptible(name: str, store: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as interruption:
        again = shlex.join(["ressa", "resume", name, "--store", store])
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
    again = f"go on: {_command('resume', sweep)}"
    if answer.kind == "idle":
        say(f"no driver works on {sweep.name}: it is {state.state}, {done}. Nothing to {wish}.")
    elif answer.kind == "heard":
        say(f"nothing new starts; still running: {', '.join(state.running) or 'nothing'}. {done}.")
        say(f"wait for the end: {_command('stop', sweep, '--wait')}")
    elif answer.kind == "ended":
        say(f"{sweep.name} is {state.state}: {done}.")
        if state.state != "finished":
            say(again)
    else:
        say(
            "its driver shows no life, so nobody can tell whether its trials run. "
            f"It has been asked in case it comes back; {_command('resume', sweep)} takes over.",
            "error:",
            "bold red",
        )
        raise typer.Exit(1)


def _report(sweep: "SweepStore", output: Output) -> None:
    """What a run ends with: table, map, picture, where things are and what to do next."""
    from ressa.landscape import failures, heatmap, plot, results_table

    _results(sweep, output)
    unsuccessful = len(failures(sweep))
    if output is Output.table and (sweep.trials()["role"] == "search").any():
        draw(heatmap(results_table(sweep)))
    said = [f"rows       {sweep.store.location}/sweeps/{sweep.name}/"]
    if sweep.store.folder is not None:
        picture = sweep.store.folder / "sweeps" / sweep.name / "landscape.png"
        plot(sweep, picture)
        said.append(f"picture    {picture}")
    best = "SELECT trial, score FROM trials ORDER BY score DESC"
    place = ["--store", sweep.store.location]
    said += [
        f"results    {_command('results', sweep, '-o', 'csv')}",
        f"landscape  {_command('landscape', sweep, '--out', 'map.svg')}",
        f'query      ressa query "{best}" {shlex.join(place)}',
    ]
    if unsuccessful:
        said.append(f"failed     {unsuccessful}; {_command('resume', sweep, '--failed')}")
    say("\n".join(said))
    if unsuccessful:
        raise typer.Exit(1)


def _results(sweep: "SweepStore", output: Output) -> None:
    from ressa.landscape import render_table, repair_order, results_table

    frame = results_table(sweep)
    if output is Output.table:
        draw(render_table(frame, width()))
        order = repair_order(frame)
        if order is not None:
            say(f"the order before repair and after it: Spearman's {order}")
    else:
        show(frame, output)


def _command(verb: str, sweep: "SweepStore", *options: str) -> str:
    """A command line to go on with, which works from any folder."""
    return shlex.join(["ressa", verb, sweep.name, *options, "--store", sweep.store.location])


@contextmanager
def _extras_explained() -> Iterator[None]:
    """Says which packages a verb needs when they are not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "ressa":
            raise
        raise MissingExtraError(
            f"this needs the package {error.name!r}, which is not installed. "
            "Install what runs trials: pip install 'ressa[run]' -c constraints.txt"
        ) from error
