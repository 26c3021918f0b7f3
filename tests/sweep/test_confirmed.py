"""`ressa confirm` with repair on a real Ray, killed on the way, to its verdicts."""

import json
from pathlib import Path

import pytest

from ressa.store import open_store
from tests.sweep.place import SMALL, make_place, running_sessions
from tests.sweep.waiting import wait_for

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]


CONFIRM = "confirm: [{task: easy-vqa, split: test, samples: 150}]\n"


def test_a_killed_confirmation_with_repair_goes_on_to_its_verdicts(tmp_path: Path) -> None:
    place = make_place(tmp_path, SMALL + CONFIRM)
    done = place.ressa("run", "small.yaml")
    assert done.returncode == 0, done.stderr
    told = place.ressa("confirm", "small", "--top", "1", "--seeds", "3", "--dry-run")
    assert told.returncode == 0, told.stderr
    assert "dense, repaired alike" in told.stderr
    driver = place.start("confirm", "small", "--top", "1", "--seeds", "3")
    store = open_store(place.folder / "results")
    wait_for(lambda: store.has_sweep("small-confirm"))
    wait_for(lambda: len(store.sweep("small-confirm").trials()) >= 2)
    driver.kill()
    driver.communicate()
    wait_for(lambda: not running_sessions())
    early = json.loads(place.ressa("verdict", "small", "-o", "json").stdout or "[]")
    assert all(row["answer"] == "not decided" for row in early)

    resumed = place.ressa("resume", "small-confirm")
    assert resumed.returncode == 0, resumed.stderr
    trials = store.sweep("small-confirm").trials().set_index("trial")
    again = trials[trials["role"] == "confirm"]
    assert (again["state"] == "succeeded").all()
    assert again["score_repaired"].notna().all()
    assert (again["pruned_nonzero"] == 0).all()
    searched = store.sweep("small").trials()
    assert not set(again["key"]) & set(searched["key"])
    runs = again.groupby(["vision_target", "language_target"]).size()
    assert (runs == 3).all()
    said = place.ressa("verdict", "small", "-o", "json")
    assert said.returncode == 0, said.stderr
    for row in json.loads(said.stdout):
        assert row["seeds"] == 3
        assert row["low_points"] <= row["difference_points"] <= row["high_points"]
