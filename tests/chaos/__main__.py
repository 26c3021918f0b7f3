"""Kills sweeps at random and proves that nothing was lost: `make chaos`, by hand; minutes.

Each sweep is killed several times and resumed until it ends. Then its tables must equal those of an
undisturbed run of the same file, and no process, temporary file or lease may be left. The last line
is `N passed, N failed`: kills whose sweep came out so, and kills whose sweep did not.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from ressa.store import SweepStore
from tests.chaos.kills import MOMENTS, Kill, strike
from tests.chaos.tables import differences, left_behind
from tests.sweep.place import Place, make_place, running_sessions

SWEEPS = {
    "alone": """
ressa: 1
name: small
model: pocket-blip2
space:
  vision_sparsity: {choices: [0.5, 0.7, "2:4"]}
budget: [0.6]
search: {sampler: tpe, trials: 3, parallel: 2, seed: 0}
prune: {calibration: {samples: 8}}
repair:
  steps: 8
  batch_size: 8
  warmup_steps: 1
  checkpoint_steps: 2
  data: {split: train, samples: 48}
evaluate: [{task: easy-vqa, split: validation, samples: 24}]
baselines: [dense_repaired]
retry: {attempts: 20}
""",
    "gang": """
ressa: 1
name: small
model: pocket-blip2
space:
  vision_sparsity: {choices: [0.4, 0.6]}
budget: [0.5]
search: {sampler: grid, parallel: 1}
prune: {method: sparsegpt, calibration: {samples: 8, activations: sequential}}
repair:
  steps: 8
  batch_size: 8
  warmup_steps: 1
  checkpoint_steps: 2
  data: {split: train, samples: 48}
