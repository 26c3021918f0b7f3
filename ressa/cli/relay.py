"""Lets verbs work on a cluster: with `--address` they run there, as a short job, and answer here.

A verb becomes such a one by `@relayed` above its function; nothing of it has to know. Its options
travel as they were given, but for the store: with an address it must be named, since `results` in a
working directory means nothing on another machine.
"""

import codecs
import functools
import inspect
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ressa.console import but_displays
from ressa.errors import ClusterError, SpecError, writing
from ressa.terminal import Output, check_takes, put, say, write, write_bytes

if TYPE_CHECKING:
    from ressa.sweep.jobs import Frame, Head, Request

ADDRESS = "RESSA_ADDRESS"
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="URL",
        envvar=ADDRESS,
        help="A cluster to ask: its dashboard, http://HEAD:8265.",
        show_default=False,
    ),
]

Wait = Annotated[
    bool,
    typer.Option("--wait", help="With --address: follows it to its end, and ends with its result."),
]


def relayed(verb: Callable[..., None]) -> Callable[..., None]:
    """Gives a verb `--address`."""
    own = inspect.signature(verb)

    @functools.wraps(verb)
    def call(context: typer.Context, address: str | None, **given: Any) -> None:
        if address is None:
            verb(**given)
        elif given.get("watch"):
            raise SpecError(
                "--watch serves its page on the machine it runs on, which with --address is the "
                "cluster's head. Without --watch the page is written here, once; or call it where "
                "the store can be read, without --address and RESSA_ADDRESS."
            )
        else:
            relay(address, context)

    def keyword(name: str, kind: Any, **rest: Any) -> inspect.Parameter:
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, **rest)

    parameters = [
        keyword("context", typer.Context),
        *(one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own.parameters.values()),
        keyword("address", Address, default=None),
    ]
    call.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {one.name: one.annotation for one in parameters} | {"return": None}
    del call.__wrapped__  # typer would read that one's annotations
    return call


def relay(address: str, context: typer.Context) -> None:
    """Runs the verb of a context on a cluster and passes on what it says, to its exit code."""
    from ressa.sweep.jobs import Head, Request
    from ressa.sweep.versions import installed

    check_takes(Output(context.params.get("output", Output.table)))
    out = context.params.get("out")
    words = words_of(context)
    head = Head(address)
    job = head.ask(
        Request(
            words=words,
            versions=installed(),
            told_address=told_address(context),
            variables=terminal(),
        )
    )
    try:
        folder, file = (Path(out).parent, Path(out).name) if out else (Path(), None)
        code = passed_on(head.frames(job), folder, file=file)
    except KeyboardInterrupt:
        head.end(job)
        raise
    head.forget(job)
    if code:
        raise typer.Exit(code)


def passed_on(
    frames: Iterable["Frame"], folder: Path, *, file: str | None = None, until: str = "exit"
) -> int | None:
    """Writes an answer's output here, and the file that was asked for; returns its exit code.

    Args:
        frames: of the answer.
        folder: where the file goes.
        file: its name; None asks for none, and whatever else the cluster sends is not written.
        until: "taken" returns None as soon as a driver holds its sweep.

    Raises:
        StoreError: a file cannot be written here.
        ClusterError: all went well there, and the file that was asked for did not come.
    """
    shown = {kind: _shown() for kind in ("out", "err")}
    came = False
    for frame in frames:
        if frame.kind == until == "taken":
            return None
        if frame.kind == "out" and sys.stdout.isatty():
            put(shown["out"](frame.content))
        elif frame.kind == "out":
            write_bytes(frame.content)  # it may be a Parquet file
        elif frame.kind == "err":
            sys.stderr.write(shown["err"](frame.content))
            sys.stderr.flush()
        elif frame.kind == "file" and frame.name == file:
            with writing(folder / file):
                (folder / file).write_bytes(frame.content)
            came = True
        elif frame.kind == "exit":
            code = int(frame.content)
            if not code and file is not None and not came:
                raise ClusterError(f"the cluster sent no {file!r}, though all went well there.")
            return code
    raise AssertionError("frames end with an exit or an error")


def _shown() -> Callable[[bytes], str]:
    """Makes of what comes piece by piece what a terminal may be shown.

    Whatever runs there may have written it; a character or a sequence may be cut between two.
    """
    decoder, cut = codecs.getincrementaldecoder("utf-8")("replace"), ""

    def shown(content: bytes) -> str:
        nonlocal cut
        text, cut = but_displays(cut + decoder.decode(content))
        return text

    return shown


