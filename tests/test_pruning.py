"""Which statistics a trial takes, and that its masks are the same with no more than it reads."""

import json
from pathlib import Path

import pytest
import torch
from torch import distributed

from ressa import keys, trial
from ressa.catalog import METHODS, NEEDS
from ressa.keys import calibration_key, stage_key, statistics_of
from ressa.prune import LayerReport, LayerStatistics, Statistics, mask_hash
from ressa.prune.sparsegpt import SparseGPT
from ressa.pruning import dealt
from ressa.records import TrialSpec
from ressa.sparsity import TOWERS, LayerShape
from ressa.spec import spec_from_mapping
from ressa.store import open_store
from ressa.sweep.cost import statistics_bytes
from ressa.sweep.plan import SweepPlan, make_plan
from ressa.workers import host, join, use_device

LARGE = "Salesforce/instructblip-vicuna-7b"


def plan_of(model: str = "pocket-llava", **prune: object) -> SweepPlan:
    content = {
        "ressa": 1,
        "model": model,
        "space": {"sparsity": 0.5},
        "prune": {"calibration": {"samples": 8}} | prune,
        "repair": {"method": "none"},
        "evaluate": [{"samples": 8}],
    }
    return make_plan(spec_from_mapping(content).spec)


def taken_by(plan: SweepPlan) -> dict[str, str]:
    spec = plan.trial({"sparsity": "0.5"})
    return {tower: statistics_of(spec, tower, plan.inventory) for tower in TOWERS}


def pruned(spec: TrialSpec, store: Path) -> tuple[str, dict[str, list[LayerReport]]]:
    steps = trial.remake(spec, str(store), None)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            work = end.value.pruning
            return mask_hash(work.masks), work.reports


def test_what_methods_read_is_known_without_importing_them():
    assert {name: METHODS[name]().needs for name in NEEDS} == dict(NEEDS)


