"""Who else works on this trial: the torch.distributed group, or a group of one."""

import os
import sys

import torch
from torch import distributed


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
            "nccl" if torch.cuda.is_available() else "gloo",
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
