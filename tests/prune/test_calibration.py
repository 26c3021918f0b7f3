import json
import weakref

import numpy as np
import pytest
import tiny
import torch
import torch.multiprocessing

from ressa.errors import CalibrationError
from ressa.models.vlm import VLM
from ressa.prune import PrunedLayers, Statistics, prune_tower, walk
from ressa.prune.dsnot import DSnoT
from ressa.prune.sparsegpt import SparseGPT
from ressa.prune.wanda import Wanda
from ressa.sparsity import TOWERS, Target


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


SHARED = {
    # Keys and values of cross-attention read one tensor in both decoder blocks.
    "tiny-blip2": {("k", "q", "v"), ("q",), ("k", "k", "v", "v"), ("wi_0", "wi_1"), ("qkv",)},
    "tiny-llava": {("k_proj", "q_proj", "v_proj"), ("gate_proj", "up_proj"), ("fc1",)},
}


def gated_unit(vlm: VLM) -> list[str]:
    """The two halves of a gated unit, which read one input, in the order in which they run."""
    names = [layer.name for layer in vlm.towers.inventory.tower("language")]
    return [n for n in names if n.endswith(("wi_0", "wi_1", "gate_proj", "up_proj"))][:2]


def tokens(statistics: Statistics) -> dict[str, int]:
    return {name: layer.tokens for name, layer in statistics.layers.items()}


def assert_close(one: Statistics, other: Statistics) -> None:
    assert tokens(one) == tokens(other)
    for name, layer in one.layers.items():
        same, scale = other.layers[name], float(layer.square_sums.max())
        for kind in ("sums", "square_sums"):
            got, expected = getattr(layer, kind), getattr(same, kind)
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5 * scale, err_msg=name)


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_sums_are_those_of_questions_that_go_through_alone(vlm, chunk):
    statistics = tiny.calibrate_all(vlm, chunk=chunk)
    expected = inputs_one_by_one(vlm)
    assert tokens(statistics) == {name: len(rows) for name, rows in expected.items()}
    for name, rows in expected.items():
        layer, squares = statistics.layers[name], (rows**2).sum(axis=0)
        near = {"rtol": 1e-4, "atol": 1e-5 * squares.max(), "err_msg": name}
        np.testing.assert_allclose(layer.square_sums, squares, **near)
        np.testing.assert_allclose(layer.norm, np.sqrt(squares), **near)
        np.testing.assert_allclose(layer.sums, rows.sum(axis=0), **near)
        np.testing.assert_allclose(layer.variance, rows.var(axis=0), **near)
        np.testing.assert_allclose(layer.gram, rows.T @ rows, **near)
        assert layer.gram.equal(layer.gram.T)
        assert layer.samples == len(tiny.questions())


def test_moments_are_the_same_without_gram_matrices(vlm):
    known, less = tiny.calibrate_all(vlm), tiny.calibrate_all(vlm, gram=False)
    assert less.layers.keys() == known.layers.keys()
    for name, layer in less.layers.items():
        assert layer.gram is None
        assert layer.sums.equal(known.layers[name].sums)
        assert layer.square_sums.equal(known.layers[name].square_sums)
    assert len(less.to_bytes()) < len(known.to_bytes())


def test_layers_of_one_input_share_their_statistics(vlm):
    statistics = tiny.calibrate_all(vlm)
    shared: dict[int, list[str]] = {}
    for name, layer in statistics.layers.items():
        assert id(layer.gram) not in shared or layer is statistics.layers[shared[id(layer.gram)][0]]
        shared.setdefault(id(layer.gram), []).append(name)
    expected = inputs_one_by_one(vlm)
    for names in shared.values():
        for name in names:
            assert (expected[name] == expected[names[0]]).all()
    together = {tuple(sorted(name.rpartition(".")[2] for name in n)) for n in shared.values()}
    assert SHARED[vlm.name] <= together


def test_an_input_that_is_changed_between_two_readers_is_not_shared(vlm):
    first, second = gated_unit(vlm)

    def double(module, args, output):
        args[0].mul_(2)

    hook = vlm.model.get_submodule(first).register_forward_hook(double)
    layers = tiny.calibrate_all(vlm).layers
    hook.remove()
    np.testing.assert_allclose(layers[second].square_sums, 4 * layers[first].square_sums, rtol=1e-6)


def test_sums_do_not_depend_on_the_order_of_the_questions(vlm):
    questions = tiny.questions()
    assert_close(
        tiny.calibrate_all(vlm, questions, chunk=4),
        tiny.calibrate_all(vlm, questions[::2] + questions[1::2], chunk=5),
    )


def test_what_padding_looks_like_does_not_matter(vlm):
    before = tiny.calibrate_all(vlm)
    vlm.model.get_input_embeddings().weight.data[tiny.PAD] = 1000
    assert_close(tiny.calibrate_all(vlm), before)


