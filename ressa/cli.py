"""The `ressa` command: each verb parses, calls and prints. Data go to stdout, words to stderr."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ressa.errors import MissingExtraError, RessaError

if TYPE_CHECKING:
    import pandas

    from ressa.spec import SweepSpec
    from ressa.store import Store, SweepStore

app = typer.Typer(
    help="Split the sparsity of a vision-language model between vision and language, repair it, "
    "and map the landscape.",
    epilog="Exit codes: 0 done · 1 trials failed or a run-time error · 2 bad usage or sweep file · "
    "3 not found · 4 conflict · 5 store or Ray unreachable · 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class Output(StrEnum):
    """How rows are written."""

    table = "table"
    json = "json"
    csv = "csv"


File = Annotated[Path, typer.Argument(help="The sweep file.", show_default=False)]
Name = Annotated[str, typer.Argument(help="Name of the sweep.", show_default=False)]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Changes a field, such as repair.steps=50."),
]
StoreOption = Annotated[
    str, typer.Option("--store", envvar="RESSA_STORE", help="Where the sweeps are.")
]
OutputOption = Annotated[Output, typer.Option("-o", "--output", help="How rows are written.")]


def main() -> None:
    """Runs the command; an error becomes one message and its documented exit code."""
    try:
        with _extras_explained():
            # Without typer's own mode an early exit comes back as its code.
            sys.exit(app(standalone_mode=False) or 0)
    except typer.Abort:
        sys.exit(130)
    except RessaError as error:
        _words().print(f"[bold red]error:[/bold red] {_escaped(error)}", soft_wrap=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader, such as `head`, has what it wanted.
        sys.stderr.close()
        sys.exit(0)
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        # click's own usage errors: an unknown option, a missing argument.
        context = getattr(error, "ctx", None)
        usage = f"{context.get_usage()}\n" if context else ""
        _words().print(_escaped(f"{usage}error: {error.format_message()}"), soft_wrap=True)
        sys.exit(2)


@app.command()
def validate(file: File, set_: Sets = None) -> None:
    """Checks a sweep file: every fault at once, with file and line. Nothing is run."""
    spec = _load(file, set_)
    _words().print(f"{file}: sweep {spec.name!r} is valid.", highlight=False)


@app.command()
def plan(file: File, set_: Sets = None, output: OutputOption = Output.table) -> None:
    """Shows what a sweep would run: trials, points that cannot be, shared work, data."""
    from ressa.sweep.preview import preview

    found = preview(_load(file, set_))
    _show(found.points, output)
    if output is Output.table:
        for line in found.words:
            _words().print(line, highlight=False, soft_wrap=True)


@app.command()
def run(
    file: File,
    set_: Sets = None,
    store: Annotated[
        str | None, typer.Option("--store", help="Replaces the file's `store`.")
    ] = None,
    output: OutputOption = Output.table,
) -> None:
    """Runs a sweep here, on a Ray of its own; run again, it continues or says it is done."""
    sets = [*(set_ or []), *([f"store={json.dumps(store)}"] if store else [])]
    spec = _load(file, sets)
    with _board(spec) as board:
        from ressa.sweep.driver import start

        with _interruptible(spec.name, spec.store):
            sweep = start(spec, board)
    _report(sweep, output)


@app.command()
def resume(
    name: Name,
    failed: Annotated[
        bool, typer.Option("--failed", help="Also redo trials that failed or were lost.")
    ] = False,
    store: StoreOption = "results",
    output: OutputOption = Output.table,
) -> None:
    """Continues a stored sweep; no finished trial runs again."""
    from ressa.sweep.driver import current_spec
    from ressa.sweep.driver import resume as continue_sweep

    opened = _open(store)
    with _board(current_spec(opened.sweep(name))) as board, _interruptible(name, store):
        sweep = continue_sweep(opened, name, board, redo_failed=failed)
    _report(sweep, output)


@app.command()
def results(
    name: Name, store: StoreOption = "results", output: OutputOption = Output.table
) -> None:
    """Shows a sweep's trials: sparsities asked and counted, scores before and after repair."""
    _results(_open(store).sweep(name), output)


@app.command()
def query(
    sql: Annotated[str, typer.Argument(help="One SELECT statement.", show_default=False)],
    store: StoreOption = "results",
    output: OutputOption = Output.table,
) -> None:
    """Asks the store in SQL; views: trials scores curves layers answers proposals events data."""
    from ressa.store import query as ask

    _show(ask(_open(store), sql), output)


@app.command()
def landscape(
    name: Name,
    store: StoreOption = "results",
    out: Annotated[
        Path | None, typer.Option("--out", help="Writes a picture too: .png or .svg.")
    ] = None,
) -> None:
    """Draws a sweep's map over vision and language sparsity, here or as a picture."""
    from ressa.landscape import heatmap, plot, results_table

    sweep = _open(store).sweep(name)
    _data().print(heatmap(results_table(sweep)))
    if out is not None:
        plot(sweep, out)
        _words().print(f"wrote {out}", highlight=False)


