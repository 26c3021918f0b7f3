"""What `ressa doctor --address` looks at: whether every node of a cluster can run trials.

It joins the cluster's Ray and asks a process on each node, which takes no core and no GPU from
anybody: so it may run beside sweeps.
"""

import os
import platform
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ressa.doctor import Finding, examine
from ressa.errors import NotFoundError, RessaError, first_line
from ressa.store import Store, open_store
from ressa.sweep.joined_ray import joined_ray, node_name
from ressa.sweep.places import meeting_place, node_address
from ressa.sweep.versions import differences, installed

_PATIENCE_SECONDS = 300.0
_MEETING_SECONDS = 60.0
_CLOCK_SECONDS = 5.0
_ALL = "all nodes"


class Examiner:
    """A process on a node that looks at it."""

    def findings(self) -> list[Finding]:
        """Looks at what `ressa doctor` looks at on one machine."""
        return list(examine())

    def about(self) -> tuple[dict[str, str], float]:
        """Returns the versions of what is installed, and what its clock says."""
        return installed(), time.time()

    def reach(self, store: str, token: str) -> str | None:
        """Says why this node cannot use a store in which the head left a token; None if it can."""
        try:
            objects = open_store(store).objects
            if objects.get(f".doctor-{token}") is None:
                return "it does not see what the head wrote there: the folder is not shared"
            objects.check_writable()
        except RessaError as error:
            return str(error)
        return None

    def meet_at(self) -> tuple[str, int]:
        """Offers an address and an open port of this node to meet at."""
        address, self._meeting = meeting_place()
        return address, self._meeting.port

    def sum(self, rank: int, size: int, address: str, port: int) -> tuple[str, float]:
        """Joins the others and sums ones with them; returns over what, and the sum."""
        from ressa import workers

        workers.join(rank, size, address, port, own=node_address())
        return workers.sum_of_ones()


def examine_cluster(address: str, store: str | None) -> Iterator[tuple[str, Finding]]:
    """Looks at a cluster: yields the name of a node, or that it is about all, and a finding.

    Args:
        address: host and port of its Ray.
        store: whose reach and rights are looked at too.

    Raises:
        ClusterError: it cannot be joined.
    """
    with joined_ray(address, threads=1):
        import ray

        joined: Any = ray
        nodes = [node for node in joined.nodes() if node["Alive"]]
        names = [node_name(node["NodeManagerAddress"], node["Labels"]) for node in nodes]
        yield _ALL, _token()
        yield _ALL, _leftovers()
        examiners = [_start(node["NodeID"]) for node in nodes]
        yield from _of_each(names, [one.findings.remote() for one in examiners])
        for name, one in zip(names, examiners, strict=True):
            before = time.time()
            about = _get(one.about.remote())  # of a process that has started: see above
            if not isinstance(about, Exception):
                versions, clock = about
                yield name, _versions(versions)
                yield name, _clock(clock - (before + time.time()) / 2)
        if store is not None:
            yield from _store(store, names, examiners)
        if len(nodes) > 1:
            yield _ALL, _meeting(examiners)


def _start(node: str) -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote: Any = ray.remote(Examiner)
    where = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
    return remote.options(num_cpus=0, scheduling_strategy=where).remote()


def _get(call: Any, seconds: float = _PATIENCE_SECONDS) -> Any:
    """Waits for an answer; an error is one too."""
    import ray

    try:
        return ray.get(call, timeout=seconds)
    except Exception as error:
        return error


def _of_each(names: Sequence[str], calls: Sequence[Any]) -> Iterator[tuple[str, Finding]]:
    for name, call in zip(names, calls, strict=True):
        answer = _get(call)
        if isinstance(answer, Exception):
            answer = [
                Finding(
                    what="ressa",
                    ok=False,
                    found=_line(answer),
                    advice="Install this ressa there, in the environment that its Ray runs in.",
                )
            ]
        for finding in answer:
            yield name, finding


def _token() -> Finding:
    from ray._private.authentication import authentication_utils

    enabled: Any = authentication_utils
    ok = bool(enabled.is_token_auth_enabled())
    return Finding(
        what="token",
        ok=ok,
        found="wanted of everybody" if ok else "not wanted: whoever reaches a port runs code",
        advice=""
        if ok
        else "Start Ray with RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH on every node.",
    )


