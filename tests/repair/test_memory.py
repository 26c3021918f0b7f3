"""Memory runs out for real, in a process of its own: the repair goes on with less at once."""

import ctypes
import json
import os
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from pruned import dense_vlm, prune, questions, repair_plan, repaired, task, teacher_logits

from ressa.errors import RepairError
from ressa.memory import halved, is_out_of_memory
from ressa.repair import attach, loop
from ressa.repair.batches import RepairData
from ressa.repair.fitting import largest_that_fits, probe_micro_batch
from ressa.spec import Repair
from ressa.workers import use_device

PLAN = repair_plan(batch_size=1536, steps=2)
LITTLE = 0.15
"""GiB; a step of all 1536 questions at once takes 0.38, one of 384 takes 0.1."""


def give_back_at_once() -> None:
    """Lets freed tensors leave this process, so that what is free does not depend on the past."""
    m_mmap_threshold = -3  # as glibc's malloc.h has it
    assert ctypes.CDLL(None).mallopt(m_mmap_threshold, 1 << 16) == 1


def leave_room(gib: float) -> None:
    """Lets this process have so much more memory than now, and nothing beyond."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    size = pages * resource.getpagesize() + int(gib * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))


def repair_in_little_room(folder: str, plans: list[Repair]) -> None:
    """Repairs by each plan; after the first step there is too little memory for another."""
    use_device(0)  # it is this process's main memory that is limited
    give_back_at_once()
    torch.set_num_threads(1)
    take = loop._take_step

    def take_step(*args: Any) -> Any:
        leave_room(LITTLE if taken else 2)
        taken.append(True)
        return take(*args)

    loop._take_step = take_step
    for number, plan in enumerate(plans):
        taken: list[bool] = []
        curve, _ = repaired(plan)
        Path(folder, str(number)).write_text(json.dumps(curve))
        leave_room(2)
    vlm = dense_vlm()
    teacher = teacher_logits(vlm, questions(), task())
    adapters = attach(vlm.model, prune(vlm), vlm.towers, PLAN, seed=0)
    data = RepairData(vlm, questions(), task(), teacher, PLAN, seed=0)
    leave_room(LITTLE)
    Path(folder, "probed").write_text(str(probe_micro_batch(vlm, adapters, data)))


def in_little_room(rank: int, folder: str, plans: list[Repair]) -> None:
    """What torch spawns: it hands on a number first."""
    repair_in_little_room(folder, plans)


@pytest.mark.skipif(
    not os.path.exists("/proc/self/statm") or not hasattr(ctypes.CDLL(None), "mallopt"),
    reason="limits memory as Linux and glibc do",
)
def test_a_repair_that_runs_out_of_memory_goes_on_with_less_at_once(tmp_path: Path) -> None:
    plans = [PLAN.model_copy(update={"zero_stage": stage}) for stage in (1, 3)]
    torch.multiprocessing.spawn(in_little_room, args=(str(tmp_path), plans), nprocs=1)
    wanted, _ = repaired(PLAN)
    for number, _ in enumerate(plans):
        curve = json.loads((tmp_path / str(number)).read_text())
        assert curve[0]["micro_batch"] == 1536 > curve[1]["micro_batch"]
        for point, reference in zip(curve, wanted, strict=True):
            for name in ("loss", "ce", "kl", "gradient_norm", "learning_rate"):
                assert point[name] == pytest.approx(reference[name], rel=1e-5)
    assert int((tmp_path / "probed").read_text()) < 1536


def test_half_is_rounded_up() -> None:
    assert [halved(size) for size in (2, 3, 7, 64)] == [1, 2, 4, 32]


def test_the_whole_is_tried_first_and_then_halves() -> None:
    tried: list[int] = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size < 4

    assert largest_that_fits(14, fits) == 2
    assert tried == [14, 7, 4, 2]
    with pytest.raises(RepairError, match="one question at a time") as raised:
        largest_that_fits(14, lambda size: False)
    assert raised.value.failure == "oom"


def test_a_lack_of_memory_is_told_from_other_errors() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**50, dtype=torch.int8)
    assert is_out_of_memory(raised.value)
    assert is_out_of_memory(torch.OutOfMemoryError())
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes differ"))
    assert not is_out_of_memory(ValueError("out of memory"))