evaluate: [{task: easy-vqa, split: validation, samples: 24}]
baselines: []
resources: {workers: 2}
retry: {attempts: 20}
""",
}
KILLS_A_SWEEP = 4
STANDSTILL_SECONDS = 40.0
"""Longer than a lease's patience (30 s) and than Ray's time-outs of a node (about 25 s)."""


@dataclass
class Run:
    """One sweep that is being killed, and what came of it."""

    kind: str
    place: Place
    kills: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    left: list[Kill] = field(default_factory=list)
    """Kills that came too late: the sweep was over."""


REAPER_SECONDS = 60.0


def deck(rng: random.Random, kills: int) -> list[tuple[str, Kill]]:
    """Draws as many kills as asked: every target at every moment first, in random order."""
    every = [("alone", Kill(target=t, moment=m)) for t in ("driver", "trial") for m in MOMENTS]
    # What a gang calibrates behind pruned blocks is no stage of its own.
    moments = [moment for moment in MOMENTS if moment != "calibration"]
    every += [("gang", Kill(target=t, moment=m)) for t in ("worker", "driver") for m in moments]
    every += [
        (kind, Kill(target="raylet", moment=m))
        for kind, m in (("alone", "pruning"), ("gang", "DeepSpeed step"), ("alone", "row commit"))
    ]
    every += [
        (kind, Kill(target=target, moment="DeepSpeed step", number=signal.SIGSTOP))
        for kind, target in (("alone", "driver"), ("alone", "trial"), ("gang", "worker"))
    ]
    drawn: list[tuple[str, Kill]] = []
    while len(drawn) < kills:
        drawn += rng.sample(every, len(every))
    return [
        (kind, replace(kill, nth=rng.choice([1, 1, 2]), delay=rng.choice([0, rng.uniform(0, 0.3)])))
        for kind, kill in drawn[:kills]
    ]


def hand(kills: list[tuple[str, Kill]]) -> tuple[str, list[Kill]]:
    """Takes the kills of one sweep off the deck, in the order in which their moments come."""
    kind = kills[0][0]
    mine = [kill for its, kill in kills if its == kind]
    early = [kill for kill in mine if kill.moment == "calibration"][:1]  # it is done once
    late = [kill for kill in mine if kill.moment != "calibration"]
    taken = (early + late)[:KILLS_A_SWEEP]
    for kill in taken:
        kills.remove((kind, kill))
    return kind, sorted(taken, key=lambda kill: list(MOMENTS).index(kill.moment))


class Chaos:
    """Runs sweeps in one temporary folder, and kills them."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._sweeps = folder, 0
        self._temporary = folder / "t"
        self._temporary.mkdir()
        self._undisturbed: dict[str, SweepStore] = {}

    def _place(self, name: str, kind: str) -> Place:
        folder = self._folder / name
        folder.mkdir()
        return replace(make_place(folder, SWEEPS[kind]), variables={"TMPDIR": str(self._temporary)})

    def undisturbed(self, kind: str) -> SweepStore:
        """Returns a sweep that nobody killed; it is run once."""
        if kind not in self._undisturbed:
            place = self._place(kind, kind)
            began = time.monotonic()
            done = place.ressa("run", "small.yaml")
            assert done.returncode == 0, done.stderr
            say(f"sweep {kind!r}, undisturbed: {time.monotonic() - began:.0f} s")
            self._undisturbed[kind] = place.sweep
        return self._undisturbed[kind]

    def run(self, kind: str, kills: list[Kill]) -> Run:
        """Kills a sweep as often as asked, lets it come to its end, and compares."""
        wanted = self.undisturbed(kind)
        self._sweeps += 1
        run = Run(kind, self._place(f"s{self._sweeps}", kind), left=list(kills))
        # One driver for each kill, one to the end, and one more where Ray did not start.
        for _ in range(len(kills) + 2):
            known = (run.place.folder / "results/sweeps/small/spec.yaml").exists()
            driver = run.place.start(*(("resume", "small") if known else ("run", "small.yaml")))
            self._strike(run, driver)
            _, stderr = driver.communicate()
            self._wait_for_the_reaper(run, driver)
            if driver.returncode == 0:
                run.faults += differences(run.place.sweep, wanted)
                run.faults += left_behind(run.place.sweep, self._temporary)
                return run
            if driver.returncode not in (-signal.SIGKILL, 5) or "Traceback" in stderr:
                run.faults.append(f"exit {driver.returncode}: {stderr[-2000:]}")
                return run
        run.faults.append("it does not come to its end")
        return run

    def _strike(self, run: Run, driver: "subprocess.Popen[str]") -> None:
        """Kills one driver's processes until it is dead, or lives and has nothing more to fear."""
        while run.left:
            kill = run.left[0]
            pid = strike(run.place, driver, kill)
            if pid is None:
                return
            run.left.pop(0)
            run.kills.append(f"{kill}, process {pid}")
            if kill.number == signal.SIGSTOP:
                time.sleep(STANDSTILL_SECONDS)
                os.kill(pid, signal.SIGCONT)
            elif kill.target in ("driver", "raylet"):
                return

    def _wait_for_the_reaper(self, run: Run, driver: "subprocess.Popen[str]") -> None:
        """Waits until a dead driver's processes and files, Ray Tune's own state too, are gone."""
        deadline = time.monotonic() + REAPER_SECONDS
        while left := [*running_sessions(), *map(str, self._temporary.iterdir())]:
            if time.monotonic() > deadline:
                run.faults.append(f"left by driver {driver.pid}: {', '.join(left)}")
                return
            time.sleep(0.2)


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    """Plays the deck out; 0 if every kill's sweep came out as if it had not been killed."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="how many, 50 unless said")
    parser.add_argument("--seed", type=int, default=0, help="of whom, when and where")
    asked = parser.parse_args()
    kills = deck(random.Random(asked.seed), asked.kills)
    say(f"{asked.kills} kills, seed {asked.seed}, {len(SWEEPS)} kinds of sweep")
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    chaos, began = Chaos(folder), time.monotonic()
    passed = failed = 0
    try:
        while kills:
            kind, taken = hand(kills)
            run = chaos.run(kind, taken)
            passed, failed = (
                (passed, failed + len(run.kills))
                if run.faults
                else (passed + len(run.kills), failed)
            )
            say(f"{run.place.folder.name} ({kind}) after {time.monotonic() - began:.0f} s")
            for line in run.kills:
                say(f"  {line}")
            for line in run.faults:
                say(f"  FAULT {line}")
            # They are tried again on another sweep, where they come in time.
            kills += [(kind, replace(kill, nth=1)) for kill in run.left]
            if not run.kills:
                failed += len(taken)
                say("  FAULT no kill came in time")
                break
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    say(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
