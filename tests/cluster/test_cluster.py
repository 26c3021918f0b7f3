"""Sweeps on several machines, as users have them: submitted, followed, and hit by what happens."""

import contextlib
import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import pytest

from ressa.store import SweepStore, open_store
from tests.chaos.tables import differences
from tests.cluster.nodes import ROOT, SHARED, Cluster, Node
from tests.s3 import SECRET
from tests.sweep.place import Place, contents
from tests.sweep.waiting import wait_for

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1500)]

STORE = f"{SHARED}/results"


def sweep_of(cluster: Cluster, name: str = "small") -> SweepStore:
    return open_store(cluster.shared / "results").sweep(name)


def submit(cluster: Cluster, *options: str) -> None:
    sent = cluster.ressa("submit", "small.yaml", *options)
    assert sent.returncode == 0, sent.stderr


def finished(cluster: Cluster, *options: str) -> None:
    """Waits for the sweep's end, as its user does."""
    done = cluster.ressa("submit", "small.yaml", "--wait", *options)
    assert done.returncode == 0, done.stdout + done.stderr


def wait_for_repair(cluster: Cluster) -> None:
    """Returns when a first checkpoint of a repair is in the store."""
    wait_for(lambda: _checkpoints(cluster))


def _checkpoints(cluster: Cluster) -> list[Path]:
    with contextlib.suppress(FileNotFoundError):  # one may go while they are listed
        return list((cluster.shared / "results/stages/repair-checkpoint").glob("*/*"))
    return []


def worker_off_the_head(cluster: Cluster) -> Node:
    """A machine, other than the head, on which a worker of the gang runs."""
    return next(node for node in cluster.nodes[1:] if node.works("ray::Worker"))


def test_a_sweep_runs_over_machines_and_is_followed_from_a_laptop(machines: Cluster) -> None:
    cluster = machines
    cluster.start_all(cpus_of_head=0)  # so that no part of a trial runs beside its driver
    large = cluster.ressa("submit", "small.yaml", "--set", "resources.workers=5")
    assert (large.returncode, large.stdout) == (2, "")
    assert "10.77.0.2 holds 1: it has 1 CPU" in large.stderr

    sent = cluster.ressa("submit", "small.yaml")
    assert (sent.returncode, sent.stdout) == (0, "small\n"), sent.stderr
    again = cluster.ressa("submit", "small.yaml")
    assert (again.returncode, again.stdout) == (0, "small\n"), again.stderr
    other = cluster.ressa("submit", "small.yaml", "--set", "repair.steps=7")
    assert (other.returncode, other.stdout) == (4, "")
    assert "another spec of the name 'small'" in other.stderr

    said = cluster.ressa("logs", "small", "t000", "--follow", "--store", STORE)
    assert said.returncode == 0, said.stderr
    ranks = said.stdout.split("── rank ")
    assert {part[0] for part in ranks if part} == {"0", "1"}
    assert said.stdout.count("score repaired") == 2
    assert "t000 succeeded" in said.stderr

    done = cluster.ressa("submit", "small.yaml", "--wait", "-o", "csv")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("trial,")
    trial = sweep_of(cluster).trials().iloc[0]
    assert (trial["state"], trial["attempt"]) == ("succeeded", 0)
    assert trial["host"] in ("one", "two")

    stranger = cluster.ressa("ls", "--store", STORE, variables={"RAY_AUTH_TOKEN_PATH": __file__})
    assert (stranger.returncode, stranger.stdout) == (5, "")
    assert "refuses our token" in stranger.stderr
    for path, held in contents(cluster.folder):
        assert path.suffix != ".log" or cluster.token.encode() not in held, path


READING = (
    ["ls"],
    ["status", "small"],
    ["results", "small"],
    ["best", "small"],
    ["landscape", "small"],
    ["watch", "small"],
    ["query", "SELECT trial, score FROM trials"],
)


@pytest.mark.slow
def test_every_verb_that_reads_or_steers_answers_a_laptop(cluster: Cluster) -> None:
    laptop = cluster.start("submit", "small.yaml", "--wait", "--set", "repair.steps=60")
    wait_for_repair(cluster)
    laptop.kill()
    laptop.communicate()
    assert sweep_of(cluster).status().running, "it needs no laptop"
    cancelled = cluster.ressa("cancel", "small", "--store", STORE)
    assert (cancelled.returncode, sweep_of(cluster).status().state) == (0, "cancelled")
    foretold = cluster.ressa("resume", "small", "--dry-run", "--store", STORE)
    assert foretold.returncode == 0, foretold.stderr
    assert "it was cancelled" in foretold.stderr

    resumed = cluster.ressa("resume", "small", "--store", STORE)
    assert (resumed.returncode, resumed.stdout) == (0, "small\n"), resumed.stderr
    stopped = cluster.ressa("stop", "small", "--wait", "--store", STORE)
    assert stopped.returncode == 0, stopped.stderr
    assert list(sweep_of(cluster).trials()["state"]) == ["succeeded"], "what ran was finished"

    for words in READING:
        answer = cluster.ressa(*words, "--store", STORE)
        assert answer.returncode == 0, answer.stderr
        assert answer.stdout.strip(), words
    drawn = cluster.ressa("landscape", "small", "--out", "map.svg", "--store", STORE)
    assert drawn.returncode == 0, drawn.stderr
    assert "<svg" in (cluster.folder / "map.svg").read_text()


