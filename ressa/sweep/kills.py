"""Whether the system ended a process for lack of memory: asked of the machine on which it ran."""

from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_PATIENCE_SECONDS = 20.0  # a process starts for it; of a machine that is gone there is no answer


def this_node() -> str:
    """Returns the node on which this process runs, as Ray names it."""
    return str(ray.get_runtime_context().get_node_id())


def memory_kills() -> int:
    """Counts the processes that this machine has ended for lack of memory, as far as it tells."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))


def memory_kills_on(node: str) -> int:
    """Counts the same on a node; 0 if it is gone or does not answer."""
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    remote: Any = ray.remote(num_cpus=0, max_retries=0)(memory_kills)
    try:
        return int(
            ray.get(remote.options(scheduling_strategy=there).remote(), timeout=_PATIENCE_SECONDS)
        )
    except (RayError, GetTimeoutError):
        return 0
