"""One trial in this process, without Ray: what pruning hands on reaches the end."""

import dataclasses
import multiprocessing
import os
import random
import shutil
import signal
import time

import pytest
import torch
from PIL import Image

from ressa import trial
from ressa.catalog import METHODS, TASKS
from ressa.errors import PruneError, RepairError
from ressa.kept import Kept
from ressa.prune.magnitude import Magnitude
from ressa.records import Example, Outcome, TrialSpec
from ressa.repair import REPAIR_METHODS
from ressa.spec import apply_point, spec_from_mapping
from ressa.stages import Stages
from ressa.store import open_store

LEAST = {
    "ressa": 1,
    "model": "pocket-llava",
    "space": {"vision_sparsity": "2:4", "language_sparsity": 0.5},
    "repair": {"steps": 2, "batch_size": 16, "data": {"samples": 32}},
    "evaluate": [{"samples": 40}],
}


def specify(repair: dict | None = None, vision_target: str = "2:4", **prune: object) -> TrialSpec:
    sections = {
        "prune": {"calibration": {"samples": 16}} | prune,
        "repair": LEAST["repair"] | (repair or {}),
    }
    loaded = spec_from_mapping(LEAST | sections)
    assert loaded.inventory is not None
    point = {"vision_sparsity": vision_target, "language_sparsity": "0.5"}
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
        {"method": "sparsegpt", "calibration": {"samples": 16, "activations": "tower"}},
        {"method": "wanda", "calibration": {"samples": 16, "activations": "sequential"}},
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
        assert 0 < layer["output_error"] < 1
    for tower in ("vision", "language"):
        layers = [layer for layer in outcome.layers if layer["tower"] == tower]
        (read,) = {layer["positions"] for layer in layers}  # one for each of its places
        kept = sum(layer["rows"] * layer["columns"] - layer["zeros"] for layer in layers)
        assert outcome.summary[f"{tower}_macs"] == kept * read > kept
        # Half of 4-byte weights stay: of 2:4 two bits for each, else one bit for each place.
        assert outcome.summary[f"{tower}_packed_bytes"] == pytest.approx(4.25 * kept, rel=1e-3)


def test_merging_is_looked_at_with_as_many_questions_as_memory_has_room_for(tmp_path):
    work = trial._Trial(specify(), Stages(open_store(str(tmp_path), create=True)), Kept())
    wanted, asked = work.probe(), []

    def little_room(module, args, inputs):
        asked.append(len(inputs["input_ids"]))
        if asked[-1] > 15:
            raise torch.OutOfMemoryError

    work.vlm.model.register_forward_pre_hook(little_room, with_kwargs=True)
    first = work.probe()
    torch.testing.assert_close(first, wanted, rtol=1e-4, atol=1e-3)
    assert work.probe().equal(first)
    assert asked == [40, 32, 16, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8]


def test_who_is_second_to_store_masks_goes_on_with_the_first_ones_alone(tmp_path, monkeypatch):
    """Two drivers, on processors that round differently; one finishes while the other prunes."""
    first: list[Outcome] = []
    inside = []

    class Rounds(Magnitude):
        def saliency(self, weight, statistics, generator):
            if not inside:
                inside.append(True)
                first.append(run(spec, str(tmp_path)))
            rounding = 1 if first else -1
            return rounding * super().saliency(weight, statistics, generator)

    monkeypatch.setitem(METHODS._registered, "rounds", Rounds)
    spec = dataclasses.replace(specify(method="rounds"), repair=None)
    with pytest.raises(PruneError, match="another driver") as caught:
        run(spec, str(tmp_path))
    assert caught.value.failure in spec_from_mapping(LEAST).spec.retry.on
    (tmp_path / "stages" / "outcome" / spec.key / "manifest.json").unlink()
    again = run(spec, str(tmp_path))
    assert again.summary["mask_hash"] == first[0].summary["mask_hash"]
    assert again.summary["whole_zeros"] == first[0].summary["whole_zeros"]


def specify_both(sparsity: str, **prune: object) -> TrialSpec:
    """Both towers at one sparsity, without repair."""
    content = LEAST | {"space": {"sparsity": sparsity}, "repair": {"method": "none"}}
    loaded = spec_from_mapping(content | {"prune": {"calibration": {"samples": 16}} | prune})
    assert loaded.inventory is not None
    effective = apply_point(loaded.spec, loaded.inventory, {"sparsity": sparsity})
    values = {name: getattr(effective, name) for name in ("vision", "language", "calibration")}
    return dataclasses.replace(specify(), **values, repair=None)


SEQUENTIAL = {"samples": 16, "activations": "sequential"}


