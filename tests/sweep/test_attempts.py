"""Trials that are killed, told to end, stuck or hopeless; sweeps stopped from elsewhere."""

import os
import shutil
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from ressa.store import holder, open_store
from tests.chaos.kills import Kill, strike, targets
from tests.sweep.place import PATIENCE, SMALL, Place, make_place, results, running_sessions
from tests.sweep.waiting import wait_for

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1800)]


def test_a_killed_trial_is_tried_again_and_goes_on_from_its_checkpoint(
    undisturbed: Place, place: Place
) -> None:
    """One is killed while it writes a checkpoint, one is told to end while it trains."""
    driver = place.start("run", "small.yaml")
    # The second checkpoint's folder: the first one is whole.
    assert strike(place, driver, Kill(target="working trial", moment="checkpoint write", nth=4))
    preempted = Kill(
        target="working trial", moment="DeepSpeed step", number=signal.SIGTERM, delay=0.3
    )
    assert strike(place, driver, preempted)
    _, stderr = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 0, stderr
    attempts = place.sweep.attempts()
    again = attempts[attempts["state"] != "succeeded"]
    assert set(again["state"]) == {"lost"}
    assert sorted(again["failure_class"]) == ["node", "preempted"]
    reasons = [r for r in place.sweep.proposals()["reason"] if isinstance(r, str)]
    assert all("of 3" in reason for reason in reasons)  # both may hit one trial
    assert len(attempts) == 7
    assert results(place.sweep) == results(undisturbed.sweep)
    curves = place.sweep.curves().query("trial == 't000'")
    assert sorted(curves["step"]) == [1, 2, 3, 4, 5, 6], "no gap, no repeat"
    assert not list((place.folder / "results/stages").glob("repair-checkpoint/*"))


def test_a_stuck_trial_is_ended_and_a_hopeless_sweep_says_its_last_words(place: Place) -> None:
    limits = "limits={failed_trials: 1, trial_hours: 0.014}"  # 50 seconds
    driver = place.start("run", "small.yaml", "--set", limits, "--set", "search.parallel=1")
    # Not while it starts: Tune has no actor to end yet.
    (stuck,) = wait_for(lambda: targets(driver, "working trial"))
    os.kill(stuck, signal.SIGSTOP)
    _, stderr = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 1, stderr
    assert "limits.failed_trials is 1: the sweep ends with 1 of 5 trials" in stderr
    assert "ressa resume small --failed" in stderr
    assert "Traceback" not in stderr
    (row,) = place.sweep.trials().to_dict("records")
    assert (row["state"], row["failure_class"]) == ("failed", "timeout")
    assert not Path(f"/proc/{stuck}").exists()
    assert place.sweep.status().state == "hopeless"
    again = place.ressa("resume", "small")
    assert again.returncode == 1
    assert "limits.failed_trials" in again.stderr


def hold(driver: "subprocess.Popen[str]") -> list[int]:
    """Stops a sweep's first trial at its work, so that it is not over before the driver hears."""
    held = wait_for(lambda: targets(driver, "working trial"))
    for pid in held:
        os.kill(pid, signal.SIGSTOP)
    return held


def test_a_sweep_is_stopped_and_cancelled_from_another_shell_and_goes_on(
    undisturbed: Place, place: Place
) -> None:
    assert place.ressa("stop", "small").returncode == 3
    # One at a time, so that the one that is held is all that runs; proposals are those of two.
    one = ("--set", "search.parallel=1", "--set", "search.window=4")
    driver = place.start("run", "small.yaml", *one)
    held = hold(driver)
    wait_for(lambda: place.sweep.status().running)
    stopping = place.start("stop", "small", "--wait")
    wait_for(lambda: holder(place.sweep).heard == "stop")
    for pid in held:
        os.kill(pid, signal.SIGCONT)
    _, stderr = stopping.communicate(timeout=PATIENCE)
    assert stopping.returncode == 0, stderr
    assert "small is stopped" in stderr
    _, stderr = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 130
    assert "as `ressa stop` asked" in stderr
    assert (place.sweep.trials()["state"] == "succeeded").all()
    done = len(place.sweep.trials())
    assert 1 <= done < 5

    driver = place.start("resume", "small")
    hold(driver)
    wait_for(lambda: place.sweep.status().running)
    cancelled = place.ressa("cancel", "small")
    assert cancelled.returncode == 0, cancelled.stderr
    assert "small is cancelled" in cancelled.stderr
    driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 130
    states = set(place.sweep.trials()["state"])
    assert "cancelled" in states
    assert states <= {"succeeded", "cancelled"}
    assert place.ressa("cancel", "small").returncode == 0, "nothing to cancel is fine"

    told = place.ressa("resume", "small", "--dry-run")
    assert "it was cancelled" in told.stderr
    assert told.returncode == 0
    assert place.sweep.status().state == "cancelled", "a dry run does nothing"
    assert place.ressa("resume", "small").returncode == 0
    assert results(place.sweep) == results(undisturbed.sweep)