def words_of(context: typer.Context) -> list[str]:
    """Returns the command line of a verb with what its options came to here."""
    options, arguments = [], []
    for parameter in context.command.params:
        name = parameter.name
        value = context.params.get(name) if name is not None else None
        if name is None or name == "address" or value is None or not _was_given(context, name):
            continue
        if name == "store":
            value = there(str(value))
        elif name == "out":
            value = Path(value).name  # it is fetched from there
        values = value if isinstance(value, list | tuple) else [value]
        if parameter.param_type_name == "argument":
            arguments += [str(one) for one in values]
        elif isinstance(value, bool):
            options.append(parameter.opts[0] if value else parameter.secondary_opts[0])
        else:
            options += [f"{_long(parameter.opts)}={one}" for one in values]
    if context.params.get("store") is not None and not _was_given(context, "store"):
        there("")
    return [*_verb(context), *options, *(["--", *arguments] if arguments else [])]


def _verb(context: typer.Context) -> list[str]:
    """The words that name a verb, such as stages gc."""
    if context.parent is None:
        return []
    return [*_verb(context.parent), str(context.info_name)]  # type: ignore[arg-type]


def _was_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is None or source.name not in ("DEFAULT", "DEFAULT_MAP")


def _long(names: Iterable[str]) -> str:
    return next(name for name in names if name.startswith("--"))


def there(store: str) -> str:
    """Returns a store's place if it means the same on a cluster.

    Raises:
        SpecError: it is relative to a working directory.
    """
    plain = store.rstrip("/")  # jobs are told apart by it
    if "://" in plain or Path(plain).is_absolute():
        return plain
    given = f", got {store!r}" if store else ""
    raise SpecError(
        "with --address the store must be named as the cluster's nodes see it: the absolute path "
        f"of a folder that they share, or a URL such as s3://bucket/prefix{given}. Give --store, "
        "or set RESSA_STORE."
    )


def told_address(context: typer.Context) -> str | None:
    """Returns the address if it was typed, so that hints repeat it; from the environment not."""
    source = context.get_parameter_source("address")
    typed = source is not None and source.name == "COMMANDLINE"
    return context.params.get("address") if typed else None


def terminal() -> dict[str, str]:
    """What the far side must know to write for this terminal; nothing if stdout is a pipe."""
    told = {name: os.environ[name] for name in ("COLUMNS", "NO_COLOR") if name in os.environ}
    if not sys.stdout.isatty():
        return told
    size = shutil.get_terminal_size()
    shown = {"COLUMNS": str(size.columns), "LINES": str(size.lines), "FORCE_COLOR": "1"}
    names = ("TERM", "COLORTERM")
    return {**shown, **{name: os.environ[name] for name in names if name in os.environ}, **told}


def resume_there(
    address: str,
    context: typer.Context,
    name: str,
    store: str,
    *,
    redoes: bool,
    wait: bool,
    output: Output,
) -> None:
    """Starts a driver on a cluster that goes on with a stored sweep, unless one is at it.

    Raises:
        ConflictError: one is at it, and trials are to be redone, which it does not hear of.
    """
    from ressa.sweep.jobs import Head, Request
    from ressa.sweep.versions import installed

    if wait:
        check_takes(output)
    words = [word for word in words_of(context) if word != "--wait"]
    head = Head(address)
    request = Request(
        words=words,
        versions=installed(),
        drives=True,
        told_address=told_address(context),
        variables=terminal() if wait else {},
    )
    place = there(store)
    job, known = head.drive(request, sweep=name, store=place, redoes=redoes)
    results = replace(request, drives=False, words=results_of(name, place, output))
    follow(head, job, name, wait=wait, results=results if known else None)


def results_of(name: str, store: str, output: Output) -> list[str]:
    """The command line that writes a sweep's results."""
    return ["results", name, f"--store={store}", f"--output={output.value}"]


def follow(
    head: "Head", job: str, name: str, *, wait: bool, results: "Request | None" = None
) -> None:
    """Says the sweep's name once its driver holds it, or follows it to its end.

    Args:
        head: of the cluster.
        job: the driver's.
        name: of the sweep.
        wait: whether it is followed.
        results: of a driver that another command started, what asks for the results at its end:
            its own have the form that the other command wanted.
    """
    if results is not None:
        say(f"{name} runs there already, as job {job}.")
    frames = head.frames(job)
    try:
        if wait and results is not None:
            code = passed_on((one for one in frames if one.kind != "out"), Path())
            passed_on(head.frames(head.ask(results)), Path())
        elif wait:
            code = passed_on(frames, Path())
        else:
            unread = (one for one in frames if one.kind != "out")  # stdout is the name's
            code = passed_on(unread, Path(), until="taken")
            if not code:
                write(f"{name}\n")
            if code is None:
                say(f"it runs at {head.address} as job {job}, with or without this machine.")
            elif not code:
                say(f"{name} was finished before: nothing runs.")
    except KeyboardInterrupt:
        say(f"\n{name} runs on, as job {job}; `ressa cancel {name}` would end it.")
        raise
    if code:
        raise typer.Exit(code)
