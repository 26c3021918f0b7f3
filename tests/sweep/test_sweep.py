"""Whole sweeps on a real Ray: what they commit, and what a kill, a signal or a fault leaves."""

import contextlib
import json
import os
import pty
import shutil
import signal
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from ressa.store import open_store
from tests.chaos.kills import targets
from tests.sweep.place import PATIENCE, SMALL, Place, make_place, results, running_sessions
from tests.sweep.waiting import wait_for

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1800)]


def finished(place: Place) -> int:
    try:
        return len(place.sweep.trials())
    except Exception:  # the store does not exist yet
        return 0


def test_a_sweep_commits_baselines_and_every_trial(undisturbed: Place) -> None:
    trials = undisturbed.sweep.trials().set_index("trial")
    assert list(trials.index) == ["dense", "dense-repaired", "t000", "t001", "t002"]
    assert (trials["state"] == "succeeded").all()
    assert trials.loc["dense", "sparsity"] == 0
    assert trials.loc["dense", "score_repaired"] != trials.loc["dense", "score_repaired"]  # null
    assert trials.loc["dense-repaired", "score_repaired"] > 0.9


def test_a_budget_is_met_to_the_weight(undisturbed: Place) -> None:
    trials = undisturbed.sweep.trials().query("role == 'search'")
    zeros = trials["vision_zeros"] + trials["language_zeros"]
    prunable = trials["vision_prunable"] + trials["language_prunable"]
    assert ((zeros - 0.6 * prunable).abs() <= 0.5).all()


def test_pruned_weights_are_counted_and_exactly_zero_after_the_merge(undisturbed: Place) -> None:
    trials = undisturbed.sweep.trials().set_index("trial")
    assert (trials["pruned_nonzero"] == 0).all()
    layers = undisturbed.sweep.layers()
    assert (layers["zeros"] == layers["requested_zeros"]).all()
    assert (layers["zeros_after_merge"] >= layers["zeros"]).all()
    per_trial = layers.groupby(["trial", "tower"])["zeros"].sum()
    for trial, row in trials.iterrows():
        assert per_trial[trial, "vision"] == row["vision_zeros"]
        assert per_trial[trial, "language"] == row["language_zeros"]


def test_floors_stand_beside_every_score(undisturbed: Place) -> None:
    trials = undisturbed.sweep.trials()
    assert trials[["floor_majority", "floor_dense_blank", "blank_pruned"]].notna().all().all()
    assert trials["floor_majority"].nunique() == 1


def test_purposes_are_disjoint_by_image(undisturbed: Place) -> None:
    data = undisturbed.sweep.data().set_index("purpose")
    images = [set(data.loc[name, "image_ids"]) for name in ("calibration", "repair", "evaluate")]
    assert sum(map(len, images)) == len(set.union(*images))


def test_repair_is_recorded_step_by_step(undisturbed: Place) -> None:
    curves = undisturbed.sweep.curves()
    assert set(curves["trial"]) == {"dense-repaired", "t000", "t001", "t002"}
    assert sorted(curves.query("trial == 't000'")["step"]) == [1, 2, 3, 4, 5, 6]


def test_data_go_to_stdout_and_words_to_stderr(undisturbed: Place) -> None:
    shown = undisturbed.ressa("results", "small", "-o", "json")
    assert len(json.loads(shown.stdout)) == 5
    assert not shown.stderr


def test_a_finished_sweep_run_again_is_done_at_once(undisturbed: Place) -> None:
    before, files = results(undisturbed.sweep), times(undisturbed.folder)
    for words in (["run", "small.yaml"], ["resume", "small"]):
        again = undisturbed.ressa(*words)
        assert again.returncode == 0
        assert "finished: nothing is left to run" in again.stderr
    assert results(undisturbed.sweep) == before
    assert times(undisturbed.folder) == files, "no lease is taken, no picture drawn again"


def times(folder: Path) -> dict[Path, int]:
    """When each file of the folder's store was written."""
    files = (path for path in (folder / "results").rglob("*") if path.is_file())
    return {path: path.stat().st_mtime_ns for path in files}


def test_another_spec_under_the_same_name_is_a_conflict(undisturbed: Place) -> None:
    clash = undisturbed.ressa("run", "small.yaml", "--set", "repair.steps=7")
    assert clash.returncode == 4
    assert "repair" in clash.stderr


def test_a_killed_sweep_resumes_to_the_same_rows(undisturbed: Place, place: Place) -> None:
    driver = place.start("run", "small.yaml")
    wait_for(lambda: finished(place) >= 2)
    kept = place.sweep.trials()[["trial", "attempt", "epoch"]].astype(str).to_dict("records")
    driver.kill()
    driver.communicate()
    wait_for(lambda: not running_sessions())

    resumed = place.ressa("resume", "small")
    assert resumed.returncode == 0, resumed.stderr
    assert results(place.sweep) == results(undisturbed.sweep)
    after = place.sweep.attempts()[["trial", "attempt", "epoch"]].astype(str).to_dict("records")
    assert all(row in after for row in kept)
    assert len(after) == 5, "no finished trial ran again"
    proposals = place.sweep.proposals().drop_duplicates("trial")
    expected = undisturbed.sweep.proposals().drop_duplicates("trial")
    assert list(proposals["point"]) == list(expected["point"])