def test_when_ray_itself_is_killed_the_driver_says_so_and_the_sweep_goes_on(
    undisturbed: Place, place: Place
) -> None:
    driver = place.start("run", "small.yaml")
    assert strike(place, driver, Kill(target="raylet", moment="DeepSpeed step"))
    _, stderr = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 5, stderr
    assert "Ray's raylet on this machine has ended" in stderr
    assert "Traceback" not in stderr
    assert not running_sessions()
    states = place.sweep.attempts()["state"]
    assert set(states) <= {"succeeded"}, "it is no trial's fault"
    assert place.ressa("resume", "small").returncode == 0
    assert results(place.sweep) == results(undisturbed.sweep)


def test_a_killed_worker_ends_the_attempt_and_the_gang_is_made_anew(tmp_path: Path) -> None:
    text = SMALL.replace("parallel: 2", "parallel: 1").replace("trials: 3", "trials: 1")
    text = text.replace("steps: 6", "steps: 30")  # or it may be over before it is struck
    place = make_place(tmp_path, text + "resources: {workers: 2}\nbaselines: []\n")
    driver = place.start("run", "small.yaml")
    assert strike(place, driver, Kill(target="worker", moment="checkpoint write", nth=4))
    _, stderr = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 0, stderr
    lost, succeeded = place.sweep.attempts().to_dict("records")
    assert (lost["state"], lost["failure_class"]) == ("lost", "node")
    assert succeeded["state"] == "succeeded"
    assert sorted(place.sweep.curves()["step"]) == [*range(1, 31)]


def test_a_damaged_stage_or_one_trials_store_trouble_does_not_end_the_sweep(
    undisturbed: Place, tmp_path: Path
) -> None:
    text = SMALL.replace("name: small", "name: again").replace("parallel: 2", "parallel: 1")
    text = text.replace("trials: 3", "trials: 1") + "retry: {attempts: 5}\nbaselines: []\n"
    place, results_folder = make_place(tmp_path, text), tmp_path / "results"
    shutil.copytree(undisturbed.folder / "results", results_folder)
    shutil.rmtree(results_folder / "stages/outcome")
    for part in results_folder.glob("stages/vision-mask/*/*-0*"):
        content = bytearray(part.read_bytes())
        content[-1] ^= 1
        part.write_bytes(content)
    spec, aside = results_folder / "sweeps/again/spec.yaml", tmp_path / "aside"
    driver = place.start("run", "small.yaml")
    wait_for(lambda: list(results_folder.glob("sweeps/again/proposals/*")))
    spec.rename(aside)  # by which a trial tells whether its machine sees the store
    wait_for(lambda: list(results_folder.glob("sweeps/again/trials/*")))
    aside.rename(spec)
    _, stderr = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 0, stderr
    *lost, last = open_store(results_folder).sweep("again").attempts().to_dict("records")
    assert last["state"] == "succeeded"
    assert {(row["state"], row["failure_class"]) for row in lost} == {("lost", "node")}
    assert "store" in {row["failure_stage"] for row in lost}
    assert any("is damaged" in row["error"] for row in lost)


@pytest.mark.slow
def test_a_driver_that_stood_still_and_was_taken_over_harms_nothing(
    undisturbed: Place, place: Place
) -> None:
    first = place.start("run", "small.yaml")
    assert strike(place, first, Kill(target="driver", moment="calibration", number=signal.SIGSTOP))
    second = replace(place).start("resume", "small")
    # It watches for as long as a driver may be silent, and takes over.
    wait_for(lambda: list((place.folder / "results/sweeps/small/lease").glob("000002.json")))
    first.send_signal(signal.SIGCONT)
    _, stderr = first.communicate(timeout=PATIENCE)
    assert first.returncode == 4, stderr
    assert "another driver took this sweep over" in stderr
    _, stderr = second.communicate(timeout=PATIENCE)
    assert second.returncode == 0, stderr
    assert results(place.sweep) == results(undisturbed.sweep)
    assert len(place.sweep.trials()) == 5
