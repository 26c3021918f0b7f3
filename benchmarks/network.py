"""What a sweep sends over the network: `python -m benchmarks.network`. Root, for its machines.

A gang of two workers on two of three machines made of network namespaces (`tests/cluster`), with
the store on a folder that they share without this network, and once more with the store in a bucket
that they reach through it. Counted are the bytes that all machines send and that the bucket does,
by the stage in which the first worker was then, and what Ray's own talk takes while nothing runs.

Then 1,000 trials that do next to nothing, eight at a time on two machines of four pretended cores:
what the driver and Ray's head take, and what is sent.
"""

import argparse
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from itertools import groupby, pairwise
from operator import itemgetter
from pathlib import Path
from typing import Self

import psutil

from benchmarks.service import SMALLEST
from ressa.store import open_store
from tests.cluster.nodes import OUTSIDE, SHARED, Cluster, Node, within
from tests.s3 import s3_server

STEPS = 50
GANG = f"""
ressa: 1
name: gang
model: pocket-blip2
baselines: []
space:
  vision_sparsity: {{choices: [0.5]}}
budget: [0.6]
search: {{trials: 1, parallel: 1}}
repair: {{steps: {STEPS}, checkpoint_steps: 25}}
evaluate: [{{task: easy-vqa, split: validation, samples: 500}}]
resources: {{workers: 2}}
store: {SHARED}/results
"""
STEADY_SECONDS = 30
PARALLEL = 8
_LINE = re.compile(r"(\d\d):(\d\d):(\d\d)  (\D+?)(?:  \d+/\d+)?$", re.MULTILINE)


