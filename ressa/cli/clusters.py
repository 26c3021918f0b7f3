"""Sends sweeps to a cluster and follows them there."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ressa.cli.app import File, OutputOption, Sets, app, examples, read, warn_of_idle_gpus
from ressa.cli.relay import Address, Wait, follow, results_of, terminal, there, told_address
from ressa.errors import SpecError
from ressa.terminal import Output, check_takes, say

if TYPE_CHECKING:
    from ressa.spec import Resources
    from ressa.sweep.jobs import Head


@app.command(
    epilog=examples("submit sweep.yaml --address http://HEAD:8265 --store /shared/results")
)
def submit(
    context: typer.Context,
    file: File,
    set_: Sets = None,
    store: Annotated[
        str | None,
        typer.Option(
            "--store",
            metavar="PLACE",
            help="Replaces the file's `store`: a folder that all nodes share, or a URL.",
        ),
    ] = None,
    wait: Wait = False,
    ship_code: Annotated[
        bool,
        typer.Option("--ship-code", help="Runs this checkout there, not the ressa it has."),
    ] = False,
    address: Address = None,
    output: OutputOption = Output.table,
) -> None:
    """Sends a sweep to a cluster, which runs it without this command. Sent again, it goes on."""
    if address is None:
        raise SpecError(
            "submit needs a cluster: --address http://HEAD:8265, or RESSA_ADDRESS. "
            "`ressa run` runs a sweep on this machine."
        )
    if wait:
        check_takes(output)
    from ressa.sweep.driver import growing
    from ressa.sweep.jobs import Head, Request
    from ressa.sweep.location import placed
    from ressa.sweep.versions import installed

    spec = read(file, set_, store).spec
    place = there(placed(spec.store))
    spec = spec.model_copy(update={"store": place})
    code = _checkout() if ship_code else None
    head = Head(address)
    _check_room(head, spec.resources)
    request = Request(
        words=["run", f"--output={output.value}"],
        spec=spec.to_yaml(),
        versions=installed(),
        drives=True,
        told_address=told_address(context),
        variables=terminal() if wait else {},
    )
    job, known = head.drive(
        request,
        sweep=spec.name,
        store=place,
        identity=spec.identity,
        growing=growing(spec),
        code=code,
    )
    results = replace(request, spec=None, drives=False, words=results_of(spec.name, place, output))
    follow(head, job, spec.name, wait=wait, results=results if known else None)


def _check_room(head: "Head", resources: "Resources") -> None:
    from ressa.sweep.places import check_fits

    places, grows = head.places()
    warn_of_idle_gpus(resources, sum(place.has.get("GPU", 0) for place in places))
    try:
        check_fits(resources, places)
    except SpecError as error:
        if not grows:
            raise
        say(f"{error}\nThe cluster adds nodes by itself; it must have such ones.", "warning:")


def _checkout() -> Path:
    import ressa

    root = Path(ressa.__file__).parents[1]
    if not (root / "pyproject.toml").is_file():
        raise SpecError(
            f"--ship-code sends a checkout, and this ressa is installed in {root}. Install the "
            "same version on the cluster, or run from a checkout."
        )
    return root
