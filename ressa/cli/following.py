"""Verbs that follow a sweep while it runs: its state, and what its trials say."""

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ressa.cli.app import Name, StoreOption, app, command, examples, opened_store, told
from ressa.cli.relay import relayed
from ressa.errors import NotFoundError, did_you_mean
from ressa.terminal import live, say, width, write

if TYPE_CHECKING:
    from ressa.store import LogName, SweepStore

_GLANCE_SECONDS = 2.0
_GOING_ON = ("running", "unknown")
_LAST = 5  # trials that ended, as `watch` shows


@app.command()
@relayed
def watch(name: Name, store: StoreOption = "results") -> None:
    """Shows a sweep as it goes on, as long as its driver lives. Ctrl-C ends the watching alone."""
    from ressa.store import holder
    from ressa.store.lease import PATIENCE_SECONDS, Pulse

    sweep = opened_store(store).sweep(name)
    pulse = Pulse(PATIENCE_SECONDS)
    with live() as shown:
        while True:
            row, tables = _picture(sweep)
            shown(tables)
            if row["state"] not in _GOING_ON:
                return
            if pulse.is_silent(holder(sweep)):
                break
            time.sleep(_GLANCE_SECONDS)
    raise _silent(sweep)


def _silent(sweep: "SweepStore") -> typer.Exit:
    """Says that nobody can tell what a driver does, and returns what ends the verb."""
    from ressa.store.lease import PATIENCE_SECONDS

    say(
        f"its driver, on another machine or suspended, shows no life for {PATIENCE_SECONDS:.0f} s. "
        f"If it is dead, {command('resume', sweep)} takes over.",
        "error:",
        "bold red",
    )
    return typer.Exit(1)


def _picture(sweep: "SweepStore") -> tuple[dict[str, Any], list[Any]]:
    """What `watch` shows: how far the sweep is, and the trials that ended last."""
    import pandas

    from ressa.landscape import plain_table, sweep_row

    row = sweep_row(sweep)
    about = pandas.DataFrame(told(sweep, row))
    columns = ["trial", "state", "score_pruned", "score_repaired", "total_seconds", "finished"]
    ended = sweep.trials(columns).sort_values("finished", na_position="first").tail(_LAST)
    tables = [plain_table(about, headings=False)]
    if len(ended):
        tables.append(plain_table(ended[columns], width=width()))
    return row, tables


@app.command(epilog=examples("logs quickstart t003 --follow"))
@relayed
def logs(
    name: Name,
    trial: Annotated[
        str,
        typer.Argument(
            metavar="TRIAL", help="Name of the trial, such as t003.", show_default=False
        ),
    ],
    rank: Annotated[
        int | None, typer.Option("--rank", min=0, help="What one worker said. Default: all.")
    ] = None,
    attempt: Annotated[
        int | None,
        typer.Option("--attempt", min=0, help="What was said in one attempt. Default: the last."),
    ] = None,
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="Goes on until the attempt ends.")
    ] = False,
    store: StoreOption = "results",
) -> None:
    """Shows what a trial's workers said, and how it ended."""
    from ressa.store import get_log, logs_of
    from ressa.store.lease import PATIENCE_SECONDS, Pulse

    sweep = opened_store(store).sweep(name)
    pulse = Pulse(PATIENCE_SECONDS)
    while True:
        early = sweep.status() if follow else None  # first: it may write and end in between
        chosen = _chosen(logs_of(sweep, trial), attempt, rank)
        if chosen or early is None or trial not in early.running:
            break
        if pulse.is_silent(early.holder):
            raise _silent(sweep)
        time.sleep(_GLANCE_SECONDS)  # it has just begun
    if not chosen:
        raise _no_log(sweep, trial)
    number = chosen[0].attempt
    read: dict[LogName, int] = {}
    shown: LogName | None = None
    while True:
        status = sweep.status() if follow else None
        for one in _chosen(logs_of(sweep, trial), number, rank):
            content = get_log(sweep, trial, one)[read.get(one, 0) :]
            if content and one != shown and rank is None:
                write(f"── rank {one.rank}\n")
            if content:
                shown, read[one] = one, read.get(one, 0) + len(content)
                write(content.decode(errors="replace"))
        if status is None or trial not in status.running:
            break
        if pulse.is_silent(status.holder):
            raise _silent(sweep)
        time.sleep(_GLANCE_SECONDS)
    _say_how_it_ended(sweep, trial, number)


def _chosen(names: "list[LogName]", attempt: int | None, rank: int | None) -> "list[LogName]":
    if attempt is None:
        attempt = max((one.attempt for one in names), default=0)
    return [one for one in names if one.attempt == attempt and rank in (None, one.rank)]


def _no_log(sweep: "SweepStore", trial: str) -> NotFoundError:
    from ressa.store import logs_of

    known = [str(row) for row in sweep.proposals()["trial"].unique()]
    if trial not in known:
        return NotFoundError(
            f"sweep {sweep.name!r} has no trial {trial!r}.{did_you_mean(trial, known)}"
        )
    there = ", ".join(f"attempt {one.attempt} rank {one.rank}" for one in logs_of(sweep, trial))
    return NotFoundError(f"{trial} has no such log. It has: {there or 'none yet'}.")


def _say_how_it_ended(sweep: "SweepStore", trial: str, attempt: int) -> None:
    attempts = sweep.attempts()
    rows = attempts[(attempts["trial"] == trial) & (attempts["attempt"] == attempt)]
    for row in rows.to_dict("records"):
        if row["state"] in ("failed", "lost"):
            say(
                f"{trial} {row['state']} at {row['failure_stage']} ({row['failure_class']}): "
                f"{row['error']}"
            )
        else:
            say(f"{trial} {row['state']}")