def _leftovers() -> Finding:
    """Placement groups whose job has ended: they hold cores that nobody uses."""
    from ray.util.state import list_jobs, list_placement_groups

    jobs: list[Any] = list_jobs(limit=10_000)
    groups: list[Any] = list_placement_groups(detail=True, limit=10_000)
    ended = {job["job_id"] for job in jobs if job["status"] in ("SUCCEEDED", "FAILED", "STOPPED")}
    left = [
        group["placement_group_id"]
        for group in groups
        if group["state"] in ("CREATED", "PENDING") and group["creator_job_id"] in ended
    ]
    return Finding(
        what="leftovers",
        ok=not left,
        found=f"{len(left)} placement groups of jobs that have ended" if left else "none",
        advice="" if not left else f"Remove them: ray.util.remove_placement_group ({left[0]} …).",
    )


def _versions(theirs: Mapping[str, str]) -> Finding:
    found = differences(installed(), theirs)
    return Finding(
        what="versions",
        ok=not found,
        found=f"as on {platform.node()}" if not found else "; ".join(found),
        advice="" if not found else "Install the same on every node, through one constraints.txt.",
    )


def _clock(seconds: float) -> Finding:
    ok = abs(seconds) < _CLOCK_SECONDS
    return Finding(
        what="clock",
        ok=ok,
        found=f"{seconds:+.1f} s beside {platform.node()}",
        advice="" if ok else "Sweeps run all the same; times in rows are off. Start an NTP client.",
    )


def examine_store(place: str) -> Finding:
    """Whether this machine can keep a store there: whether it exists, takes files, has room.

    A folder that does not exist is not made.
    """
    advice = "Name a store that can be written to, with --store."
    try:
        objects = open_store(place).objects
        token = f".doctor-{uuid.uuid4().hex}"
        objects.put(token, b"ressa doctor was here")
        objects.delete(token)
    except NotFoundError:
        absent = Path(os.path.expanduser(place)).absolute()
        above = next(one for one in absent.parents if one.is_dir())
        if os.access(above, os.W_OK):
            said = f"{place} does not exist yet: a run makes it; {_room(above)}"
            return Finding(what="store", ok=True, found=said, advice="")
        said = f"{place} does not exist, and {above} cannot be written to"
        return Finding(what="store", ok=False, found=said, advice=advice)
    except RessaError as error:
        return Finding(what="store", ok=False, found=str(error), advice=advice)
    room = "" if objects.folder is None else f"; {_room(objects.folder)}"
    return Finding(what="store", ok=True, found=f"{place} can be written to{room}", advice="")


def _room(folder: Path) -> str:
    return f"{shutil.disk_usage(folder).free / 2**30:,.1f} GiB of its disk are free"


def _store(
    place: str, names: Sequence[str], examiners: Sequence[Any]
) -> Iterator[tuple[str, Finding]]:
    token = uuid.uuid4().hex
    try:
        opened: Store = open_store(place, create=True)
        opened.objects.put(f".doctor-{token}", b"ressa doctor was here")
    except RessaError as error:
        advice = "Name a store that the head can write to, with --store."
        yield platform.node(), Finding(what="store", ok=False, found=str(error), advice=advice)
        return
    try:
        calls = [one.reach.remote(place, token) for one in examiners]
        for name, call in zip(names, calls, strict=True):
            why = _get(call)
            why = _line(why) if isinstance(why, Exception) else why
            yield (
                name,
                Finding(
                    what="store",
                    ok=why is None,
                    found=f"{place} can be read and written" if why is None else why,
                    advice=""
                    if why is None
                    else "Mount the same folder on every node, or use a store at a URL, with the "
                    "credentials in the environment that Ray was started in.",
                ),
            )
    finally:
        opened.objects.delete(f".doctor-{token}")


def _meeting(examiners: Sequence[Any]) -> Finding:
    size = len(examiners)
    met = _get(examiners[0].meet_at.remote())
    wrong: str | None = _line(met) if isinstance(met, Exception) else None
    over = "gloo"
    if wrong is None:
        calls = [one.sum.remote(rank, size, *met) for rank, one in enumerate(examiners)]
        for call in calls:
            answer = _get(call, _MEETING_SECONDS)
            if isinstance(answer, Exception):
                wrong = wrong or _line(answer)
            else:
                over, mean = answer
                wrong = wrong or (None if mean == size else "the sum is wrong")
    return Finding(
        what="all-reduce",
        ok=wrong is None,
        found=f"one process on each of {size} nodes, {over}"
        + ("" if wrong is None else f": {wrong}"),
        advice=""
        if wrong is None
        else "Gangs inside one node still run (placement: pack). Nodes must reach each other on "
        "all ports: look at firewalls and security groups.",
    )


def _line(error: Exception) -> str:
    cause = getattr(error, "cause", None) or error
    return first_line(cause)