def test_twice_the_questions_double_the_sums(vlm):
    once = tiny.calibrate_all(vlm, chunk=11)
    twice = tiny.calibrate_all(vlm, tiny.questions() * 2, chunk=11)
    for name, layer in once.layers.items():
        assert twice.layers[name].sums.equal(2 * layer.sums)
        assert twice.layers[name].square_sums.equal(2 * layer.square_sums)
        assert twice.layers[name].gram.equal(2 * layer.gram)


def test_two_workers_get_the_same_bytes_as_one(tmp_path):
    torch.multiprocessing.spawn(tiny.calibrate_as_worker, args=(2, str(tmp_path)), nprocs=2)
    for name, build in tiny.MODELS.items():
        alone = tiny.calibrate_all(build(), chunk=4).to_bytes()
        assert (tmp_path / f"{name}-0").read_bytes() == alone
        assert (tmp_path / f"{name}-1").read_bytes() == alone
        little = tiny.calibrate_all(build(), chunk=2).to_bytes()
        moments = tiny.calibrate_all(build(), chunk=4, gram=False).to_bytes()
        masks = tiny.mask_hashes(tiny.prune_both_towers(build(), Wanda(), chunk=4))
        for rank in (0, 1):
            assert (tmp_path / f"{name}-{rank}-moments").read_bytes() == moments
            assert (tmp_path / f"{name}-{rank}-little").read_bytes() == little  # of one of them
            assert json.loads((tmp_path / f"{name}-{rank}-masks").read_text()) == masks


def test_a_chunk_that_does_not_fit_is_halved(vlm, caplog):
    with tiny.in_little_memory(vlm):
        found = tiny.calibrate_all(vlm, chunk=8)
    assert "a chunk of 8 does not fit in calibration; trying 4" in caplog.text
    assert found.to_bytes() == tiny.calibrate_all(vlm, chunk=2).to_bytes()


@pytest.mark.parametrize("prunes", [False, True])
def test_a_chunk_that_does_not_fit_behind_a_block_yields_no_block_twice(vlm, prunes):
    """What was pruned stays so, and blocks behind it read what it now puts out."""
    first = next(x.name for x in vlm.towers.inventory.layers)

    def blocks(**options):
        for tower in TOWERS:
            for known in walk(vlm, tiny.questions(), tiny.picture, tower, **options):
                yield known
                if prunes:
                    tiny.prune_one_block(vlm, Wanda(), known)

    before = vlm.model.get_submodule(first).weight.clone()
    with tiny.in_little_memory(vlm, block=1):
        found = list(blocks(chunk=8, prunes=prunes))
    assert before.equal(vlm.model.get_submodule(first).weight) != prunes
    vlm = tiny.MODELS[vlm.name.removeprefix("tiny-")]()
    for one, other in zip(found, blocks(chunk=2, prunes=prunes), strict=True):
        assert_close(one, other)


def test_one_question_that_does_not_fit_is_named(vlm, monkeypatch):
    monkeypatch.setattr(vlm.processor, "image_processor", _no_memory)
    with pytest.raises(CalibrationError, match="vision tower with one question") as error:
        tiny.calibrate_all(vlm)
    assert error.value.failure == "oom"
    assert not any("forward" in vars(module) for module in vlm.model.modules())


def _no_memory(*args, **options):
    raise torch.OutOfMemoryError


@pytest.mark.parametrize("method", [Wanda, SparseGPT])
def test_each_block_is_calibrated_behind_the_pruned_blocks_before_it(vlm, method):
    """The published protocol, done the slow way: all examples from the start for every block."""
    blocks = tiny.prune_both_towers(vlm, method(), chunk=4)

    slow = tiny.MODELS[vlm.name.removeprefix("tiny-")]()
    expected = []
    for tower in TOWERS:
        for number in range(len(slow.towers.blocks[tower])):
            layers = [x for x in slow.towers.inventory.tower(tower) if x.block == number]
            known = tiny.calibrate_all(slow, chunk=4)
            known = Statistics({layer.name: known.layers[layer.name] for layer in layers})
            expected.append(tiny.prune_one_block(slow, method(), known))
    for content, other in zip(blocks, expected, strict=True):
        pruned = PrunedLayers.from_bytes(content)
        assert list(pruned.masks) == list(other.masks)
        for name, mask in pruned.masks.items():
            assert mask.equal(other.masks[name])
        for name, weight in pruned.weights.items():
            assert weight.equal(other.weights[name])
    assert len(blocks) == sum(map(len, slow.towers.blocks.values()))


def test_behind_pruned_blocks_statistics_differ(vlm):
    dense = tiny.calibrate_all(vlm)
    sequential = [
        (known, tiny.prune_one_block(vlm, Wanda(), known))[0]
        for tower in TOWERS
        for known in walk(vlm, tiny.questions(), tiny.picture, tower, prunes=True)
    ]
    first, *later = sequential
    for name, layer in first.layers.items():
        assert layer.gram.equal(dense.layers[name].gram)
    for known in later:  # a decoder's first layers read embeddings, which are not pruned
        assert any(not x.gram.equal(dense.layers[n].gram) for n, x in known.layers.items())
        assert all(x.tokens == dense.layers[n].tokens for n, x in known.layers.items())


