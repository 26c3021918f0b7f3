"""The sweep service: a grid of trials beside one process per pair that does everything itself.

Both get the same sweep file, two processes at a time and one thread each; the service's time is
all of `ressa run`, from its start to its last word, baseline and Ray included. The obvious way
(`obvious.py`) is measured on a few pairs of the grid, the first and the last among them, and its
time per pair taken for all: it shares nothing, so that more pairs only take longer. It is asserted
that both come to the same masks and scores.

Processor time is that of all processes that `ressa run` started, read from /proc every two seconds.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas

from benchmarks.report import Row
from ressa.store import open_store

SPARSITIES = ["0.2", "0.3", "0.4", "0.5", "0.6", "0.7"]
GRID = f"""
ressa: 1
name: grid
model: pocket-blip2
space:
  vision_sparsity: {{choices: {SPARSITIES}}}
  language_sparsity: {{choices: {SPARSITIES}}}
search: {{sampler: grid, trials: 36, parallel: 2}}
baselines: []
"""
WITHOUT_REPAIR = "repair: {method: none}\n"
REPAIR = "repair: {steps: 50}\n"  # as in sweeps/studies
PAIRS = [("0.2", "0.2"), ("0.3", "0.6"), ("0.6", "0.4"), ("0.7", "0.7")]
REPAIRED_PAIRS = [("0.2", "0.2"), ("0.2", "0.7")]
SMALLEST = """
ressa: 1
name: smallest
model: pocket-llava
space:
  vision_sparsity: {low: 0.2, high: 0.7, step: 0.01}
  language_sparsity: {low: 0.3, high: 0.7, step: 0.01}
prune: {method: magnitude, calibration: {samples: 16}}
search: {sampler: grid, trials: 1000, parallel: 2}
baselines: []
repair: {method: none}
evaluate: [{task: easy-vqa, split: validation, samples: 1}]
"""
STAGES = ("calibration", "prune", "teacher", "repair", "evaluate")


def rows(given: Namespace) -> Iterator[Row]:
    """Measures the grid without and with repair, and how fast the smallest trials go by."""
    yield from _grid("6×6 grid without repair", WITHOUT_REPAIR, 36, PAIRS, (5, 10))
    yield from _grid("grid with repair", REPAIR, given.repaired, REPAIRED_PAIRS, (1.5, 1.5))
    yield from _smallest(given.smallest)


@dataclass(frozen=True)
class _Run:
    trials: pandas.DataFrame
    wall: float
    cpu: float


def _grid(
    name: str, more: str, count: int, pairs: Sequence[tuple[str, str]], aims: tuple[float, float]
) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "grid.yaml"
        file.write_text(GRID.replace("trials: 36", f"trials: {count}") + more)
        ours = _service(file)
        wall, cpu, found = _obvious(file, pairs)
    for pair, theirs in zip(pairs, found, strict=True):
        row = ours.trials.set_index(["vision_target", "language_target"]).loc[pair]
        for what, value in theirs.items():
            assert row[what] == value, f"{pair}: {what} {row[what]}, the obvious way {value}"
    shape = f"pocket-blip2, {count} trials in 2 processes; {len(pairs)} pairs"
    common = {"shape": shape, "peer_name": "one process per pair", "rounds": 1}
    yield Row(
        name=f"{name}: wall time a trial", ours=ours.wall / count, peer=wall / len(pairs),
        unit="s", floor=aims[0], goal=aims[1], **common,
    )  # fmt: skip
    yield Row(
        name=f"{name}: processor time a trial", ours=ours.cpu / count, peer=cpu / len(pairs),
        unit="s", **common,
    )  # fmt: skip
    yield from _overhead(name, shape, ours.trials)
    if more == REPAIR:
        trials = ours.trials
        rest = trials["total_seconds"] - trials["repair_seconds"] - trials["evaluate_seconds"]
        yield Row(
            name=f"{name}: outside repair and evaluation", shape=shape, peer_name="the limit",
            ours=100 * rest.sum() / trials["total_seconds"].sum(), peer=10, unit="% of a trial",
            rounds=count, floor=1, goal=1,
        )  # fmt: skip


def _overhead(name: str, shape: str, trials: pandas.DataFrame) -> Iterator[Row]:
    """From when the driver starts a trial to when its rows are made, less the stages' own time."""
    lasted = (trials["finished"] - trials["started"]).dt.total_seconds()
    own = trials[[f"{stage}_seconds" for stage in STAGES]].sum(axis=1)
    # The first trial of each process waits for it to start.
    later = (lasted - own)[trials["number"] >= 2]
    yield Row(
        name=f"{name}: overhead a trial", shape=shape, peer_name="the limit",
        ours=float(later.median()), peer=1.0, unit="s", rounds=len(later), floor=1, goal=1,
    )  # fmt: skip


def _smallest(count: int) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "smallest.yaml"
        for name, what in (("made", "1 question, masks made"), ("found", "all found in the store")):
            file.write_text(SMALLEST.replace("smallest", name).replace("1000", str(count)))
            run = _service(file, name=name)
            yield Row(
                name=f"{count} smallest trials", shape=f"pocket-llava, magnitude, {what}",
                peer_name="the limit", ours=run.wall / len(run.trials), peer=0.2, unit="s",
                rounds=len(run.trials), floor=1, goal=1,
            )  # fmt: skip


def _service(file: Path, name: str = "grid") -> _Run:
    began = time.monotonic()
    driver = subprocess.Popen(
        [sys.executable, "-c", "from ressa.cli import main; main()", "run", file.name],
        cwd=file.parent, env=_surroundings(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    with _Watch(driver.pid) as watch:
        _, words = driver.communicate()
    wall = time.monotonic() - began
    assert driver.returncode == 0, words
    trials = open_store(file.parent / "results").sweep(name).trials()
    return _Run(trials, wall, watch.seconds)


def _obvious(
    file: Path, pairs: Sequence[tuple[str, str]]
) -> tuple[float, float, list[dict[str, object]]]:
    """Returns wall and processor seconds of all pairs, two at a time, and what each found."""
    began = time.monotonic()
    before = os.times()
    found: list[dict[str, object]] = []
    for two in (pairs[index : index + 2] for index in range(0, len(pairs), 2)):
        running = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.obvious", str(file), *pair],
                env=_surroundings(),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            for pair in two
        ]
        found += [json.loads(process.communicate()[0].splitlines()[-1]) for process in running]
    after = os.times()
    cpu = after.children_user + after.children_system
    cpu -= before.children_user + before.children_system
    return time.monotonic() - began, cpu, found


def _surroundings() -> dict[str, str]:
    # Ray gives its workers a low priority, the obvious way's processes have the usual one.
    return {**os.environ, "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}


class _Watch:
    """Adds up the processor time of a process and of all that it starts."""

    def __init__(self, pid: int) -> None:
        self._known: dict[int, float] = {pid: 0.0}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look_often)

    @property
    def seconds(self) -> float:
        return sum(self._known.values())

    def __enter__(self) -> "_Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look_often(self) -> None:
        while not self._over.wait(2.0):
            self._look()

    def _look(self) -> None:
        tick = os.sysconf("SC_CLK_TCK")
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                except OSError:
                    continue
                found[int(entry.name)] = int(fields[1]), (int(fields[11]) + int(fields[12])) / tick
        grown = True
        while grown:  # a child is known by its parent, while that lives
            new = {pid for pid, (parent, _) in found.items() if parent in self._known}
            grown = bool(new - self._known.keys())
            self._known.update({pid: found[pid][1] for pid in new | (self._known.keys() & found)})
