"""Sweeps run as users run them: `ressa run` in a process of its own, on a real local Ray."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ressa.store import SweepStore, open_store
from ressa.sweep.reaper import processes_of

SMALL = """
ressa: 1
name: small
model: pocket-blip2
space:
  vision_sparsity: {choices: [0.5, 0.7, "2:4"]}
budget: [0.6]
search: {sampler: tpe, trials: 3, parallel: 2, seed: 0}
prune:
  calibration: {samples: 32}
repair:
  steps: 6
  batch_size: 32
  warmup_steps: 1
  checkpoint_steps: 2
  data: {split: train, samples: 200}
evaluate: [{task: easy-vqa, split: validation, samples: 150}]
"""


PATIENCE = 1200
"""Seconds in which a process that was told to end has ended: more only ends a hung test."""

drivers: dict[int, tuple[subprocess.Popen[str], str]] = {}
"""The drivers that tests started, and where each keeps temporary files, by process."""


@dataclass(frozen=True)
class Place:
    """A folder with a sweep file and a store, and the command line to use them."""

    folder: Path
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def sweep(self) -> SweepStore:
        return open_store(self.folder / "results").sweep("small")

    def start(self, *arguments: str, stderr: int = subprocess.PIPE) -> subprocess.Popen[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **self.variables}
        driver = subprocess.Popen(
            [sys.executable, "-c", "from ressa.cli import main; main()", *arguments],
            cwd=self.folder,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=stderr,
        )
        drivers[driver.pid] = (driver, environment.get("TMPDIR", "/tmp"))
        return driver

    def ressa(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        process = self.start(*arguments)
        stdout, stderr = process.communicate(timeout=PATIENCE)
        return subprocess.CompletedProcess(arguments, process.returncode, stdout, stderr)


def make_place(folder: Path, text: str = SMALL) -> Place:
    (folder / "small.yaml").write_text(text)
    return Place(folder)


def running_sessions() -> list[str]:
    """Names of the Ray sessions that drivers of these tests started and that have processes."""
    return [path.name for path in session_folders() if processes_of(path.name)]


def session_folders() -> list[Path]:
    """Where drivers of these tests keep Ray's files, as long as they are there."""
    return [
        path
        for one, temporary in drivers.values()
        for path in Path(temporary).glob(f"ressa-{one.pid}-*")
    ]


def contents(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Reads every file below a folder at which others work; what goes meanwhile is left out."""
    for place, _, names in os.walk(folder):  # not by `rglob`, which a folder that goes breaks off
        for path in (Path(place, name) for name in names):
            try:
                content = path.read_bytes() if path.is_file() else b""
            except FileNotFoundError:
                continue
            yield path, content


def results(sweep: SweepStore) -> Sequence[dict[str, object]]:
    """What a sweep found, without what may differ between two runs of it."""
    columns = [
        "trial",
        "role",
        "state",
        "key",
        "point",
        "vision_target",
        "language_target",
        "vision_zeros",
        "language_zeros",
        "mask_hash",
        "score",
        "score_pruned",
        "score_repaired",
        "blank_repaired",
        "merge_gap",
    ]
    rows: Sequence[dict[str, object]] = sweep.trials()[columns].astype(str).to_dict("records")
    return rows
