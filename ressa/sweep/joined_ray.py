"""A Ray that others started and that we join as a driver: nothing of it is started or ended here.

When the driver goes away, however it does, Ray itself removes its actors and placement groups.
"""

import contextlib
import json
import logging
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ressa.errors import ClusterError, SpecError, first_line
from ressa.sweep.local_ray import OF_DRIVERS, OF_TRIALS, Session
from ressa.sweep.places import Place

_PATIENCE_SECONDS = 10.0
_GROUP = "ray.io/node-group"
"""The label that autoscalers put on the nodes that they add."""
TOKEN = (
    "Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the file with the cluster's token, the "
    "same as on its nodes."
)


def prepare() -> None:
    """Sets what Ray reads when it is imported; call it before anything imports Ray."""
    os.environ.update(OF_DRIVERS)
    use_token()


def use_token() -> None:
    """Turns token authentication on if there is a token; what the user said himself stays."""
    default = Path.home() / ".ray" / "auth_token"
    if default.exists() or {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def refused(address: str) -> ClusterError:
    """What to say when a cluster does not take our token, or wants one."""
    return ClusterError(f"the Ray at {address} refuses our token, or wants one. {TOKEN}")


@contextlib.contextmanager
def joined_ray(address: str, *, threads: int) -> Iterator[Session]:
    """Joins a Ray for the length of a `with` block.

    Args:
        address: host and port of its head, such as 10.0.0.1:6379; this machine is one of its nodes.
        threads: of each process of a trial.

    Raises:
        SpecError: that is no such address.
        ClusterError: no Ray answers there, or it refuses our token.
    """
    check_reachable(address)
    import ray

    folder = Path(tempfile.mkdtemp(prefix=f"ressa-{os.getpid()}-"))
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        with _explained(address):
            ray.init(
                address=address,
                log_to_driver=False,
                configure_logging=False,
                runtime_env={"env_vars": {**OF_TRIALS, "OMP_NUM_THREADS": str(threads)}},
            )
        yield Session(folder=folder)  # Ray ends a driver whose node or head is gone
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def check_reachable(address: str) -> None:
    """Looks whether anything answers: Ray itself would try for a minute, and end the process.

    Raises:
        SpecError: that is no such address.
        ClusterError: nothing answers.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise SpecError(
            "--address: the host and port of a Ray's head, such as 10.0.0.1:6379, got "
            f"{address!r}. To a dashboard's address, http://…, `ressa submit` sends a sweep; run "
            "and confirm need a node of the cluster that sees the store."
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE_SECONDS).close()
    except OSError as error:
        raise ClusterError(
            f"no Ray answers at {address}: {error.strerror or error}. `ray status` on its head "
            "says whether it runs; without --address, ressa starts one of its own."
        ) from error


@contextlib.contextmanager
def _explained(address: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if type(error).__name__ == "AuthenticationError" or "nauthenticated" in str(error):
            raise refused(address) from error
        reason = first_line(error)
        raise ClusterError(
            f"cannot join the Ray at {address}: {reason} This machine must be one of its nodes."
        ) from error


def places() -> list[Place]:
    """Lists the nodes of the Ray that this process is joined to, as they are now."""
    return [
        Place(name=node_name(node["NodeManagerAddress"], node["Labels"]), has=node["Resources"])
        for node in _nodes()
    ]


def free_places() -> list[Place]:
    """Lists the same nodes with what is free on each."""
    from ray._private import state

    reported: Any = state
    free: dict[str, dict[str, float]] = reported.available_resources_per_node()
    return [
        Place(
            name=node_name(node["NodeManagerAddress"], node["Labels"]),
            has=free.get(node["NodeID"], {}),
        )
        for node in _nodes()
    ]


def unplaced_groups() -> int:
    """Counts the placement groups that have no place yet, of whoever uses this Ray."""
    from ray.util import placement_group_table

    groups: Mapping[str, Mapping[str, Any]] = placement_group_table()
    return sum(group["state"] in ("PENDING", "RESCHEDULING") for group in groups.values())


def grows() -> bool:
    """Whether an autoscaler may add nodes to the Ray that this process is joined to."""
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray.experimental.internal_kv import _internal_kv_get

    report: bytes | None = _internal_kv_get(DEBUG_AUTOSCALING_STATUS)
    labels = [node["Labels"] for node in _nodes()]
    return is_autoscaled(json.loads(report) if report else None, labels)


def is_autoscaled(report: Mapping[str, Any] | None, labels: Sequence[Mapping[str, str]]) -> bool:
    """Whether nodes may be added by themselves: they then have a kind, which a person's have not.

    Args:
        report: of Ray's monitor, which runs without an autoscaler too and names each node's own id
            as its kind.
        labels: of each node.
    """
    active = ((report or {}).get("autoscaler_report") or {}).get("active_nodes") or {}
    kinds = [kind for kind in active if not re.fullmatch(r"node_[0-9a-f]+", kind)]
    return bool(kinds) or any(_GROUP in own for own in labels)


def _nodes() -> list[Mapping[str, Any]]:
    import ray

    joined: Any = ray
    return [node for node in joined.nodes() if node["Alive"]]


def node_name(address: str, labels: Mapping[str, str]) -> str:
    """Names a node for people: its group, if it has one, and its address."""
    return f"{labels[_GROUP]} {address}" if labels.get(_GROUP) else address
