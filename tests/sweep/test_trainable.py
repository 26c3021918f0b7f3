"""What an error of a trial is called, and so what is done about it."""

import pytest
import torch

from ressa.errors import DamagedStage, FullStore, RepairError, StoreError
from ressa.sweep.trainable import describe_failure


def test_a_damaged_stage_is_made_again_by_the_next_attempt() -> None:
    found = describe_failure(DamagedStage("stage mask k: a is damaged"), "prune")
    assert (found.kind, found.stage) == ("node", "prune")


def test_one_workers_store_trouble_is_told_from_a_store_that_is_full() -> None:
    found = describe_failure(StoreError("node-7 does not see the store"), "start")
    assert (found.kind, found.stage) == ("node", "store")
    full = describe_failure(FullStore("No space left on device"), "prune")
    assert (full.kind, full.stage) == ("code", "store")


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_only_what_ran_out_in_a_step_of_repair_counts_as_repairs(error: Exception) -> None:
    """The ledger answers failures at "repair" with half the micro-batch."""
    step = describe_failure(RepairError("out of memory at step 3", "oom"), "repair")
    assert (step.kind, step.stage) == ("oom", "repair")
    beside = describe_failure(error, "repair")
    assert (beside.kind, beside.stage) == ("oom", "repair, outside its steps")
    assert describe_failure(error, "merge").stage == "merge"
