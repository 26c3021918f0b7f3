"""Memory runs out for real, in a process of its own: the repair goes on with less at once."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ressa.repair.memory import halved, is_out_of_memory, largest_that_fits

# What a child runs: `room` MiB above what it holds after a first step at one question at a time.
CHILD = """
import json, logging, resource, sys
import torch
from pruned import dense_vlm, prune, questions, repair_plan, state, task
from ressa.repair import attach, loop, merge, teacher_logits, train

torch.set_num_threads(1)
logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
"""


def test_half_is_rounded_up() -> None:
    assert [halved(size) for size in (2, 3, 7, 64)] == [1, 2, 4, 32]


def test_the_whole_is_tried_first_and_then_halves() -> None:
    tried: list[int] = []

    def attempt(size: int) -> None:
        tried.append(size)
        torch.empty(size * 2**50, dtype=torch.int8) if size > 3 else None

    assert largest_that_fits(14, attempt) == 2
    assert tried == [14, 7, 4, 2]
    with pytest.raises(RuntimeError, match="memory"):
        largest_that_fits(4, attempt, least=4)


def test_other_errors_are_not_taken_for_it() -> None:
    with pytest.raises(ValueError, match="wrong"):
        largest_that_fits(14, lambda size: _raise(ValueError("wrong")))
    assert not is_out_of_memory(RuntimeError("shapes differ"))
    assert is_out_of_memory(torch.OutOfMemoryError())
    assert is_out_of_memory(MemoryError())


def _raise(error: Exception) -> None:
    raise error
