import numpy as np
import pytest
import tiny
import torch
import torch.multiprocessing

from ressa.errors import CalibrationError
from ressa.models.vlm import VLM
from ressa.prune import InputNorms, calibrate, prune_tower
from ressa.prune.statistics import weighted_square_sum
from ressa.prune.wanda import Wanda
from ressa.sparsity import Target


@pytest.fixture(params=tiny.MODELS)
def vlm(request) -> VLM:
    return tiny.MODELS[request.param]()


def inputs_one_by_one(vlm: VLM) -> dict[str, np.ndarray]:
    """Every layer's input rows when each question goes through alone, so without padding."""
    rows: dict[str, list[np.ndarray]] = {layer.name: [] for layer in vlm.towers.inventory.layers}

    def listen(name: str):
        return lambda module, args, output: rows[name].append(
            args[0].numpy().astype(np.float64).reshape(-1, module.in_features)
        )

    hooks = [vlm.model.get_submodule(n).register_forward_hook(listen(n)) for n in rows]
    with torch.no_grad():
        for question in tiny.questions():
            vlm.answer_logits(vlm.encode([question], tiny.picture, answers=True))
    for hook in hooks:
        hook.remove()
    return {name: np.concatenate(parts) for name, parts in rows.items()}


def assert_close(one: InputNorms, other: InputNorms) -> None:
    assert one.tokens == other.tokens
    for name, sums in one.square_sums.items():
        np.testing.assert_allclose(sums, other.square_sums[name], rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_sums_are_those_of_questions_that_go_through_alone(vlm, chunk):
    norms = calibrate(vlm, tiny.questions(), tiny.picture, chunk=chunk)
    expected = inputs_one_by_one(vlm)
    assert norms.tokens == {name: len(rows) for name, rows in expected.items()}
    for name, rows in expected.items():
        squares = (rows**2).sum(axis=0)
        np.testing.assert_allclose(norms.square_sums[name], squares, rtol=1e-4, err_msg=name)
        np.testing.assert_allclose(norms.norm(name), np.sqrt(squares), rtol=1e-4, err_msg=name)


def test_sums_do_not_depend_on_the_order_of_the_questions(vlm):
    questions = tiny.questions()
    assert_close(
        calibrate(vlm, questions, tiny.picture, chunk=4),
        calibrate(vlm, questions[::2] + questions[1::2], tiny.picture, chunk=5),
    )


def test_what_padding_looks_like_does_not_matter(vlm):
    before = calibrate(vlm, tiny.questions(), tiny.picture)
    vlm.model.get_input_embeddings().weight.data[tiny.PAD] = 1000
    assert_close(calibrate(vlm, tiny.questions(), tiny.picture), before)


def test_twice_the_questions_double_the_sums(vlm):
    once = calibrate(vlm, tiny.questions(), tiny.picture, chunk=11)
    twice = calibrate(vlm, tiny.questions() * 2, tiny.picture, chunk=11)
    assert all(twice.square_sums[name].equal(2 * once.square_sums[name]) for name in once.tokens)


def test_layers_can_be_chosen(vlm):
    layers = vlm.towers.inventory.tower("language")[3:5]
    chosen = calibrate(vlm, tiny.questions(), tiny.picture, layers=layers)
    everything = calibrate(vlm, tiny.questions(), tiny.picture)
    assert list(chosen.square_sums) == [layer.name for layer in layers]
    for name, sums in chosen.square_sums.items():
        assert sums.equal(everything.square_sums[name])


def test_two_workers_get_the_same_bytes_as_one(tmp_path):
    torch.multiprocessing.spawn(tiny.calibrate_as_worker, args=(2, str(tmp_path)), nprocs=2)
    for name, build in tiny.MODELS.items():
        alone = calibrate(build(), tiny.questions(), tiny.picture, chunk=4).to_bytes()
        assert (tmp_path / f"{name}-0").read_bytes() == alone
        assert (tmp_path / f"{name}-1").read_bytes() == alone


def test_calibration_leaves_the_model_as_it_was(vlm):
    vlm.model.train()
    before = {name: value.clone() for name, value in vlm.model.state_dict().items()}
    calibrate(vlm, tiny.questions(), tiny.picture)
    assert all(value.equal(before[name]) for name, value in vlm.model.state_dict().items())
    assert vlm.model.training


def test_calibration_leaves_no_hook(vlm):
    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in vlm.model.modules())

    vlm.answer_logits(vlm.encode(tiny.questions(), tiny.picture, answers=True))
    before = hooks()  # transformers leaves some of its own after a first pass
    calibrate(vlm, tiny.questions(), tiny.picture)
    assert hooks() == before


def test_inputs_that_are_not_finite_name_their_layer(vlm):
    layer = vlm.towers.inventory.tower("vision")[-1]
    vlm.model.get_submodule(layer.name.replace("fc2", "fc1")).weight.data[0] = torch.nan
    with pytest.raises(CalibrationError, match=layer.name) as caught:
        calibrate(vlm, tiny.questions(), tiny.picture)
    assert caught.value.failure == "numeric"


def test_no_examples_are_no_statistics(vlm):
    with pytest.raises(CalibrationError, match="no calibration token"):
        calibrate(vlm, [], tiny.picture)


def test_statistics_come_back_from_bytes(vlm):
    norms = calibrate(vlm, tiny.questions(), tiny.picture)
    restored = InputNorms.from_bytes(norms.to_bytes())
    assert restored.tokens == norms.tokens
    assert restored.square_sums.keys() == norms.square_sums.keys()
    assert all(restored.square_sums[name].equal(sums) for name, sums in norms.square_sums.items())


def test_rows_of_no_weight_may_hold_anything():
    rows = torch.tensor([[1.0, 2.0], [torch.nan, torch.inf], [3.0, 4.0]])
    assert weighted_square_sum(rows, torch.tensor([1, 0, 2])).tolist() == [19, 36]


def test_half_precision_inputs_do_not_overflow():
    rows = torch.full((8, 1), 300.0, dtype=torch.float16)  # 300² is beyond float16
    assert weighted_square_sum(rows, torch.ones(8)).tolist() == [720_000]


@pytest.mark.parametrize("tower", ["vision", "language"])
def test_wanda_prunes_a_calibrated_tower_exactly(vlm, tower):
    norms = calibrate(vlm, tiny.questions(), tiny.picture)
    layers = vlm.towers.inventory.tower(tower)
    for target in ["0.37", "2:4"]:
        pruned = prune_tower(vlm.model, layers, Wanda(), target=Target.parse(target), norms=norms)
        weights = sum(layer.weights for layer in layers)
        expected = weights // 2 if target == "2:4" else (37 * weights + 50) // 100
        assert sum(report.zeros for report in pruned.layers) == expected