@pytest.mark.parametrize(
    ("prune", "vision", "language"),
    [
        ({"method": "wanda"}, "moments", "moments"),
        ({"method": "sparsegpt"}, "gram", "gram"),
        ({"method": "random", "layers": "owl"}, "nothing", "nothing"),
        ({"method": "dsnot"}, "moments", "moments"),
        ({"method": "dsnot", "from": "sparsegpt"}, "gram", "gram"),
        ({"method": "magnitude", "language": {"method": "sparsegpt"}}, "nothing", "gram"),
    ],
    ids=lambda value: str(value),
)
def test_a_large_tower_has_what_its_method_reads_and_a_small_one_its_gram_matrices(
    prune, vision, language, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert taken_by(plan_of(**prune)) == dict.fromkeys(TOWERS, "gram")
    assert taken_by(plan_of(LARGE, **prune)) == {"vision": vision, "language": language}


def test_keys_tell_statistics_with_gram_matrices_from_those_without(monkeypatch):
    plan = plan_of()
    spec = plan.trial({"sparsity": "0.5"})
    before = stage_key(spec, "calibration", "vision", spec.calibration)
    assert calibration_key(spec, "vision", plan.inventory) == before
    monkeypatch.setattr(keys, "GRAM_BYTES", 0)
    assert calibration_key(spec, "vision", plan.inventory) not in (before, None)
    nothing = plan_of(method="magnitude").trial({"sparsity": "0.5"})
    assert calibration_key(nothing, "vision", plan.inventory) is None


BEHIND = {"samples": 8, "activations": "sequential"}


@pytest.mark.parametrize(
    ("prune", "calibrations", "with_error"),
    [
        ({"method": "wanda", "group": "tower"}, 2, ()),
        ({"method": "magnitude", "layers": "owl", "owl": {"spread": 0.1}}, 0, ()),
        ({"method": "magnitude", "calibration": BEHIND}, 0, ()),
        ({"method": "wanda", "calibration": BEHIND, "layers": "owl"}, 0, ()),
        ({"method": "dsnot", "from": "sparsegpt"}, 2, TOWERS),
        ({"method": "sparsegpt", "language": {"method": "wanda"}}, 2, ("vision",)),
    ],
    ids=lambda value: str(value),
)
def test_masks_are_those_of_a_trial_that_takes_every_gram_matrix(
    prune, calibrations, with_error, tmp_path, monkeypatch
):
    spec = plan_of(**prune).trial({"sparsity": "0.5"})
    (tmp_path / "small").mkdir(), (tmp_path / "large").mkdir()
    masks, reports = pruned(spec, tmp_path / "small")
    assert all(one.output_error is not None for tower in TOWERS for one in reports[tower])
    monkeypatch.setattr(keys, "GRAM_BYTES", 0)
    again, reports = pruned(spec, tmp_path / "large")
    assert again == masks
    stages = open_store(tmp_path / "large").stages
    assert len(stages.keys("calibration")) == calibrations
    for tower in TOWERS:
        assert {one.output_error is not None for one in reports[tower]} == {tower in with_error}
    for key in stages.keys("calibration"):
        blocks = (stages.get("calibration", key) or {}).values()
        layers = [one for part in blocks for one in Statistics.from_bytes(part).layers.items()]
        assert layers
        for name, known in layers:
            (tower,) = {one.tower for each in reports.values() for one in each if one.name == name}
            assert (known.gram is not None) == (tower in with_error)


@pytest.mark.parametrize("model", ["pocket-llava", "pocket-blip2"])
def test_a_plans_estimate_of_statistics_is_their_size(model, tmp_path):
    plan = plan_of(model)
    pruned(plan.trial({"sparsity": "0.5"}), tmp_path)
    stored = sum(
        stage.size
        for stage in open_store(tmp_path).stages.inventory()
        if stage.stage == "calibration"
    )
    estimated = sum(statistics_bytes(plan.inventory.tower(tower), "gram") for tower in TOWERS)
    assert estimated == pytest.approx(stored, rel=0.1)


def test_layers_of_one_input_are_dealt_to_one_worker_and_all_are_dealt_once():
    shapes = {"q": (8, 8), "k": (8, 8), "v": (8, 8), "o": (8, 8), "up": (32, 8), "down": (8, 32)}
    block = [
        LayerShape(name=name, tower="language", block=0, rows=rows, columns=columns)
        for name, (rows, columns) in shapes.items()
    ]
    sums = {name: torch.zeros(columns).double() for name, (_, columns) in shapes.items()}
    known = {
        name: LayerStatistics(samples=1, tokens=1, sums=own, square_sums=own)
        for name, own in sums.items()
    }
    known |= dict.fromkeys("kv", known["q"])
    names = [[layer.name for layer in hand] for hand in dealt(block, known, 3)]
    assert names == [["down"], ["up"], ["q", "k", "v", "o"]]
    (all_of_them,) = dealt(block, known, 1)
    assert sorted(layer.name for layer in all_of_them) == sorted(shapes)
    alone = dealt(block, {}, 8)
    assert sorted(len(hand) for hand in alone) == [0, 0, 1, 1, 1, 1, 1, 1]


class Counted(SparseGPT):
    """SparseGPT that remembers how many layers it was asked about."""

    asked = 0

    def prune(self, *args):
        Counted.asked += 1
        return super().prune(*args)


def prune_as_worker(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    use_device(0)
    join(rank, 2, "127.0.0.1", port, own="127.0.0.1")
    METHODS.register("counted")(Counted)
    masks, reports = pruned(plan_of(method="counted").trial({"sparsity": "0.5"}), Path(folder))
    errors = {one.name: one.output_error for tower in TOWERS for one in reports[tower]}
    said = {"masks": masks, "asked": Counted.asked, "errors": errors}
    Path(folder, f"{rank}.json").write_text(json.dumps(said))
    distributed.destroy_process_group()


def test_each_layer_is_pruned_by_one_of_two_workers_as_one_alone_would(tmp_path):
    (tmp_path / "alone").mkdir()
    spec = plan_of(method="sparsegpt").trial({"sparsity": "0.5"})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    masks, reports = pruned(spec, tmp_path / "alone")
    torch.set_num_threads(threads)
    meeting = host("127.0.0.1")
    arguments = (meeting.port, str(tmp_path))
    torch.multiprocessing.spawn(prune_as_worker, args=arguments, nprocs=2)
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    errors = {one.name: one.output_error for tower in TOWERS for one in reports[tower]}
    for each in found:
        assert each["masks"] == masks
        assert list(each["errors"].items()) == list(errors.items())
    asked = [each["asked"] for each in found]
    assert sum(asked) == len(errors) and min(asked) > 0
