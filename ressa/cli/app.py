"""The command line's frame: the app, options that several verbs take, and what they share."""

import json
import os
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ressa.cli.relay import ADDRESS
from ressa.errors import NotFoundError
from ressa.terminal import Output, draw, say, show, width

if TYPE_CHECKING:
    from ressa.spec import LoadedSpec, Resources, SweepSpec
    from ressa.store import Store, SweepStore


app = typer.Typer(
    help="Split the sparsity of a vision-language model between vision and language, repair it, "
    "and map the landscape.",
    epilog="Exit codes: 0 done · 1 trials failed or a run-time error · 2 bad usage or sweep file · "
    "3 not found · 4 conflict · 5 store or Ray unreachable, full or not writable · "
    "7 an export is not what it says · 130 interrupted. Data go to stdout, words to stderr.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def examples(*lines: str) -> str:
    """What stands at the end of a verb's help: command lines, as they are."""
    return "\b\nExamples:\n" + "\n".join(f"  ressa {line}" for line in lines)


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
RayOption = Annotated[
    str | None,
    typer.Option(
        "--address", metavar="HOST:PORT", help="A Ray to join, of which this machine is a node."
    ),
]
OutputOption = Annotated[Output, typer.Option("-o", "--output", help="How rows are written.")]


@dataclass
class Client:
    """Who asked, when a verb runs on a cluster for somebody elsewhere: see `answer`."""

    address: str | None = None
    """The cluster's address, where command lines to go on with must name it."""
    ray: str | None = None
    """The Ray that the verb runs on, for one that looks at it."""
    taken: Callable[[], None] = lambda: None
    """Tells that a driver holds its sweep, and goes on by itself."""


client = Client()


def read(file: Path, sets: list[str] | None, store: str | None = None) -> "LoadedSpec":
    """Reads a sweep file; warnings are said. `--set` and `--store` change its fields."""
    from ressa.spec import load_spec

    of_store = [] if store is None else [f"store={json.dumps(store)}"]
    loaded = load_spec(file, [*(sets or ()), *of_store])
    for warning in loaded.warnings:
        say(warning, "warning:", "yellow")
    return loaded


def load(file: Path, sets: list[str] | None, store: str | None = None) -> "SweepSpec":
    """Reads a sweep file and checks it against its model's layers as well."""
    loaded = read(file, sets, store)
    if loaded.inventory is None:
        from ressa.spec import check_inventory
        from ressa.sweep.plan import inventory_of

        say(f"reading the layers of {loaded.spec.model.id} …")
        loaded.refuse(check_inventory(loaded.spec, inventory_of(loaded.spec.model)))
    return loaded.spec


def warn_of_idle_gpus(resources: "Resources", gpus: float) -> None:
    """Warns where a sweep would leave all GPUs of a machine or cluster idle."""
    if gpus and not resources.gpus_per_worker:
        there = "is 1 GPU" if gpus == 1 else f"are {gpus:g} GPUs"
        say(
            f"there {there}, and the sweep runs on CPUs: resources.gpus_per_worker is 0.",
            "warning:",
            "yellow",
        )


def opened_store(store: str) -> "Store":
    """Opens a store that exists; what opens it is imported no sooner."""
    from ressa.store import open_store

    return open_store(store)


def own_store(store: str) -> "Store":
    """Opens a store for a verb that no cluster does for us.

    Raises:
        NotFoundError: there is none; with a cluster in the environment that is said too.
    """
    try:
        return opened_store(store)
    except NotFoundError as error:
        if ADDRESS not in os.environ:
            raise
        raise NotFoundError(
            f"{error} {ADDRESS} does not count here: confirm and export work on the store itself. "
            "Run them where it can be read, such as on a node of the cluster."
        ) from error


MOST_ROWS = 500
"""More rows of a table nobody reads; the other forms have them all."""


def show_results(
    sweep: "SweepStore",
    output: Output,
    *,
    where: str | None = None,
    sort: Sequence[str] = (),
    columns: Sequence[str] = (),
) -> None:
    """Writes a sweep's results; as a table, no more of them than are read."""
    from ressa.landscape import chosen, render_table, repair_order, results_table
    from ressa.landscape.allocations import without_run

    frame = results_table(sweep)
    found = chosen(frame, where=where, sort=sort, columns=columns)
    if output is not Output.table:
        show(found, output)
        return
    shown = found.head(MOST_ROWS)
    if columns:
        show(shown, output)
    else:
        draw(render_table(shown, width()))
    if not columns and (without_run(found["options"]) != found["options"]).any():
        split = "budget, vision_target, language_target, runs, pruned, repaired, spread"
        sql = f"SELECT {split} FROM allocations WHERE sweep = '{sweep.name}' AND role = 'search'"
        say(f'means over runs: ressa query "{sql}" {shlex.join(_there(sweep))}')
    if len(found) > len(shown):
        say(f"the first {len(shown)} of {len(found):,} trials; -o csv writes all of them.")
    order = None if where or columns else repair_order(frame)
    if order is not None:
        say(
            f"the order before repair and after it: Kendall's {order}; its interval and the pairs "
            f"that repair swaps: {command('order', sweep)}"
        )


def told(sweep: "SweepStore", row: "dict[str, Any]") -> list[dict[str, Any]]:
    """A `sweep_row` for a terminal, a line a thing: the best in percent, or how to ask for it."""
    from ressa.landscape import best_words

    runs = f", mean of {row['best_runs']} runs" if (row["best_runs"] or 1) > 1 else ""
    options = [] if row["front"] is None else ["--pareto"]
    ask = "" if row["best"] is not None else f": {command('best', sweep, *options)}"
    words = best_words(row)
    known = row | {"best": words and f"{words}{runs}{ask}"}
    hidden = ("best_trial", "best_runs", "lines", "front")
    return [
        {"what": name, "value": value}
        for name, value in known.items()
        if value is not None and name not in hidden
    ]


def marked(edge: object, vision: str, language: str) -> tuple[str, str]:
    """A split, with ≤ or ≥ at the sparsity that is the least or the largest that was searched."""
    tower, _, end = edge.partition("_") if isinstance(edge, str) else ("", "", "")
    sign = "≤" if end == "low" else "≥"
    return sign * (tower == "vision") + vision, sign * (tower == "language") + language


def say_edges(edges: Iterable[object], spec: "SweepSpec") -> None:
    """Says of splits that lie at the edge of what was searched what to widen."""
    axes = {axis.name for axis in spec.dimensions}
    wanted = {}
    for edge in edges:
        if isinstance(edge, str):
            tower, _, end = edge.partition("_")
            own, other = f"{tower}_sparsity", f"{_OTHER[tower]}_sparsity"
            is_solved = own not in axes and other in axes  # from the other one, by the budget
            wanted[f"space.{other if is_solved else own}"] = (end == "low") != is_solved
    if wanted:
        words = " and ".join(
            f"{axis} to {'lower' if is_low else 'higher'} values" for axis, is_low in wanted.items()
        )
        say(f"≤, ≥: the edge of the search, beyond which a better split may lie: widen {words}")


_OTHER = {"vision": "language", "language": "vision"}


def listed(text: str) -> list[str]:
    """The names in a list with commas between them."""
    return [name.strip() for name in text.split(",") if name.strip()]


def command(verb: str, sweep: "SweepStore", *options: str) -> str:
    """A command line to go on with, which works from any folder."""
    return shlex.join(["ressa", verb, sweep.name, *options, *_there(sweep)])


def _there(sweep: "SweepStore") -> list[str]:
    """The options that say where a sweep is."""
    where = ["--store", sweep.store.location]
    return where if client.address is None else [*where, "--address", client.address]
