"""Verbs that look after stages, data, models and this machine."""

import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ressa.cli.app import OutputOption, StoreOption, app, client, examples, opened_store
from ressa.cli.relay import relayed
from ressa.errors import SpecError
from ressa.terminal import Output, say, show

if TYPE_CHECKING:
    from ressa.doctor import Finding
    from ressa.sweep.shared import Use

WEEK = "7d"
_EVER = timedelta(days=36_500)  # before all stores
stages = typer.Typer(help="Looks after the work that trials share.", no_args_is_help=True)
app.add_typer(stages, name="stages")


@stages.command("ls")
@relayed
def list_stages(
    every: Annotated[
        bool, typer.Option("--all", help="In the table too, each stage: who used and needs it.")
    ] = False,
    store: StoreOption = "results",
    output: OutputOption = Output.table,
) -> None:
    """Lists the stages of a store by kind: size, last use, how many are needed and how many free.

    Other forms than the table list each.
    """
    from ressa.cli.shortened import once
    from ressa.sweep.shared import kinds_of, needs_of, uses_of

    opened = opened_store(store)
    found = uses_of(opened, needs_of(opened))
    if output is not Output.table:
        show([use.row() for use in found], output)
        return
    edge = datetime.now(UTC) - _duration(WEEK)
    kinds = kinds_of(found, edge=edge)
    if found:
        rows = [_short(use.row()) for use in found] if every else [_sized(row) for row in kinds]
        show(once(rows, [])[1], output)
    say(f"{len(found):,} stages in {opened.location}, {_mib(found)}")
    if found:
        free = sum(row["free"] for row in kinds)
        say(
            "needed: by sweeps that are not finished; recent: by none, and used within a week; "
            f"free: the {free:,} that `ressa stages gc` removes. --all lists each stage"
        )


def _short(row: dict[str, Any]) -> dict[str, Any]:
    """A stage for a terminal; one whose writer was not done says so."""
    half = "" if row.pop("whole") else " (half written)"
    return _sized(row) | {"key": f"{row['key'][:12]}{half}"}


def _sized(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"mib": f"{row['mib']:,.1f}"}


def _mib(uses: "Iterable[Use]") -> str:
    return f"{sum(use.stored.size for use in uses) / 2**20:,.1f} MiB"


@stages.command("gc", epilog=examples("stages gc --older-than 12h --dry-run"))
@relayed
def collect_stages(
    older_than: Annotated[
        str,
        typer.Option("--older-than", metavar="TIME", help="Since the last use: 0, 30m, 12h, 7d."),
    ] = WEEK,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only says what would go.")] = False,
    store: StoreOption = "results",
    output: OutputOption = Output.table,
) -> None:
    """Removes stages that no unfinished sweep needs; later trials make them again if they must.

    Rows stay, and with them all results. Drivers may run meanwhile.
    """
    from ressa.sweep.shared import collect, kinds_of

    found = collect(opened_store(store), older_than=_duration(older_than), dry_run=dry_run)
    removed, kept = found.removed, found.kept
    if output is not Output.table:
        show([use.row() for use in removed], output)
    elif removed:
        rows = kinds_of(removed, edge=datetime.now(UTC))
        shown = ("stage", "count", "mib", "last_use")
        show([{name: _sized(row)[name] for name in shown} for row in rows], output)
    say(f"{'would remove' if dry_run else 'removed'} {len(removed):,} stages, {_mib(removed)}")
    needed = [use for use in kept if use.needed_by]
    if needed:
        names = ", ".join(sorted({name for use in needed for name in use.needed_by}))
        say(f"kept: {len(needed):,} that sweeps need which are not finished: {names}")
    for name, why in found.unclear.items():
        say(f"all is kept for {name}, whose needs cannot be worked out: {why}")
    if len(kept) > len(needed):
        say(
            f"kept: {len(kept) - len(needed):,} that no sweep needs and that were used in the last "
            f"{older_than}; --older-than takes another time, or 0"
        )


def _duration(text: str) -> timedelta:
    found = re.fullmatch(r"(\d{1,6})([smhd]?)", text.strip())
    if found is None or (found[1].strip("0") and not found[2]):
        raise SpecError(
            f"--older-than: a number with s, m, h or d, such as 12h or 7d; got {text!r}."
        )
    unit = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}[found[2] or "s"]
    return min(timedelta(**{unit: int(found[1])}), _EVER)


@app.command(epilog=examples("doctor --store results"))
@relayed
def doctor(
    store: Annotated[
        str | None,
        typer.Option(
            "--store",
            metavar="PLACE",
            help="Whether this machine, or with --address every node, can use it as a store.",
        ),
    ] = None,
    output: OutputOption = Output.table,
) -> None:
    """Says whether machines can run trials: this one, or a cluster's. If not, what to do."""
    from ressa.cli.shortened import once

    rows = list(_findings(store))
    show(once(rows, [])[1] if output is Output.table else rows, output)
    if any(row["state"] != "ok" for row in rows):
        raise typer.Exit(1)


def _findings(store: str | None) -> Iterator[dict[str, str]]:
    from ressa.doctor import examine
    from ressa.sweep.checkup import examine_cluster, examine_store

    if client.ray is None:
        for found in examine(told=lambda what: say(f"{what} …")):
            yield _row(found)
        if store is not None:
            yield _row(examine_store(store))
        return
    from ressa.sweep import joined_ray

    joined_ray.prepare()
    for node, found in examine_cluster(client.ray, store):
        yield {"node": node, **_row(found)}


def _row(found: "Finding") -> dict[str, str]:
    state = "ok" if found.ok else "broken"
    return {"what": found.what, "state": state, "found": found.found, "advice": found.advice}


@app.command(epilog=examples("models pocket-blip2", "models llava-hf/llava-1.5-7b-hf"))
def models(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="A name, a folder or a hub id, to see its towers.",
            show_default=False,
        ),
    ] = None,
    output: OutputOption = Output.table,
) -> None:
    """Lists the models that come with ressa, or the parts of one."""
    from ressa.sweep.preview import catalog_rows, model_rows

    rows = catalog_rows() if model is None else model_rows(model)
    show([_counted(row) for row in rows] if output is Output.table else rows, output)


def _counted(row: dict[str, Any]) -> dict[str, Any]:
    """A model or a part of one for a terminal: counts with separators, shares short."""
    form = {int: ",", float: ".3f"}
    return {n: format(v, form[type(v)]) if type(v) in form else v for n, v in row.items()}


data = typer.Typer(help="Looks at data sets that lie in files.")
app.add_typer(data, name="data")


@data.command("check", epilog=examples("data check vqa ./vqa --format vqav2"))
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
        bool, typer.Option(help="Decodes every picture, or looks at its ends alone.")
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
        for depth, parent in enumerate(parents, 1):
            inner = inner.setdefault(parent, {})
            if not isinstance(inner, dict):
                name = ".".join(parents[:depth])
                raise SpecError(f"--set {text}: {name} is set to one value already. Keep one.")
        inner[last] = parse_scalar(value)
    return found
