"""Stopping a sweep from elsewhere ends, whatever has become of its driver."""

import json
from pathlib import Path

from ressa.store import open_store
from ressa.sweep.steer import steer


def test_a_driver_that_died_after_it_was_asked_is_not_waited_for(tmp_path: Path) -> None:
    sweep = open_store(tmp_path / "store", create=True).create_sweep("s", "ressa: 1\n")
    objects = sweep.store.objects
    objects.put(f"{sweep.prefix}/lease/000001.json", json.dumps({"machine": "another"}).encode())
    beat = json.dumps({"beats": 3, "heard": "stop"}).encode()
    objects.put(f"{sweep.prefix}/lease/000001.beat", beat)
    answer = steer(sweep, "stop", wait=True, asked=lambda _: None, patience_seconds=0.1)
    assert answer.kind == "silent"