@pytest.mark.slow
def test_other_code_than_the_clusters_is_refused_unless_it_is_sent_along(cluster: Cluster) -> None:
    checkout = cluster.folder / "checkout"
    shutil.copytree(ROOT / "ressa", checkout / "ressa")
    shutil.copy(ROOT / "pyproject.toml", checkout)
    (checkout / "large.bin").write_bytes(bytes(1 << 20))
    changed = checkout / "ressa" / "workers.py"
    changed.write_text(changed.read_text().replace("platform.node()", "'changed'"))
    small = ("--set", "resources.workers=1", "--set", "repair={method: none}")
    ours = {"PYTHONPATH": str(checkout)}

    refused = cluster.ressa("submit", "small.yaml", "--wait", *small, variables=ours)
    assert (refused.returncode, refused.stdout) == (5, ""), refused.stderr
    assert "client and cluster differ: ressa " in refused.stderr
    assert "--ship-code sends this checkout" in refused.stderr

    sent = cluster.ressa("submit", "small.yaml", "--wait", "--ship-code", *small, variables=ours)
    assert sent.returncode == 0, sent.stderr
    assert list(sweep_of(cluster).trials()["host"]) == ["changed"]


@pytest.mark.slow
def test_a_machine_that_dies_in_mid_repair_costs_one_attempt(
    cluster: Cluster, alone: Place
) -> None:
    submit(cluster)
    wait_for_repair(cluster)
    dead = worker_off_the_head(cluster)
    dead.kill()
    finished(cluster)
    lost, succeeded = sweep_of(cluster).attempts().to_dict("records")
    assert (lost["state"], lost["failure_class"]) == ("lost", "node")
    assert succeeded["state"] == "succeeded"
    assert differences(sweep_of(cluster), alone.sweep) == []


@pytest.mark.slow
def test_a_machine_cut_off_is_done_without_until_its_ray_is_started_again(
    cluster: Cluster, alone: Place
) -> None:
    submit(cluster)
    wait_for_repair(cluster)
    gone = worker_off_the_head(cluster)
    gone.cut_off()
    cluster.wait_for_nodes(2)
    finished(cluster)
    lost, succeeded = sweep_of(cluster).attempts().to_dict("records")
    assert (lost["state"], lost["failure_class"]) == ("lost", "node")
    assert succeeded["state"] == "succeeded"
    assert differences(sweep_of(cluster), alone.sweep) == []

    gone.reconnect()
    wait_for(lambda: not gone.works("raylet") and not gone.works("ray::Worker"))
    assert cluster.alive() == 2, "what was declared dead does not come back"
    gone.stop_ray()
    gone.start_ray()
    cluster.wait_for_nodes(3)
    finished(cluster, "--set", "name=wide", "--set", "resources.workers=3")


@pytest.mark.slow
def test_when_the_head_dies_the_sweep_is_resumed_on_the_next_one(
    cluster: Cluster, alone: Place
) -> None:
    submit(cluster)
    wait_for_repair(cluster)
    for node in cluster.nodes:
        node.kill()
    cluster.start_all()
    known = cluster.ressa("status", "small", "--store", STORE)
    assert known.returncode == 0, known.stderr
    resumed = cluster.ressa("resume", "small", "--wait", "--store", STORE)
    assert resumed.returncode == 0, resumed.stderr
    assert differences(sweep_of(cluster), alone.sweep) == []


@pytest.mark.slow
def test_a_trial_that_waits_says_for_what_and_takes_a_machine_that_is_added(
    cluster: Cluster,
) -> None:
    two = ("search.trials=2", "search.parallel=2", "space.vision_sparsity.choices=[0.5, 0.55]")
    long = "repair.steps=60"  # the first must not end before the machine is there
    settings = [word for setting in (*two, long) for word in ("--set", setting)]
    submit(cluster, *settings)
    wait_for(lambda: sweep_of(cluster).status().waiting)
    asked = cluster.ressa("status", "small", "--store", STORE)
    assert asked.returncode == 0, asked.stderr
    assert re.search(r"t00\d needs 2 × 1 CPU; ", asked.stdout)
    added = cluster.add("three")
    added.start_ray()
    wait_for(lambda: added.works("ray::Worker"))
    assert not sweep_of(cluster).status().waiting
    finished(cluster, *settings)


