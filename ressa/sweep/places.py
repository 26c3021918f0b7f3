"""Where a trial's workers can go: what they ask for, what nodes have, whether that ever fits."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ressa.errors import SpecError
from ressa.spec import Resources

_GIB = 2**30
_LISTED = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A machine, as Ray counts what it has: CPU, GPU, memory in bytes, accelerator_type:…"""

    name: str
    has: Mapping[str, float]


def node_address() -> str:
    """Returns this node's address, as Ray knows it."""
    import ray

    return str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]


def meeting_place() -> tuple[str, Any]:
    """Opens a port of this node for processes to meet at; returns its address and `workers.host`'s.

    They can meet as long as the latter is kept.
    """
    from ressa import workers

    address = node_address()
    return address, workers.host(address)


def bundle(resources: Resources) -> dict[str, float]:
    """Returns what one worker of a trial asks of a node, in Ray's names and units."""
    asks = {"CPU": float(resources.cpus_per_worker), "GPU": float(resources.gpus_per_worker)}
    asks["memory"] = float(math.ceil(resources.memory_gib * _GIB))
    if resources.accelerator is not None:
        # Any small share: it only has to be a node that has one.
        asks[f"accelerator_type:{resources.accelerator}"] = 0.001
    return {name: amount for name, amount in asks.items() if amount}


def room(asks: Mapping[str, float], place: Place) -> int:
    """How many workers an empty node holds."""
    # A hair's breadth, so that three thirds of a GPU fit one.
    return min(int(place.has.get(name, 0.0) / amount + 1e-9) for name, amount in asks.items())


def check_fits(resources: Resources, places: Sequence[Place]) -> None:
    """Refuses a trial that can never be placed, even with all nodes idle.

    Raises:
        SpecError: its workers are more than the nodes hold.
    """
    asks = bundle(resources)
    rooms = {place.name: room(asks, place) for place in places}
    if sum(rooms.values()) >= resources.workers:
        return
    wanted = f"{resources.workers} {'worker' if resources.workers == 1 else 'workers'}"
    each = " each" if resources.workers > 1 else ""
    lines = [_fault(place, asks, rooms[place.name]) for place in places[:_LISTED]]
    if len(places) > _LISTED:
        lines.append(f"… and {len(places) - _LISTED} nodes more")
    raise SpecError(
        f"resources: a trial wants {wanted} with {said(asks)}{each}, and there is room for "
        f"{sum(rooms.values())}, with nothing else running:\n  "
        + "\n  ".join(lines or ["no node is there"])
        + "\nLower resources, or add a node that is large enough."
    )


def _fault(place: Place, asks: Mapping[str, float], fits: int) -> str:
    short = [name for name, amount in asks.items() if place.has.get(name, 0.0) < amount]
    has = said({name: place.has.get(name, 0.0) for name in asks})
    if short:
        return f"{place.name} is too small: it has {has}"
    return f"{place.name} holds {fits}: it has {has}"


def said(amounts: Mapping[str, float]) -> str:
    """Says amounts of resources in words: 4 CPU, 1 GPU, 16 GiB."""
    return ", ".join(_said(name, amount) for name, amount in amounts.items())


def _said(name: str, amount: float) -> str:
    if name == "memory":
        return f"{amount / _GIB:.3g} GiB memory"
    if name.startswith("accelerator_type:"):
        return f"{'a' if amount else 'no'} {name.partition(':')[2]}"
    return f"{amount:g} {name}"
