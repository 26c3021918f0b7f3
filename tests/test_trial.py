"""One trial in this process, without Ray: what pruning hands on reaches the end."""

import multiprocessing
import os
import random
import shutil
import signal

import pytest
import torch
from PIL import Image

from ressa import trial
from ressa.catalog import TASKS
from ressa.records import Example, Outcome, Progress, TrialSpec
from ressa.spec import apply_point, spec_from_mapping

LEAST = {
    "ressa": 1,
    "model": "pocket-llava",
    "space": {"vision_sparsity": "2:4", "language_sparsity": 0.5},
    "repair": {"steps": 2, "batch_size": 16, "data": {"samples": 32}},
    "evaluate": [{"samples": 40}],
}


def specify(repair: dict | None = None, **prune: object) -> TrialSpec:
    sections = {
        "prune": {"calibration": {"samples": 16}} | prune,
        "repair": LEAST["repair"] | (repair or {}),
    }
    loaded = spec_from_mapping(LEAST | sections)
    assert loaded.inventory is not None
    point = {"vision_sparsity": "2:4", "language_sparsity": "0.5"}
    effective = apply_point(loaded.spec, loaded.inventory, point)
    return TrialSpec(
        model=loaded.spec.model,
        fingerprint="as shipped",
        vision=effective.vision,
        language=effective.language,
        calibration=effective.calibration,
        repair=effective.repair,
        evaluate=loaded.spec.evaluate,
    )


def run(spec: TrialSpec, store: str) -> Outcome:
    steps = trial.run(spec, store)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


@pytest.mark.parametrize(
    "prune",
    [
        {"method": "sparsegpt", "dampening": 0.05},
        {"method": "dsnot", "from": "sparsegpt", "group": "tower"},
        {"method": "sparsegpt", "vision": {"method": "magnitude"}},
    ],
    ids=lambda prune: "-".join(map(str, prune)),
)
def test_what_is_pruned_stays_pruned_and_every_layer_says_what_it_lost(tmp_path, prune):
    outcome = run(specify(**prune), str(tmp_path))
    assert outcome.summary["pruned_nonzero"] == 0
    assert outcome.summary["merge_gap"] < 1e-3
    assert outcome.summary["sparsity"] == pytest.approx(0.5, abs=1e-4)
    for layer in outcome.layers:
        assert layer["zeros"] == layer["requested_zeros"] <= layer["zeros_after_merge"]
        knows = layer["tower"] == "language" or "vision" not in prune
        assert (layer["output_error"] is not None) == knows
        assert not knows or 0 < layer["output_error"] < 1


def test_a_trial_that_finds_its_masks_comes_to_the_same_scores(tmp_path):
    spec = specify(method="sparsegpt")
    first = run(spec, str(tmp_path))
    shutil.rmtree(tmp_path / "stages" / "outcome")
    again = run(spec, str(tmp_path))
    assert again.scores == first.scores
    assert again.layers == first.layers  # with the seconds that the first run took
    assert again.summary["mask_hash"] == first.summary["mask_hash"]


LONGER = {"steps": 20, "checkpoint_steps": 3}


def run_until_killed(store, told):
    torch.set_num_threads(1)
    for progress in trial.run(specify(LONGER), store):
        told.put(progress)


def test_a_trial_that_is_killed_in_repair_goes_on_from_its_last_checkpoint(tmp_path, caplog):
    """Its curve has every step once, and ends where it would have ended."""
    spec, store = specify(LONGER), str(tmp_path / "killed")
    context = multiprocessing.get_context("spawn")
    told = context.SimpleQueue()
    process = context.Process(target=run_until_killed, args=(store, told))
    (tmp_path / "killed").mkdir()
    process.start()
    last = Progress(stage="repair", step=random.choice([5, 10, 15]), steps=20)
    while told.get() != last:
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    stages = tmp_path / "killed" / "stages"
    assert len(list((stages / "repair-checkpoint").iterdir())) in (1, 2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    resumed = run(spec, store)
    whole = run(spec, str(tmp_path))
    torch.set_num_threads(threads)
    assert [point["step"] for point in resumed.curves] == list(range(1, 21))
    for name in ("loss", "ce", "kl", "learning_rate", "gradient_norm", "micro_batch"):
        assert [p[name] for p in resumed.curves] == [p[name] for p in whole.curves]
    assert resumed.scores == whole.scores
    assert resumed.answers == whole.answers
    assert not list((stages / "repair-checkpoint").iterdir()), "of a finished trial"
    assert list((stages / "repair-deepspeed" / spec.key).glob("*-deepspeed.json"))
    assert resumed.summary["micro_batch"] == 16


class Colours:
    """Another task than the one that is scored: one picture of each brightness, and its name."""

    name = "colours"

    def examples(self, split, samples=None, seed=0):
        assert split == "train"
        order = random.Random(seed).sample(range(60), 60)
        return tuple(
            Example(
                id=f"colours/{shade}",
                image_id=f"colours/{shade}",
                question="what color is the shape?",
                answer="black" if shade < 30 else "gray",
                kind="color",
            )
            for shade in order[:samples]
        )

    def image(self, image_id):
        shade = 4 * int(image_id.split("/")[1])
        return Image.new("RGB", (64, 64), (shade, shade, shade))


def test_repair_learns_from_the_task_that_its_data_names(tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS._registered, "colours", Colours)
    shown = []
    image = Colours.image
    monkeypatch.setattr(
        Colours, "image", lambda self, name: shown.append(name) or image(self, name)
    )
    data = {"task": "colours", "split": "train", "samples": 32}
    outcomes = {}
    for seed, place in ((0, "a"), (0, "b"), (1, "c")):
        (tmp_path / place).mkdir()
        spec = specify({"data": data | {"seed": seed}})
        outcomes[place] = run(spec, str(tmp_path / place))
    assert {name.split("/")[0] for name in shown} == {"colours"}
    assert {row["task"] for row in outcomes["a"].scores} == {"easy-vqa"}
    losses = {place: [p["loss"] for p in outcome.curves] for place, outcome in outcomes.items()}
    assert losses["a"] == losses["b"] != losses["c"]
    assert outcomes["a"].scores == outcomes["b"].scores