@pytest.mark.parametrize(
    "prune",
    [
        {"layers": "owl", "owl": {"threshold": 3, "spread": 0.1}},
        {"layers": "owl", "method": "magnitude", "calibration": SEQUENTIAL},
        {"layers": "ecoflap", "ecoflap": {"samples": 4}, "group": "matrix"},
        {"layers": "ecoflap", "ecoflap": {"samples": 4}, "language": {"layers": "uniform"}},
    ],
    ids=lambda prune: "-".join(map(str, prune)),
)
def test_a_split_over_layers_differs_by_block_and_meets_each_tower(tmp_path, prune):
    spec = specify_both("0.37", **prune)
    outcome = run(spec, str(tmp_path))
    for tower in ("vision", "language"):
        layers = [layer for layer in outcome.layers if layer["tower"] == tower]
        weights = sum(layer["rows"] * layer["columns"] for layer in layers)
        zeros = sum(layer["zeros"] for layer in layers)
        assert zeros == outcome.summary[f"{tower}_zeros"] == int(0.37 * weights + 0.5)
        by_block = {layer["block"]: layer["sparsity"] for layer in layers}
        is_split = spec.tower(tower).layers is not None
        assert (max(by_block.values()) - min(by_block.values()) > 0.01) == is_split
        for layer in layers:
            assert layer["zeros"] == layer["requested_zeros"]
            # A block's layers are alike, to a weight a row.
            away = abs(layer["sparsity"] - by_block[layer["block"]])
            assert away <= 2 / min(layer["columns"] for layer in layers)


def test_both_towers_lose_one_share_together(tmp_path):
    found = {
        group: run(specify_both("0.4", method="magnitude", group=group), str(tmp_path))
        for group in ("tower", "all")
    }
    weights = sum(layer["rows"] * layer["columns"] for layer in found["all"].layers)
    for outcome in found.values():
        assert sum(layer["zeros"] for layer in outcome.layers) == int(0.4 * weights + 0.5)
    assert found["all"].summary["vision_zeros"] != found["tower"].summary["vision_zeros"]
    assert {layer["group"] for layer in found["all"].layers} == {"all"}
    again = run(specify_both("0.4", group="all"), str(tmp_path))  # with statistics: Wanda
    assert sum(layer["zeros"] for layer in again.layers) == int(0.4 * weights + 0.5)


def test_floors_lose_less_than_was_asked(tmp_path):
    outcome = run(specify_both("0.37", counting="reference"), str(tmp_path))
    for layer in outcome.layers:
        assert layer["zeros"] == int(0.37 * layer["columns"]) * layer["rows"]
        assert layer["requested_sparsity"] == pytest.approx(0.37, abs=1 / layer["columns"])
    lost, asked = (sum(x[name] for x in outcome.layers) for name in ("zeros", "requested_zeros"))
    weights = sum(layer["rows"] * layer["columns"] for layer in outcome.layers)
    assert lost < asked == pytest.approx(0.37 * weights, abs=1)


def test_a_trial_that_finds_its_masks_comes_to_the_same_scores(tmp_path):
    spec = specify(method="sparsegpt")
    first = run(spec, str(tmp_path))
    shutil.rmtree(tmp_path / "stages" / "outcome")
    again = run(spec, str(tmp_path))
    assert again.scores == first.scores
    assert again.layers == first.layers  # with the seconds that the first run took
    assert again.summary["mask_hash"] == first.summary["mask_hash"]


LONGER = {"steps": 20, "checkpoint_steps": 3}


def run_until_killed(store, told, last):
    """Goes on behind the report after which it is killed, but not to the end."""
    torch.set_num_threads(1)
    was_told = False
    for progress in trial.run(specify(LONGER), store):
        if was_told:
            time.sleep(600)
        told.put(progress)
        was_told = (progress.stage, progress.step) == last


def test_a_trial_that_is_killed_in_repair_goes_on_from_its_last_checkpoint(tmp_path, caplog):
    """Its curve has every step once, and ends where it would have ended."""
    spec, store = specify(LONGER), str(tmp_path / "killed")
    context = multiprocessing.get_context("spawn")
    told = context.SimpleQueue()
    last = ("repair", random.choice([5, 10, 15]))
    process = context.Process(target=run_until_killed, args=(store, told, last))
    (tmp_path / "killed").mkdir()
    process.start()
    while True:
        progress = told.get()
        if (progress.stage, progress.step) == last:
            break
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    stages = tmp_path / "killed" / "stages"
    # One more while it is written.
    assert len(list((stages / "repair-checkpoint").iterdir())) in (1, 2, 3)
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


