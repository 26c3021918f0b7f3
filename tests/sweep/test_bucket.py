"""A sweep whose store is a bucket: killed and resumed, over HTTP to an S3 server."""

from pathlib import Path

import pytest

from ressa.store import SweepStore, open_store
from tests.s3 import SECRET, s3_server
from tests.s3_server import BUCKET
from tests.sweep.place import Place, make_place, results, running_sessions
from tests.sweep.waiting import wait_for

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1500)]

TEXT = """
ressa: 1
name: small
model: pocket-llava
space:
  vision_sparsity: {choices: [0.2, 0.4, 0.6, 0.8]}
  language_sparsity: {choices: [0.5]}
search: {sampler: grid, trials: 4, parallel: 2, seed: 0}
prune: {method: magnitude}
repair: {method: none}
evaluate: [{task: easy-vqa, split: validation, samples: 60}]
"""


def test_a_sweep_in_a_bucket_is_killed_resumed_and_ends_as_one_in_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    there.mkdir()
    here.mkdir()
    in_a_folder = make_place(here, TEXT)
    done = in_a_folder.ressa("run", "small.yaml")
    assert done.returncode == 0, done.stderr
    with s3_server() as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        bucket = f"s3://{BUCKET}/results"
        place = Place(make_place(there, TEXT).folder, variables)

        def sweep() -> SweepStore:
            return open_store(bucket).sweep("small")

        driver = place.start("run", "small.yaml", "--store", bucket)
        wait_for(lambda: open_store(bucket).sweeps() and len(sweep().trials()) >= 2, 600)
        driver.kill()
        said = "".join(driver.communicate())
        wait_for(lambda: not running_sessions())
        resumed = place.ressa("resume", "small", "--store", bucket)
        assert resumed.returncode == 0, resumed.stderr
        assert results(sweep()) == results(in_a_folder.sweep)
        assert len(sweep().attempts()) >= 5
        assert sweep().status().state == "finished"
        assert SECRET not in said + resumed.stdout + resumed.stderr
        assert {path.name for path in there.iterdir()} == {"small.yaml"}  # nothing is kept here
