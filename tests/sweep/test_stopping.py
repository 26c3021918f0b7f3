"""Early stopping on a real Ray: who is stopped is the store's word, whoever was killed."""

from pathlib import Path

import pytest

from tests.sweep.place import SMALL, Place, make_place, running_sessions
from tests.sweep.waiting import wait_for

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]

HALVED = (
    SMALL.replace('choices: [0.5, 0.7, "2:4"]', "choices: [0.4, 0.5, 0.6, 0.7, 0.8]")
    .replace("sampler: tpe, trials: 3, parallel: 2", "sampler: grid, parallel: 2, window: 2")
    .replace("samples: 32", "samples: 16")
    + "early_stopping: {rungs: [0, 2, 4], reduction: 2, samples: 60}\nbaselines: []\n"
)


def found(place: Place) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    rungs = place.sweep.read("rungs").sort_by([("number", "ascending"), ("step", "ascending")])
    trials = place.sweep.trials()[["trial", "state", "stopped_step", "score", "score_pruned"]]
    columns = ["number", "step", "value", "threshold", "stopped"]
    return rungs.select(columns).to_pylist(), trials.astype(str).to_dict("records")


def reached(place: Place) -> int:
    try:
        return place.sweep.read("rungs").num_rows
    except Exception:  # the store does not exist yet
        return 0


def test_a_killed_sweep_stops_the_same_trials_at_the_same_rungs(tmp_path: Path) -> None:
    (tmp_path / "calm").mkdir()
    (tmp_path / "killed").mkdir()
    calm, killed = (make_place(tmp_path / name, HALVED) for name in ("calm", "killed"))
    done = calm.ressa("run", "small.yaml")
    assert done.returncode == 0, done.stderr

    driver = killed.start("run", "small.yaml")
    wait_for(lambda: reached(killed) >= 4)
    driver.kill()
    driver.communicate()
    wait_for(lambda: not running_sessions())
    resumed = killed.ressa("resume", "small")
    assert resumed.returncode == 0, resumed.stderr
    assert found(killed) == found(calm)

    rungs, trials = found(calm)
    states = {row["trial"]: row["state"] for row in trials}
    assert set(states.values()) == {"succeeded", "stopped"}
    stopped = {f"t{row['number']:03d}" for row in rungs if row["stopped"]}
    assert stopped == {trial for trial, state in states.items() if state == "stopped"}
    curves = calm.sweep.curves().groupby("trial")["step"].agg(list)
    ends = calm.sweep.trials().set_index("trial")["stopped_step"].fillna(6)
    for trial, end in ends.items():
        assert list(curves.get(trial, [])) == list(range(1, int(end) + 1))
