"""Stores and sweeps for the tests of this folder."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings

from ressa.store import Store, SweepStore, open_store

SCALE = int(os.environ.get("RESSA_TEST_SCALE", "1"))
"""How many times as much is drawn as in the CI tier: 10 in `make chaos`."""


def many(examples: int) -> settings:
    """Of tests that draw whole stores, too large to be shrunk in reasonable time."""
    return settings(
        max_examples=examples * SCALE,
        deadline=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return open_store(tmp_path / "results", create=True)


@pytest.fixture
def sweep(store: Store) -> SweepStore:
    """A sweep that has its spec and nothing else."""
    return store.create_sweep("quickstart", "ressa: 1\nname: quickstart\n")


def commit_trial(
    sweep: SweepStore, trial: str, score: float, *, attempt: int = 0, epoch: int = 1
) -> None:
    """Commits what a trial commits: scores first, its trials row last."""
    which = {"task": "easy-vqa", "split": "validation", "image": "real", "metric": "exact_match"}
    rows = [
        which | {"state": "pruned", "value": score / 2},
        which | {"state": "repaired", "value": score},
    ]
    sweep.commit("scores", rows, trial=trial, attempt=attempt, epoch=epoch)
    number = int(trial[1:]) if trial[1:].isdecimal() else None
    row = {
        "role": "baseline" if number is None else "search",
        "number": number,
        "state": "succeeded",
        "metric": "easy-vqa.exact_match",
        "score": score,
    }
    sweep.commit("trials", [row], trial=trial, attempt=attempt, epoch=epoch)