def test_one_blocks_statistics_are_held_at_a_time(vlm):
    seen = []
    for known in walk(vlm, tiny.questions(), tiny.picture, "vision"):
        seen.append(weakref.ref(next(iter(known.layers.values())).gram))
        assert all(ref() is None for ref in seen[:-1])
        del known


@pytest.mark.parametrize("prunes", [False, True])
def test_while_a_block_is_worked_on_statistics_of_the_one_before_are_gone(vlm, prunes):
    layers = vlm.towers.inventory.tower("vision")
    second = next(layer.name for layer in layers if layer.block == 1)
    seen: list[weakref.ref[torch.Tensor]] = []
    held = []
    hook = vlm.model.get_submodule(second).register_forward_pre_hook(
        lambda module, args: held.append(seen[0]() is not None)
    )
    for known in walk(vlm, tiny.questions(), tiny.picture, "vision", prunes=prunes):
        seen.append(weakref.ref(next(iter(known.layers.values())).gram))
        del known
    hook.remove()
    assert held and not any(held)


def test_what_follows_each_block_may_need_gradients(vlm):
    for _ in walk(vlm, tiny.questions(), tiny.picture, "vision"):
        assert torch.is_grad_enabled()


def test_a_walk_that_is_left_half_way_leaves_the_model_as_it_was(vlm):
    before = vlm.answer_logits(vlm.encode(tiny.questions(), tiny.picture, answers=True))[0]
    for _ in walk(vlm, tiny.questions(), tiny.picture, "language", chunk=3):
        break
    after = vlm.answer_logits(vlm.encode(tiny.questions(), tiny.picture, answers=True))[0]
    assert after.equal(before)
    assert not any("forward" in vars(module) for module in vlm.model.modules())


def test_calibration_leaves_the_model_as_it_was(vlm):
    vlm.model.train()
    before = {name: value.clone() for name, value in vlm.model.state_dict().items()}
    tiny.calibrate_all(vlm)
    assert all(value.equal(before[name]) for name, value in vlm.model.state_dict().items())
    assert vlm.model.training


def test_calibration_leaves_no_hook(vlm):
    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in vlm.model.modules())

    vlm.answer_logits(vlm.encode(tiny.questions(), tiny.picture, answers=True))
    before = hooks()  # transformers leaves some of its own after a first pass
    tiny.calibrate_all(vlm)
    assert hooks() == before


def test_inputs_that_are_not_finite_name_their_layer(vlm):
    layer = vlm.towers.inventory.tower("vision")[-1]
    vlm.model.get_submodule(layer.name.replace("fc2", "fc1")).weight.data[0] = torch.nan
    with pytest.raises(CalibrationError, match=layer.name) as caught:
        tiny.calibrate_all(vlm)
    assert caught.value.failure == "numeric"


def test_no_examples_are_no_statistics(vlm):
    with pytest.raises(CalibrationError, match="no calibration token"):
        tiny.calibrate_all(vlm, [])


def test_statistics_come_back_from_bytes(vlm):
    statistics = tiny.calibrate_all(vlm)
    content = statistics.to_bytes()
    restored = Statistics.from_bytes(content)
    assert list(restored.layers) == list(statistics.layers)
    assert tokens(restored) == tokens(statistics)
    assert restored.to_bytes() == content
    for name, layer in statistics.layers.items():
        assert restored.layers[name].sums.equal(layer.sums)
        assert restored.layers[name].square_sums.equal(layer.square_sums)
        assert restored.layers[name].gram.equal(layer.gram)
    distinct = {id(layer.sums) for layer in statistics.layers.values()}
    assert len({id(layer.sums) for layer in restored.layers.values()}) == len(distinct)


def test_an_input_that_is_shared_now_and_then_is_refused(vlm):
    _, second = gated_unit(vlm)
    calls = []

    def copy_later(module, args):
        calls.append(module)
        return (args[0].clone(),) if len(calls) > 1 else None

    hook = vlm.model.get_submodule(second).register_forward_pre_hook(copy_later)
    with pytest.raises(CalibrationError, match=second):
        tiny.calibrate_all(vlm)
    hook.remove()


@pytest.mark.parametrize("tower", ["vision", "language"])
@pytest.mark.parametrize("method", [Wanda, SparseGPT, DSnoT])
def test_a_calibrated_tower_is_pruned_exactly(vlm, tower, method):
    statistics = tiny.calibrate_all(vlm)
    layers = vlm.towers.inventory.tower(tower)
    for target in ["0.37", "2:4"]:
        pruned = prune_tower(
            vlm.model, layers, method(), target=Target.parse(target), statistics=statistics
        )
        weights = sum(layer.weights for layer in layers)
        expected = weights // 2 if target == "2:4" else (37 * weights + 50) // 100
        assert sum(report.zeros for report in pruned.layers) == expected