def test_a_model_for_which_there_is_no_room_is_pruned_and_not_repaired(tmp_path, monkeypatch):
    monkeypatch.setattr(trial, "fits", lambda size: False)
    spec = specify()
    with pytest.raises(RepairError, match=r"weights take 0\.0 GiB, and this GPU has too little"):
        run(spec, str(tmp_path))
    outcome = run(dataclasses.replace(spec, repair=None), str(tmp_path))
    assert outcome.summary["zeros_after_merge_ok"]


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


@pytest.mark.parametrize(
    ("activations", "language_masks", "calibrations"),
    [("dense", 1, 2), ("tower", 1, 0), ("sequential", 2, 0)],
)
def test_towers_are_pruned_once_for_all_trials_that_may_share_them(
    tmp_path, activations, language_masks, calibrations
):
    """Two trials that differ in vision: language depends on it only if it is calibrated behind."""
    calibration = {"samples": 16, "activations": activations}
    for vision in ("2:4", "0.7"):
        spec = specify(vision_target=vision, calibration=calibration)
        run(dataclasses.replace(spec, repair=None), str(tmp_path))
    stages = tmp_path / "stages"
    assert len(list(stages.glob("vision-mask/*"))) == 2
    assert len(list(stages.glob("language-mask/*"))) == language_masks
    assert len(list(stages.glob("calibration/*"))) == calibrations


def test_each_regime_takes_other_statistics(tmp_path):
    """First blocks see the same inputs; only `sequential` shows language the pruned vision."""
    errors = {}
    for activations in ("dense", "tower", "sequential"):
        calibration = {"samples": 16, "activations": activations}
        spec = dataclasses.replace(specify(calibration=calibration), repair=None)
        (tmp_path / activations).mkdir()
        layers = run(spec, str(tmp_path / activations)).layers
        for tower in ("vision", "language"):
            own = [layer["output_error"] for layer in layers if layer["tower"] == tower]
            errors[activations, tower] = own
    assert errors["dense", "vision"][0] == errors["tower", "vision"][0]
    assert errors["tower", "vision"] == errors["sequential", "vision"]
    assert errors["dense", "vision"][-1] != errors["tower", "vision"][-1]
    assert errors["dense", "language"][0] == errors["tower", "language"][0]
    assert errors["tower", "language"][0] != errors["sequential", "language"][0]
    assert errors["dense", "language"][-1] != errors["tower", "language"][-1]


@pytest.mark.parametrize("method", sorted(REPAIR_METHODS))
def test_every_repair_method_ends_in_a_model_that_keeps_its_zeros(tmp_path, method):
    outcome = run(specify({"method": method}, method="magnitude"), str(tmp_path))
    summary = outcome.summary
    assert summary["pruned_nonzero"] == 0
    # What lora learnt where weights are pruned is lost when it is merged.
    assert (summary["merge_gap"] < 1e-3) == (method != "lora")
    states = {row["state"] for row in outcome.scores} - {"dense", "majority"}
    unmerged = {"repaired_unmerged"} if method == "lora" else set()
    assert states == {"pruned", "repaired"} | unmerged
    parts = [summary[f"{part}_trainable_weights"] for part in ("vision", "connector", "language")]
    assert summary["trainable_weights"] == sum(parts)
    assert min(parts) > 0


def test_the_papers_reduction_runs_with_a_live_teacher(tmp_path):
    repair = {"distillation": {"reduction": "reference", "weight": 0.1}}
    outcome = run(specify(repair, method="magnitude"), str(tmp_path))
    assert outcome.summary["pruned_nonzero"] == 0
    assert all(point["kl"] > 0 for point in outcome.curves)
    assert not (tmp_path / "stages" / "teacher").exists()


@pytest.mark.parametrize(("objective", "part"), [("text", "language"), ("features", "vision")])
def test_unimodal_repair_is_a_trial_like_any_other(tmp_path, objective, part):
    """With a teacher of its own: answers without a picture, or the dense tower, kept nowhere."""
    teachers = []
    for learnt in ("image_text", objective):
        repair = {"objective": learnt, "train": [part]}
        outcome = run(specify(repair, method="magnitude"), str(tmp_path))
        assert outcome.summary["trainable_weights"] == outcome.summary[f"{part}_trainable_weights"]
        assert outcome.summary["pruned_nonzero"] == 0
        teachers.append(len(list((tmp_path / "stages" / "teacher").iterdir())))
    is_text = objective == "text"
    assert teachers == [1, 2 if is_text else 1]
    for point in outcome.curves:
        assert (point["ce"] is not None) == (point["kl"] is not None) == is_text
    assert outcome.summary["merge_gap"] < 1e-3


def test_what_features_do_not_read_makes_no_other_trial():
    repair = {"objective": "features", "train": ["vision"]}
    heat = {"distillation": {"weight": 0.5, "temperature": 2.0}}
    assert specify(repair).key == specify(repair | heat).key
