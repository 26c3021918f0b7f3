"""The `ressa` command: each verb parses, calls and prints. Data go to stdout, words to stderr."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from ressa import __version__
from ressa.cli.app import app
from ressa.errors import MissingExtraError, RessaError, SpecError
from ressa.terminal import prepare, say, write

# Each registers its verbs; `ressa --help` lists them in this order.
from ressa.cli import running  # isort: skip
from ressa.cli import clusters  # isort: skip
from ressa.cli import reading  # isort: skip
from ressa.cli import judging  # isort: skip
from ressa.cli import following  # isort: skip
from ressa.cli import shipping  # isort: skip
from ressa.cli import upkeep  # isort: skip

__all__ = [
    "app",
    "clusters",
    "following",
    "judging",
    "main",
    "reading",
    "running",
    "shipping",
    "upkeep",
]


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
            "Install what runs trials, in a checkout of ressa: "
            "pip install '.[run]' -c constraints.txt"
        ) from error
