"""The workers of one trial as torch.distributed sees them: joining, sharing out, agreeing.

Rank 0 decides and stores; the others follow. With one worker nothing is sent anywhere.
"""

import os
import socket
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed

from ressa.repair.distributed import rank_and_world_size
from ressa.store import Store

T = TypeVar("T")
R = TypeVar("R")

_PATIENCE = timedelta(minutes=10)


def set_threads(threads: int) -> None:
    """Gives this worker its share of the cores; results depend on it, so the spec says it."""
    torch.set_num_threads(threads)


def use_device(gpus: float) -> None:
    """Hides this machine's GPUs from a worker that was given none; call it before CUDA starts."""
    if not gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def device() -> torch.device:
    """Returns where this worker computes: on the GPU that Ray shows it, else on the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def free_port(address: str) -> int:
    """Finds a free port on one of this machine's addresses."""
    with closing(socket.socket()) as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def join(rank: int, world_size: int, address: str, port: int) -> None:
    """Joins the trial's process group; every value comes from Ray, none from a host name."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": "0"}
    if address.startswith("127."):
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    # LOCAL_RANK is 0 on every worker because Ray shows each its own GPU alone.
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(
        backend,
        init_method=f"tcp://{address}:{port}",
        rank=rank,
        world_size=world_size,
        timeout=_PATIENCE,
    )


def agree(value: T | None) -> T:
    """Returns rank 0's value on every worker; what the others give is ignored."""
    _, world_size = rank_and_world_size()
    box = [value]
    if world_size > 1:
        distributed.broadcast_object_list(box, src=0)
    return box[0]  # type: ignore[return-value]


def spread(items: Sequence[T], work: Callable[[Sequence[T]], list[R]]) -> list[R]:
    """Shares items out in runs, one a worker, and returns everyone's results in order."""
    rank, world_size = rank_and_world_size()
    cuts = [len(items) * index // world_size for index in range(world_size + 1)]
    own = work(items[cuts[rank] : cuts[rank + 1]])
    parts = [own]
    if world_size > 1:
        parts = [[] for _ in range(world_size)]
        distributed.all_gather_object(parts, own)
    return [result for part in parts for result in part]


def total(value: float) -> float:
    """Adds up the workers' values."""
    _, world_size = rank_and_world_size()
    values = [value] * world_size
    if world_size > 1:
        distributed.all_gather_object(values, value)
    return sum(values)


class Stages:
    """Work that is done once per store: found there by its key, or done now and left there."""

    def __init__(self, store: Store) -> None:
        self._store = store.stages

    def find(self, stage: str, key: str) -> bytes | None:
        """Returns what a stage left, or None."""
        return agree(self._look(stage, key))

    def once(self, stage: str, key: str, make: Callable[[], bytes]) -> bytes:
        """Returns what a stage left under its key, or makes it with all workers."""
        content = self.find(stage, key)
        if content is None:
            content = make()
            self.leave(stage, key, content)
        return content

    def leave(self, stage: str, key: str, content: bytes) -> None:
        """Stores what a stage made; if another trial was first, its bytes stay."""
        if rank_and_world_size()[0] == 0:
            self._store.put(stage, key, {"content": content})

    def _look(self, stage: str, key: str) -> bytes | None:
        if rank_and_world_size()[0] != 0:
            return None
        files = self._store.get(stage, key)
        return None if files is None else files["content"]
