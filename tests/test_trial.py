"""One trial in this process, without Ray: what pruning hands on reaches the end."""

import dataclasses
import shutil

import pytest

from ressa import trial
from ressa.records import Outcome, TrialSpec
from ressa.spec import apply_point, spec_from_mapping

LEAST = {
    "ressa": 1,
    "model": "pocket-llava",
    "space": {"vision_sparsity": "2:4", "language_sparsity": 0.5},
    "repair": {"steps": 2, "batch_size": 16, "data": {"samples": 32}},
    "evaluate": [{"samples": 40}],
}


def specify(vision_target: str = "2:4", **prune: object) -> TrialSpec:
    loaded = spec_from_mapping(LEAST | {"prune": {"calibration": {"samples": 16}} | prune})
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


def test_a_trial_that_finds_its_masks_comes_to_the_same_scores(tmp_path):
    spec = specify(method="sparsegpt")
    first = run(spec, str(tmp_path))
    shutil.rmtree(tmp_path / "stages" / "outcome")
    again = run(spec, str(tmp_path))
    assert again.scores == first.scores
    assert again.layers == first.layers  # with the seconds that the first run took
    assert again.summary["mask_hash"] == first.summary["mask_hash"]


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
