import socket
import subprocess
import sys

import pytest
import torch
from torch import distributed

from ressa.workers import fits, host, join, use_device

ASK = """
import os, torch
from ressa.workers import use_device
use_device({gpus}, deterministic={asked})
print(
    torch.are_deterministic_algorithms_enabled(),
    torch.utils.deterministic.fill_uninitialized_memory,
    os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    os.environ.get("CUDA_VISIBLE_DEVICES"),
)
"""


@pytest.mark.parametrize(
    ("gpus", "asked", "said"),
    [
        (1.0, True, "True False :4096:8 None"),
        (1.0, False, "False True None None"),
        (0.0, True, "False True None "),  # on a CPU everything adds in a fixed order
    ],
)
def test_a_gpu_adds_in_a_fixed_order_where_that_is_asked(gpus, asked, said):
    done = subprocess.run(
        [sys.executable, "-c", ASK.format(gpus=gpus, asked=asked)],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "/usr/bin:/bin"},
    )
    assert done.stdout == f"{said}\n"


def show_gpu(monkeypatch: pytest.MonkeyPatch, free: int, reserved: int, allocated: int) -> None:
    """Lets torch report a GPU's memory: what is free on it, and torch's own part of the rest."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, 80))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: reserved)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: allocated)


def test_what_torch_keeps_for_later_is_free_for_the_next_model(monkeypatch):
    show_gpu(monkeypatch, free=4, reserved=70, allocated=0)
    assert fits(50)
    show_gpu(monkeypatch, free=4, reserved=70, allocated=20)
    assert not fits(50)


def test_workers_meet_at_no_other_address_than_their_own():
    meeting = host("127.0.0.1")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", meeting.port))


def ask_as_worker(rank: int, port: int) -> None:
    use_device(0)
    join(rank, 2, "127.0.0.1", port, own="127.0.0.1")
    with pytest.MonkeyPatch.context() as patch:
        show_gpu(patch, free=(80, 40)[rank], reserved=0, allocated=0)
        assert fits(30) and not fits(50)
    distributed.destroy_process_group()


def test_a_model_that_fits_on_one_workers_gpu_alone_is_on_none():
    meeting = host("127.0.0.1")
    torch.multiprocessing.spawn(ask_as_worker, args=(meeting.port,), nprocs=2)