class Meter:
    """Adds up what machines send, ten times a second."""

    def __init__(self, nodes: list[Node]) -> None:
        self._pids = [node.first() for node in nodes]
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow)
        self.samples: list[tuple[float, int, int]] = []
        """Time of day, bytes sent and bytes received so far."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def between(self, start: float, end: float) -> tuple[int, int]:
        """Bytes sent and received by all machines between two times."""
        inside = [one for one in self.samples if start <= one[0] <= end]
        (_, sent, received), (_, more, rest) = inside[0], inside[-1]
        return more - sent, rest - received

    def _follow(self) -> None:
        while not self._ended.wait(0.1):
            counted = [_sent_and_received(pid) for pid in self._pids]
            sent, received = (sum(column) for column in zip(*counted, strict=True))
            self.samples.append((time.time(), sent, received))


def _sent_and_received(pid: int | None) -> tuple[int, int]:
    for line in Path(f"/proc/{pid}/net/dev").read_text().splitlines():
        if line.strip().startswith("eth0:"):
            numbers = line.split(":")[1].split()
            return int(numbers[8]), int(numbers[0])
    raise AssertionError("a machine has an eth0")


@contextmanager
def _machines(*cores: int, bucket: bool = False) -> Iterator[Cluster]:
    with ExitStack() as stack:
        place = stack.enter_context(tempfile.TemporaryDirectory())
        cluster = stack.enter_context(Cluster(Path(place) / "cluster"))
        for number in range(1, len(cores)):
            cluster.add(f"node{number}")
        if bucket:
            variables = stack.enter_context(s3_server(OUTSIDE, within(cluster.switch)))
            cluster.own.update({k: v for k, v in variables.items() if k != "HOME"})
        for node, count in zip(cluster.nodes, cores, strict=True):
            node.start_ray(count)
        cluster.wait_for_nodes(len(cores))
        yield cluster


def _stages(log: str, day: datetime) -> list[tuple[str, float, float]]:
    """Which stage the first worker was in, and from when to when."""
    noted = [
        (words, day.replace(hour=int(h), minute=int(m), second=int(s), microsecond=0).timestamp())
        for h, m, s, words in _LINE.findall(log)
    ]
    starts = [next(group) for _, group in groupby(noted, key=itemgetter(0))]
    return [(a[0], a[1], b[1]) for a, b in pairwise(starts)]


def gang(store: str, *, bucket: bool = False) -> None:
    """Runs the gang and prints what each stage sent."""
    with _machines(1, 1, 1, bucket=bucket) as cluster, Meter(cluster.nodes) as meter:
        time.sleep(STEADY_SECONDS)
        began = time.time()
        (cluster.folder / "gang.yaml").write_text(GANG)
        done = cluster.ressa("submit", "gang.yaml", "--wait", "--store", store, timeout=1800)
        assert done.returncode == 0, done.stderr
        asked = cluster.ressa("logs", "gang", "t000", "--rank", "0", "--store", store)
        assert asked.returncode == 0, asked.stderr
    sent, received = meter.between(began - STEADY_SECONDS, began)
    print(f"\n{store}: {_kib(sent / STEADY_SECONDS)} KiB/s sent while nothing runs\n")
    print("| stage | seconds | KiB sent | KiB received |\n|---|---|---|---|")
    for stage, start, end in _stages(asked.stdout + asked.stderr, datetime.now(UTC)):
        if end > start:
            sent, received = meter.between(start, end)
            print(f"| {stage} | {end - start:.0f} | {_kib(sent)} | {_kib(received)} |")


def _kib(size: float) -> str:
    return f"{size / 1024:,.1f}"


def trials(count: int) -> None:
    """Runs the smallest trials, eight at a time, and prints what they took."""
    with _machines(4, 4) as cluster, Meter(cluster.nodes) as meter:
        text = SMALLEST.replace("parallel: 2", f"parallel: {PARALLEL}")
        (cluster.shared / "smallest.yaml").write_text(text.replace("1000", str(count)))
        head = cluster.head
        began = time.time()
        driver = head.start("run", "smallest.yaml", "--address", f"{head.address}:6379")
        taken: dict[tuple[str, int], float] = {}
        words = None
        while words is None:
            _add_up(head, taken)
            with suppress(subprocess.TimeoutExpired):  # and what it says must go somewhere
                _, words = driver.communicate(timeout=1.0)
        assert driver.returncode == 0, words
        ended = time.time()
        rows = open_store(cluster.shared / "results").sweep("smallest").trials()
        files = [path for path in (cluster.shared / "results").rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
    first, last = rows["started"].min(), rows["finished"].max()
    took = (last - first).total_seconds()
    sent, _ = meter.between(began, ended)
    print(
        f"\n{len(rows)} trials, {PARALLEL} at a time, {(rows['state'] == 'succeeded').sum()} good"
    )
    print(f"{ended - began:.0f} s in all; {len(rows) / took:.1f} trials a second between the first")
    print(f"start and the last end; {sent / len(rows) / 1024:.1f} KiB sent a trial;")
    print(f"store: {len(files)} files, {size / 2**20:.1f} MiB")
    for name in sorted({name for name, _ in taken}):
        print(f"{name}: {sum(found for (one, _), found in taken.items() if one == name):.1f}")


def _add_up(head: Node, taken: dict[tuple[str, int], float]) -> None:
    """Notes the processor seconds so far of the driver and of Ray's head, and shared memory."""
    for pid, words in head.processes().items():
        line = " ".join(words)
        named = {
            "driver": "smallest.yaml" in line,
            "gcs_server": "gcs/gcs_server" in words[0],
            "raylet of the head": "raylet/raylet" in words[0],
            "dashboard": "dashboard" in line.lower() and "gcs/gcs_server" not in words[0],
        }
        name = next((name for name, found in named.items() if found), None)
        if name is None:
            continue
        try:
            process = psutil.Process(pid)
            used = process.cpu_times()
            shared = process.memory_info().shared
        except psutil.NoSuchProcess:
            continue
        taken[f"{name}, processor seconds", pid] = used.user + used.system
        if name == "raylet of the head":
            key = "object store of the head at most, MiB", 0
            taken[key] = max(taken.get(key, 0.0), shared / 2**20)


def main() -> None:
    """Runs what is asked for, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.network", description=__doc__)
    parser.add_argument("--only", choices=("gang", "bucket", "trials"))
    parser.add_argument("--trials", type=int, default=1000)
    given = parser.parse_args()
    if given.only in (None, "gang"):
        gang(f"{SHARED}/results")
    if given.only in (None, "bucket"):
        gang("s3://sweeps/place", bucket=True)
    if given.only in (None, "trials"):
        trials(given.trials)


if __name__ == "__main__":
    main()