@app.command("ls")
def list_sweeps(store: StoreOption = "results", output: OutputOption = Output.table) -> None:
    """Lists the sweeps of a store."""
    opened = _open(store)
    _show(_frame([_line(opened.sweep(name)) for name in opened.sweeps()]), output)


@app.command()
def status(name: Name, store: StoreOption = "results", output: OutputOption = Output.table) -> None:
    """Says how far a sweep is, who drives it and what failed."""
    from ressa.landscape import failures

    sweep = _open(store).sweep(name)
    _show(_frame([_line(sweep)]), output)
    failed = failures(sweep)
    if output is Output.table and len(failed):
        _show(failed, output)
        _words().print(f"redo them: ressa resume {name} --failed --store {store}", highlight=False)


@app.command()
def models(
    model: Annotated[
        str | None, typer.Argument(help="A model, to see its towers.", show_default=False)
    ] = None,
    output: OutputOption = Output.table,
) -> None:
    """Lists the models that come with ressa, or shows what can be pruned in one."""
    from ressa.sweep.preview import catalog_rows, model_rows

    rows = catalog_rows() if model is None else model_rows(model)
    _show(_frame(rows), output)


def _load(file: Path, sets: list[str] | None) -> "SweepSpec":
    from ressa.spec import load_spec

    loaded = load_spec(file, sets or ())
    for warning in loaded.warnings:
        _words().print(f"[yellow]warning:[/yellow] {_escaped(warning)}", soft_wrap=True)
    if loaded.inventory is None:
        from ressa.spec import check_inventory
        from ressa.sweep.plan import inventory_of

        _words().print(f"reading the layers of {loaded.spec.model.id} …", highlight=False)
        loaded.refuse(check_inventory(loaded.spec, inventory_of(loaded.spec.model)))
    return loaded.spec


def _open(store: str) -> "Store":
    from ressa.store import open_store

    return open_store(store)


@contextmanager
def _board(spec: "SweepSpec") -> Iterator[Any]:
    from ressa.sweep.board import Board

    with Board(spec, _words()) as board:
        yield board


@contextmanager
def _interruptible(name: str, store: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        _words().print(
            "\nstopped; nothing that finished is lost. Go on with:\n"
            f"  ressa resume {name} --store {store}",
            highlight=False,
        )
        raise typer.Exit(130) from None


def _report(sweep: "SweepStore", output: Output) -> None:
    """What a run ends with: table, map, picture, where things are and what to do next."""
    from ressa.landscape import heatmap, plot, results_table

    _results(sweep, output)
    trials = sweep.trials()
    unsuccessful = int((trials["state"] != "succeeded").sum())
    store = sweep.store.location
    if output is Output.table and (trials["role"] == "search").any():
        _data().print(heatmap(results_table(sweep)))
    said = [f"rows      {store}/sweeps/{sweep.name}/"]
    if sweep.store.folder is not None:
        picture = sweep.store.folder / "sweeps" / sweep.name / "landscape.png"
        plot(sweep, picture)
        said.append(f"picture   {picture}")
    said += [
        f"results   ressa results {sweep.name} --store {store} -o csv",
        f"landscape ressa landscape {sweep.name} --store {store} --out map.svg",
        f'query     ressa query "SELECT trial, score FROM trials ORDER BY score DESC" '
        f"--store {store}",
    ]
    if unsuccessful:
        said.append(f"failed    {unsuccessful}; ressa resume {sweep.name} --failed --store {store}")
    _words().print("\n".join(said), highlight=False, soft_wrap=True)
    if unsuccessful:
        raise typer.Exit(1)


def _results(sweep: "SweepStore", output: Output) -> None:
    from ressa.landscape import render_table, results_table

    frame = results_table(sweep)
    if output is Output.table:
        _data().print(render_table(frame))
    else:
        _show(frame, output)


def _line(sweep: "SweepStore") -> dict[str, Any]:
    """One sweep as a row."""
    state = sweep.status()
    return {
        "sweep": state.name,
        "state": state.state,
        "done": state.done,
        "planned": state.planned,
        "running": ", ".join(state.running),
        "failed": state.counts.get("failed", 0) + state.counts.get("lost", 0),
        "metric": state.metric,
        "best": state.best_score,
        "best_trial": state.best_trial,
        "updated": state.updated,
    }


def _frame(rows: list[dict[str, Any]]) -> "pandas.DataFrame":
    import pandas

    return pandas.DataFrame(rows)


def _show(frame: "pandas.DataFrame", output: Output) -> None:
    """Writes rows to stdout."""
    if output is Output.json:
        print(frame.to_json(orient="records", date_format="iso", indent=1))
    elif output is Output.csv:
        print(frame.to_csv(index=False), end="")
    else:
        from ressa.landscape import plain_table

        _data().print(plain_table(frame))


def _data() -> Console:
    return Console()


def _words() -> Console:
    return Console(stderr=True)


def _escaped(message: object) -> str:
    from rich.markup import escape

    return escape(str(message))


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
