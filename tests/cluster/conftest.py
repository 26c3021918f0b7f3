"""A cluster of three machines, and what a sweep finds on one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.nodes import OUTSIDE, SHARED, Cluster, why_not, within
from tests.s3 import s3_server
from tests.sweep.place import Place, make_place

GANG = f"""
ressa: 1
name: small
model: pocket-blip2
baselines: []
space:
  vision_sparsity: {{choices: [0.5]}}
budget: [0.6]
search: {{trials: 1, parallel: 1, window: 2, seed: 0}}
prune:
  calibration: {{samples: 32}}
repair:
  steps: 6
  batch_size: 30
  warmup_steps: 1
  checkpoint_steps: 2
  data: {{split: train, samples: 200}}
evaluate: [{{task: easy-vqa, split: validation, samples: 60}}]
resources: {{workers: 2}}
store: {SHARED}/results
"""
"""A sweep of one trial by two workers, which machines of one core cannot hold alone."""

_WHY_NOT = why_not()


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Cluster]:
    """Three machines of one core, still off; the sweep's file lies on the laptop."""
    if _WHY_NOT is not None:
        pytest.skip(_WHY_NOT)
    with Cluster(tmp_path / "cluster") as made:
        made.add("one")
        made.add("two")
        (made.folder / "small.yaml").write_text(GANG)
        yield made


@pytest.fixture
def cluster(machines: Cluster) -> Cluster:
    """The three machines with Ray and a token."""
    machines.start_all()
    return machines


@pytest.fixture
def bucket(machines: Cluster) -> Iterator[Cluster]:
    """The three machines with Ray, a token, and an S3 server that all of them reach."""
    with s3_server(OUTSIDE, within(machines.switch)) as variables:
        machines.own.update({name: value for name, value in variables.items() if name != "HOME"})
        machines.start_all()
        yield machines


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The same sweep on this machine alone, with as many workers."""
    place = make_place(tmp_path_factory.mktemp("alone"), GANG.replace(f"{SHARED}/", ""))
    done = place.ressa("run", "small.yaml")
    assert done.returncode == 0, done.stderr
    return place
