import subprocess
import sys

import pytest

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
