"""Verbs that hand on what a sweep found: models with their certificate."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ressa.cli.app import Name, StoreOption, app, examples, opened_store, own_store
from ressa.cli.relay import relayed
from ressa.errors import NotFoundError
from ressa.terminal import say


@app.command(epilog=examples("export quickstart t003 --to model"))
def export(
    name: Name,
    trial: Annotated[
        str,
        typer.Argument(
            metavar="TRIAL", help="Name of the trial, such as t003.", show_default=False
        ),
    ],
    to: Annotated[
        Path,
        typer.Option("--to", metavar="DIR", help="The new folder.", show_default=False),
    ],
    form: Annotated[
        Literal["merged", "adapters"],
        typer.Option(
            "--format",
            help="The merged model for transformers, or masks and adapters beside the dense one.",
        ),
    ] = "merged",
    store: StoreOption = "results",
) -> None:
    """Writes a trial's model with a certificate of its zeros. Plain transformers loads it."""
    from ressa.sweep.shipping import export as ship

    sweep = own_store(store).sweep(name)
    made = ship(sweep, trial, to, form=form, told=lambda text: say(f"{text} …"))
    size = sum(file["bytes"] for file in made["files"].values()) / 2**20
    pruned = sum(tower["pruned"] for tower in made["towers"].values())
    say(
        f"{to}: {size:.1f} MiB, {pruned:,} pruned weights, all exactly zero; "
        f"{made['checked']['how']}"
    )
    say(f"digest of its certificate: {made['digest']}\nanybody can check it: ressa verify {to}")


@app.command(epilog=examples("verify model"))
def verify(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="What `ressa export` wrote.", show_default=False)
    ],
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            metavar="FOLDER",
            help="Where the dense model of exported adapters is, if not where it was.",
        ),
    ] = None,
    trust_remote_code: Annotated[
        bool,
        typer.Option("--trust-remote-code", help="Lets the model's own Python code run."),
    ] = False,
) -> None:
    """Counts an export's zeros again, offline. Faults are named, and exit 7."""
    if not folder.is_dir():  # said before torch is imported
        raise NotFoundError(f"there is no folder {folder}.")
    from ressa.export import verify as check

    said = check(folder, base=base, trust_remote_code=trust_remote_code)
    pruned = sum(tower["pruned"] for tower in said["towers"].values())
    say(
        f"{folder} is what its certificate says: {len(said['files'])} files, "
        f"{len(said['matrices'])} pruned matrices, {pruned:,} pruned weights, all exactly zero.\n"
        f"digest of its certificate: {said['digest']}"
    )


@app.command(epilog=examples("report quickstart --out report.html"))
@relayed
def report(
    name: Name,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The page to write.")] = Path(
        "report.html"
    ),
    watch: Annotated[
        bool,
        typer.Option(
            "--watch", help="Keeps it fresh until Ctrl-C, and serves it to this machine alone."
        ),
    ] = False,
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Where --watch serves it; 0: any free.")
    ] = 0,
    store: StoreOption = "results",
) -> None:
    """Writes a sweep as one page. Map, trials, curves, layers, failures. It needs no network."""
    import time

    from ressa.landscape.report import gather, page, serve, write_page

    sweep = opened_store(store).sweep(name)

    def gathered() -> dict[str, Any]:
        from ressa.sweep.confirm import confirmations, searched
        from ressa.sweep.driver import current_spec

        origin = searched(sweep)
        asked = current_spec(origin).verdict
        return gather(
            sweep,
            confirming=confirmations(origin),
            margin=asked.margin,
            confidence=asked.confidence,
        )

    say("fitting the map …")
    if not watch:
        write_page(out, page(gathered()))
        say(f"wrote {out}")
        return
    with serve(
        gathered, port=port, changed=lambda data: write_page(out, page(data)), failed=say
    ) as address:
        say(f"{address} shows {sweep.name} and stays fresh, as does {out}; Ctrl-C ends it.")
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            return
