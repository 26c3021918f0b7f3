"""What the command line writes: data to stdout, words to stderr."""

import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from enum import StrEnum
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ressa.console import SafeConsole, but_colours
from ressa.errors import RessaError, SpecError

if TYPE_CHECKING:
    import pandas

_UNCUT = 1000  # columns of a table that no terminal shows


class Output(StrEnum):
    """How rows are written."""

    table = "table"
    json = "json"
    csv = "csv"
    jsonl = "jsonl"
    parquet = "parquet"
    latex = "latex"


def prepare() -> None:
    """Lets a terminal without Unicode show ? where it lacks a character.

    What is written to a stream that was closed (>&-) goes nowhere, as Python's own print does, and
    what is logged is said like all words: a warning may quote a stranger's bytes.
    """
    sys.stdout, sys.stderr = sys.stdout or _nowhere(), sys.stderr or _nowhere()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    logging.lastResort = _Words(logging.WARNING)


class _Words(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            say(self.format(record))
        except OSError:
            self.handleError(record)


def _nowhere() -> TextIO:
    return os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")


def show(
    rows: "pandas.DataFrame | list[dict[str, Any]]",
    output: Output,
    *,
    headings: bool = True,
    title: str = "",
) -> None:
    """Writes rows; a table may do without headings, and have a title."""
    import pandas

    from ressa.landscape import json_lines, json_rows, latex_table, plain_table

    frame = pandas.DataFrame(rows)
    match output:
        case Output.json:
            write(json_rows(frame) + "\n")
        case Output.jsonl:
            write(json_lines(frame))
        case Output.csv:
            write(frame.to_csv(index=False))
        case Output.latex:
            write(latex_table(frame))
        case Output.parquet:
            _write_parquet(frame)
        case Output.table:
            if title:
                draw(Text(title, "bold"))
            draw(plain_table(frame, headings=headings, width=width()))


def _write_parquet(frame: "pandas.DataFrame") -> None:
    from ressa.store import parquet_bytes

    check_takes(Output.parquet)
    write_bytes(parquet_bytes(frame))


def check_takes(output: Output) -> None:
    """Refuses bytes that would go to a terminal."""
    if output is Output.parquet and sys.stdout.isatty():
        raise SpecError("-o parquet writes bytes, no text: send them to a file, > rows.parquet")


def draw(shown: RenderableType) -> None:
    """Writes a table or a map, laid out for where it goes."""
    console = _data()
    with _explained(), console.capture() as captured:
        console.print(shown)
    lines = captured.get().split("\n")
    put("\n".join(lines if console.is_terminal else map(str.rstrip, lines)))


@contextmanager
def live() -> Iterator[Callable[[Sequence[RenderableType]], None]]:
    """Shows data that change, each state once: on a terminal in place.

    A state that stays is not written again: of a sweep that is followed for days on a cluster all
    that was written is transferred at each look.
    """
    console = _data()
    place = Live(console=console, auto_refresh=False) if console.is_terminal else nullcontext()
    last = ""
    with place as shown:

        def again(parts: Sequence[RenderableType]) -> None:
            nonlocal last
            page = _data()
            with page.capture() as captured:
                page.print(*parts, sep="\n")
            text = captured.get()
            if text == last:
                return
            last = text
            if shown is not None:
                shown.update(Group(*parts), refresh=True)
            else:
                write("\n".join(map(str.rstrip, text.split("\n"))))

        yield again


def width() -> int:
    """Returns how many columns a table may have."""
    return _data().width


def write(text: str) -> None:
    """Writes data; on a terminal they may colour it, and do nothing else to it."""
    put(but_colours(text) if _data().is_terminal else text)


def put(text: str) -> None:
    """Writes text as it is, at once: a full disk shows here, not when Python ends."""
    with _explained():
        sys.stdout.write(text)
        sys.stdout.flush()


def write_bytes(content: bytes) -> None:
    """Writes data that are no text, or text that is encoded already."""
    with _explained():
        sys.stdout.flush()
        sys.stdout.buffer.write(content)
        sys.stdout.flush()


@contextmanager
def _explained() -> Iterator[None]:
    """Turns a stdout that takes nothing into one message, or into silence if its reader left."""
    try:
        yield
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        # A reader that closed the pipe, such as `head`, has what it wanted.
        if not isinstance(error, BrokenPipeError):
            raise RessaError(f"cannot write to stdout: {error.strerror}.") from error


def say(text: str, label: str = "", style: str = "") -> None:
    """Writes words as they are, after a coloured label if there is one."""
    said = Text.assemble((label, style), " " if label else "", text)
    words().print(said, soft_wrap=True)


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows how much of something is done, on a terminal as a bar; elsewhere says what goes on."""
    console = words()
    if not console.is_terminal:
        say(f"{what} …")
        yield lambda done: None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as shown:
        task = shown.add_task(what, total=total)
        yield lambda done: shown.update(task, completed=done)


def explain(facts: Iterable[tuple[str, str]]) -> None:
    """Writes words under their topics; a topic that goes on is named once."""
    table = Table.grid(padding=(0, 2))
    last = None
    for topic, text in facts:
        table.add_row(Text("" if topic == last else topic, "bold"), Text(text))
        last = topic
    console = words()
    with console.capture() as captured:
        console.print(table)
    try:
        sys.stderr.write("\n".join(map(str.rstrip, captured.get().split("\n"))))
        sys.stderr.flush()
    except OSError:
        console.on_broken_pipe()


def words() -> Console:
    """Returns where words go."""
    return SafeConsole(stderr=True, highlight=False)


def _data() -> Console:
    console = SafeConsole()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _UNCUT
    return console