@pytest.mark.slow
def test_a_killed_driver_leaves_nothing_in_a_ray_that_it_joined(cluster: Cluster) -> None:
    (cluster.shared / "small.yaml").write_text((cluster.folder / "small.yaml").read_text())
    one = cluster.nodes[1]
    driver = one.start("run", "small.yaml", "--address", f"{cluster.head.address}:6379")
    wait_for(lambda: driver.poll() is not None or _checkpoints(cluster))
    assert driver.poll() is None, driver.communicate()
    for pid, words in one.processes().items():
        if "small.yaml" in words:
            os.kill(pid, signal.SIGKILL)
    driver.communicate()
    wait_for(lambda: not [pid for node in cluster.nodes for pid in node.works("ray::Worker")])
    wait_for(lambda: cluster.groups() == 0)
    assert cluster.alive() == 3, "its Ray is not ours to end"
    finished(cluster)


@pytest.mark.slow
def test_a_sweep_in_a_bucket_comes_to_the_same_rows(bucket: Cluster, alone: Place) -> None:
    finished(bucket, "--store", "s3://sweeps/place")
    for table in ("trials", "scores", "curves", "answers"):
        how = "columns ('^(trial|state|mask_hash|score|metric|step|loss|answer|value)$')"
        words = ["query", f"SELECT {how} FROM {table} ORDER BY ALL", "-o", "csv"]
        there = bucket.ressa(*words, "--store", "s3://sweeps/place")
        assert there.returncode == 0, there.stderr
        assert there.stdout == alone.ressa(*words).stdout
    for path, held in contents(bucket.folder):
        assert SECRET.encode() not in held, path


@pytest.mark.slow
def test_gangs_of_different_size_wait_for_each_other_whole(cluster: Cluster) -> None:
    sizes = {"single": 1, "pair": 2, "all": 3}  # of three cores: no two of the larger fit at once
    settings = {
        name: ("--set", f"name={name}", "--set", f"resources.workers={size}")
        for name, size in sizes.items()
    }
    for options in settings.values():
        sent = cluster.ressa("submit", "small.yaml", *options)
        assert sent.returncode == 0, sent.stderr
    for name, options in settings.items():
        finished(cluster, *options)
        trial = sweep_of(cluster, name).trials().iloc[0]
        assert (trial["state"], trial["workers"]) == ("succeeded", sizes[name])


LEFT_BEHIND = """
import ray
from ray.util.placement_group import placement_group
ray.init(address="auto")
ray.get(placement_group([{"CPU": 0.1}], lifetime="detached").ready())
"""


@pytest.mark.slow
def test_the_doctor_looks_at_every_machine_and_at_what_lies_between(cluster: Cluster) -> None:
    seen = cluster.ressa("doctor", "--store", STORE, "-o", "json")
    assert seen.returncode == 0, seen.stdout + seen.stderr
    findings = json.loads(seen.stdout)
    assert {row["state"] for row in findings} == {"ok"}
    for node in cluster.nodes:
        looked = {row["what"] for row in findings if row["node"] == node.address}
        assert {"python", "torch", "versions", "clock", "store", "shared memory"} <= looked
    between = [row for row in findings if row["node"] == "all nodes"]
    assert [row["what"] for row in between] == ["token", "leftovers", "all-reduce"]
    assert between[-1]["found"] == "one process on each of 3 nodes, gloo"

    assert cluster.nodes[1].run(sys.executable, "-c", LEFT_BEHIND).returncode == 0
    leftover = cluster.ressa("doctor", "-o", "json")
    assert leftover.returncode == 1
    broken = [row for row in json.loads(leftover.stdout) if row["state"] == "broken"]
    assert [row["what"] for row in broken] == ["leftovers"]
    assert broken[0]["found"] == "1 placement groups of jobs that have ended"

    unshared = cluster.ressa("doctor", "--store", "/tmp/results", "-o", "json")
    assert unshared.returncode == 1
    broken = [row for row in json.loads(unshared.stdout) if row["state"] == "broken"]
    assert {(row["node"], row["what"]) for row in broken} == {
        *((node.address, "store") for node in cluster.nodes[1:]),
        ("all nodes", "leftovers"),
    }
    assert all(
        "Mount the same folder on every node" in row["advice"]
        for row in broken
        if row["what"] == "store"
    )
