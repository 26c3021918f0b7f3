"""One trial in this process, without Ray: what pruning hands on reaches the end."""

import shutil

import pytest

from ressa import trial
from ressa.records import Outcome, TrialSpec
from ressa.repair import REPAIR_METHODS
from ressa.spec import apply_point, spec_from_mapping

LEAST = {
    "ressa": 1,
    "model": "pocket-llava",
    "space": {"vision_sparsity": "2:4", "language_sparsity": 0.5},
    "repair": {"steps": 2, "batch_size": 16, "data": {"samples": 32}},
    "evaluate": [{"samples": 40}],
}


def specify(repair: dict[str, object] | None = None, **prune: object) -> TrialSpec:
    content = LEAST | {"prune": {"calibration": {"samples": 16}} | prune}
    loaded = spec_from_mapping(content | {"repair": LEAST["repair"] | (repair or {})})
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