def test_two_workers_come_to_the_same_masks_and_nearly_the_same_scores(
    undisturbed: Place, tmp_path: Path
) -> None:
    text = SMALL.replace("parallel: 2", "parallel: 1").replace("trials: 3", "trials: 1")
    place = make_place(tmp_path, text + "resources: {workers: 2}\nbaselines: []\n")
    done = place.ressa("run", "small.yaml")
    assert done.returncode == 0, done.stderr
    two = place.sweep.trials().set_index("trial").loc["t000"]
    one = undisturbed.sweep.trials().set_index("trial").loc["t000"]
    assert (one["workers"], two["workers"]) == (1, 2)
    assert two["mask_hash"] == one["mask_hash"]
    assert two["score_pruned"] == pytest.approx(one["score_pruned"], abs=0.01)
    assert two["score_repaired"] == pytest.approx(one["score_repaired"], abs=0.02)
    curves = [p.sweep.curves().query("trial == 't000'")["loss"] for p in (undisturbed, place)]
    assert list(curves[1]) == pytest.approx(list(curves[0]), rel=1e-3)


ENDLESS = ("--set", "repair.steps=5000")
"""Makes sure that a sweep is not over before it is interrupted."""


def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(place: Place) -> None:
    driver = place.start("run", "small.yaml", *ENDLESS)
    wait_for(lambda: finished(place) >= 1)
    driver.send_signal(signal.SIGINT)
    _, stderr = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 130
    assert "ressa resume small" in stderr
    assert "Traceback" not in stderr
    assert place.sweep.status().state == "interrupted"


def test_on_a_terminal_the_board_moves_and_the_last_words_stay(place: Place) -> None:
    ours, theirs = pty.openpty()
    shown: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):  # the other end is closed
            while chunk := os.read(ours, 4096):
                shown.append(chunk)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    driver = place.start("run", "small.yaml", *ENDLESS, stderr=theirs)
    os.close(theirs)
    wait_for(lambda: b"repair" in b"".join(shown) and finished(place) >= 1)
    driver.send_signal(signal.SIGINT)
    driver.communicate(timeout=PATIENCE)
    reader.join(timeout=PATIENCE)
    os.close(ours)
    text = b"".join(shown).decode()
    assert driver.returncode == 130
    assert "/5 trials" in text
    assert "\x1b[2K" not in text[text.index("ressa resume small") :], "nothing wipes it away"


def test_a_second_driver_is_refused_while_the_first_lives(place: Place) -> None:
    driver = place.start("run", "small.yaml", *ENDLESS)
    try:
        wait_for(lambda: finished(place) >= 1)
        second = place.ressa("run", "small.yaml", *ENDLESS)
        assert second.returncode == 4
        assert str(driver.pid) in second.stderr
    finally:
        driver.send_signal(signal.SIGTERM)
        driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 130


def test_a_trial_whose_process_dies_is_lost_and_can_be_redone(place: Place) -> None:
    driver = place.start("run", "small.yaml", "--set", "retry.attempts=1")
    wait_for(lambda: finished(place) >= 2)
    os.kill(targets(driver, "trial")[0], signal.SIGKILL)
    _, stderr = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 1, stderr
    lost = place.sweep.trials().query("state == 'lost'")
    assert len(lost) == 1
    assert lost.iloc[0]["failure_class"] == "node"

    redone = place.ressa("resume", "small", "--failed")
    assert redone.returncode == 0, redone.stderr
    assert (place.sweep.trials()["state"] == "succeeded").all()
    assert len(place.sweep.attempts()) == 6


def test_a_diverging_repair_is_a_failed_row_and_the_sweep_goes_on(tmp_path: Path) -> None:
    text = SMALL.replace("trials: 3", "trials: 1").replace("steps: 6", "steps: 6\n  clip: 0")
    place = make_place(tmp_path, text + "baselines: [dense]\n")
    done = place.ressa("run", "small.yaml", "--set", "repair.learning_rate=1e30")
    assert done.returncode == 1
    trials = place.sweep.trials().set_index("trial")
    assert trials.loc["dense", "state"] == "succeeded"
    failed = trials.loc["t000"]
    assert (failed["state"], failed["failure_class"]) == ("failed", "numeric")
    assert failed["failure_stage"] == "repair"
    assert "learning rate" in failed["error"]


def test_a_store_that_takes_no_rows_is_one_message(place: Place) -> None:
    (place.folder / "results").write_text("a file, not a folder")
    refused = place.ressa("run", "small.yaml")
    assert refused.returncode == 5
    assert refused.stderr.count("error:") == 1
    assert "Traceback" not in refused.stderr


def test_a_ray_that_cannot_start_is_one_message_and_leaves_nothing(place: Place) -> None:
    # Real, and seen on clusters: a socket's path must be shorter than 108 characters.
    long = place.folder / ("x" * 100)
    long.mkdir()
    refused = replace(place, variables={"TMPDIR": str(long)}).ressa("run", "small.yaml")
    assert refused.returncode == 5, refused.stderr
    assert refused.stderr.count("Ray could not start") == 1
    assert "TMPDIR=/tmp" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not list(long.iterdir())


def test_a_full_disk_ends_the_sweep_with_one_message_and_loses_nothing(place: Place) -> None:
    results_folder = place.folder / "results"
    results_folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(results_folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount a small file system")
    try:
        full = place.ressa("run", "small.yaml")
        assert full.returncode == 5, full.stderr
        assert full.stderr.count("No space left on device") == 1
        assert "Traceback" not in full.stderr
        committed = place.sweep.trials()
        assert (committed["state"] == "succeeded").all()
        subprocess.run(["mount", "-o", "remount,size=50m", str(results_folder)], check=True)
        resumed = place.ressa("resume", "small")
        assert resumed.returncode == 0, resumed.stderr
        assert len(place.sweep.attempts()) == 5
    finally:
        subprocess.run(["umount", str(results_folder)], check=True)


def test_a_copied_store_says_the_same(undisturbed: Place, tmp_path: Path) -> None:
    shutil.copytree(undisturbed.folder / "results", tmp_path / "elsewhere")
    copy = open_store(tmp_path / "elsewhere").sweep("small")
    assert results(copy) == results(undisturbed.sweep)
