"""The workers of one trial as torch.distributed sees them: joining, sharing out, agreeing.

Rank 0 decides and stores; the others follow. With one worker nothing is sent anywhere.
"""

import os
import platform
import socket
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import psutil
import torch
from torch import Tensor, distributed
from torch.distributed.distributed_c10d import _set_pg_timeout

T = TypeVar("T")
R = TypeVar("R")

_TCPStore: Any = distributed.TCPStore  # type: ignore[attr-defined]
_TO_MEET = timedelta(minutes=10)
_TO_WORK = timedelta(hours=24)
"""How long a worker waits for the others in an exchange: hours may lie between the ends of their
shares of an evaluation. That one has died is noticed by the gang, in seconds, and not by this."""


def set_threads(threads: int) -> None:
    """Gives this worker its share of the cores; results depend on it, so the spec says it."""
    torch.set_num_threads(threads)


def use_device(gpus: float, *, deterministic: bool = False) -> None:
    """Hides this machine's GPUs from a worker that was given none; call it before CUDA starts.

    Args:
        gpus: of this worker.
        deterministic: whether torch refuses operations that add in no fixed order there.
    """
    if not gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return
    if deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # as cuBLAS asks for it
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(deterministic)


def device() -> torch.device:
    """Returns where this worker computes: on the GPU that Ray shows it, else on the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fits(size: int) -> bool:
    """Whether a model of so many bytes fits where each worker computes, with room to work.

    One that does not stays on the CPU and is pruned by sending one block after another to the GPU.
    Every worker of a trial asks at the same time and is told the same.
    """
    if not torch.cuda.is_available():
        return True
    free, _ = torch.cuda.mem_get_info()
    # What torch keeps for later is free too, though the driver counts it as taken.
    free += torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return total(1.3 * size < free) == rank_and_world_size()[1]


def machine() -> dict[str, Any]:
    """Returns the name of this machine and the types of its processor and of the GPU used here.

    Masks are bit-equal on one type of them.
    """
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"host": platform.node(), "cpu": _processor(), "gpu": gpu}


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
        return names[0]
    except (OSError, IndexError):
        return platform.processor() or os.uname().machine


def host(address: str) -> Any:
    """Opens a port of an address of this machine for workers to meet at; `.port` says which.

    It is open for as long as the result is kept: nobody can take it before they come.
    """
    # A port that torch opens by itself is one of all addresses, whoever can reach them.
    listening = socket.create_server((address, 0))
    port = listening.getsockname()[1]
    taken = listening.detach()
    return _TCPStore(address, port, is_master=True, wait_for_workers=False, master_listen_fd=taken)


def join(rank: int, world_size: int, address: str, port: int, *, own: str) -> None:
    """Joins the trial's process group; every value comes from Ray, none from a host name.

    Args:
        rank: of this worker. world_size: how many there are.
        address: of the machine on which somebody is `host`. port: the one that it says.
        own: this worker's address, by which the others reach it.
    """
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": "0"}
    interface = interface_of(own)
    if interface is not None:
        # Left to themselves both look up what the host's name resolves to, which may be loopback.
        os.environ |= {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": f"={interface}"}
    # LOCAL_RANK is 0 on every worker because Ray shows each its own GPU alone.
    distributed.init_process_group(
        _backend(),
        store=_TCPStore(address, port, is_master=False, timeout=_TO_MEET),
        rank=rank,
        world_size=world_size,
        timeout=_TO_MEET,
    )
    # NCCL connects in the first exchange: what keeps workers from each other shows now.
    distributed.all_reduce(torch.zeros(1, device=device()))
    _set_pg_timeout(_TO_WORK)


def _backend() -> str:
    """What carries tensors between workers; objects, of gigabytes at times, never pass a GPU."""
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"


def interface_of(address: str) -> str | None:
    """Returns the network interface that has an address; None if none has."""
    interfaces = psutil.net_if_addrs().items()
    return next(
        (name for name, has in interfaces if any(one.address == address for one in has)), None
    )


def ensure_process_group() -> None:
    """Joins a process group of one if there is none, as DeepSpeed wants one to exist.

    A gang of workers makes its group itself, before. Nothing is discovered (no MPI, no host file)
    and no fixed port is taken: the rendezvous is in memory, and gloo listens on the loopback
    interface only, on a port that the system picks.
    """
    os.environ.setdefault("LOCAL_RANK", "0")
    if distributed.is_initialized():
        return
    interface = os.environ.get("GLOO_SOCKET_IFNAME")
    os.environ["GLOO_SOCKET_IFNAME"] = "lo0" if sys.platform == "darwin" else "lo"
    try:
        distributed.init_process_group(
            _backend(),
            store=distributed.HashStore(),  # type: ignore[attr-defined]
            rank=0,
            world_size=1,
        )
    finally:  # a later group, of several machines, needs their real interface
        del os.environ["GLOO_SOCKET_IFNAME"]
        if interface is not None:
            os.environ["GLOO_SOCKET_IFNAME"] = interface


def rank_and_world_size() -> tuple[int, int]:
    """This worker's number and how many there are; (0, 1) without a process group."""
    if not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


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
    parts = gather(work(items[cuts[rank] : cuts[rank + 1]]))
    return [result for part in parts for result in part]


def gather(own: T) -> list[T]:
    """Returns what each worker gives, in the order of their numbers."""
    _, world_size = rank_and_world_size()
    parts = [own] * world_size
    if world_size > 1:
        distributed.all_gather_object(parts, own)
    return parts


def total(value: float) -> float:
    """Adds up the workers' values."""
    return sum(gather(value))


def anywhere(here: bool, device: torch.device) -> bool:
    """Says whether something is so on any worker."""
    return bool(over_workers(torch.tensor(float(here), device=device), "MAX").item())


def over_workers(value: Tensor, how: str = "SUM") -> Tensor:
    """Sums a small tensor over the workers, or takes the largest; in place.

    Args:
        value: on this worker's device; joined to a process group, of one at least.
        how: SUM or MAX.
    """
    if distributed.get_world_size() > 1:
        distributed.all_reduce(value, getattr(distributed.ReduceOp, how))
    return value


def sum_of_ones() -> tuple[str, float]:
    """Tries the exchange once and leaves the group; returns over what, and the workers counted."""
    ones = torch.ones(1 << 20, device=device())
    distributed.all_reduce(ones)
    distributed.destroy_process_group()
    return "nccl" if ones.is_cuda else "gloo", float(ones.mean())
