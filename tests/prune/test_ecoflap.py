"""Importances by noise on the weights: a derivative, seeded, and nothing of it is left behind."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn import functional

from ressa.errors import CalibrationError
from ressa.models.vlm import VLM
from ressa.prune.ecoflap import importances
from ressa.prune.layers import layer_generator
from tests.prune.tiny import MODELS, in_little_memory, picture, questions


@pytest.fixture(params=MODELS)
def vlm(request: pytest.FixtureRequest) -> VLM:
    return MODELS[request.param]()


def measured(vlm: VLM, **options):
    values = {"epsilon": 1e-3, "seed": 0} | options
    layers = values.pop("layers", vlm.towers.inventory.layers)
    return importances(vlm, questions(), picture, layers, **values)


def test_every_layer_has_an_importance_and_the_model_is_as_it_was(vlm):
    before = {name: value.clone() for name, value in vlm.model.state_dict().items()}
    found = measured(vlm)
    assert list(found) == [layer.name for layer in vlm.towers.inventory.layers]
    assert all(value > 0 for value in found.values())
    for name, value in vlm.model.state_dict().items():
        assert value.equal(before[name])
        assert value.signbit().equal(before[name].signbit()) or not value.is_floating_point()


def test_for_little_noise_it_is_the_derivative_along_the_noise(vlm):
    vlm.model.double()  # norms and softmax stay in single precision: not too little noise
    layers = vlm.towers.inventory.layers[::7]
    found = measured(vlm, epsilon=1e-2, layers=layers)
    for layer in layers:
        noise = torch.randn(
            layer.rows, layer.columns, generator=layer_generator(0, layer.name)
        ).double()
        weight = vlm.model.get_submodule(layer.name).weight
        expected = 0.0
        for question in questions():  # each alone: no padding, no other question
            logits, tokens = vlm.answer_logits(vlm.encode([question], picture, answers=True))
            (slope,) = torch.autograd.grad(functional.cross_entropy(logits, tokens), weight)
            expected += abs(float((slope * noise).sum()))
        assert found[layer.name] == pytest.approx(expected, rel=1e-2)


def test_it_depends_on_seed_and_name_but_hardly_on_how_questions_are_cut(vlm):
    vlm.model.double()
    layers = vlm.towers.inventory.layers[::5]
    found = measured(vlm, layers=layers)
    assert measured(vlm, layers=layers) == found
    assert measured(vlm, layers=layers[::-1]) == found
    assert measured(vlm, layers=layers, seed=1) != found
    assert measured(vlm, layers=layers, chunk=3) == pytest.approx(found, rel=1e-6)


def test_a_chunk_that_does_not_fit_is_halved(vlm):
    layers = vlm.towers.inventory.layers[:1]
    with in_little_memory(vlm):
        found = measured(vlm, layers=layers, chunk=8)
    assert found == measured(vlm, layers=layers, chunk=2)


def test_half_precision_is_put_back_bit_for_bit(vlm):
    vlm.model.bfloat16()
    layers = vlm.towers.inventory.layers[:2]
    before = [vlm.model.get_submodule(layer.name).weight.clone() for layer in layers]
    found = measured(vlm, layers=layers, epsilon=0.05)
    assert all(value > 0 for value in found.values())
    for layer, weight in zip(layers, before, strict=True):
        assert vlm.model.get_submodule(layer.name).weight.equal(weight)


def test_a_model_in_training_is_measured_as_it_answers(vlm):
    for module in vlm.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    layers = vlm.towers.inventory.layers[:1]
    found = measured(vlm, layers=layers)
    vlm.model.train()
    assert measured(vlm, layers=layers) == found
    assert vlm.model.training


def test_a_loss_that_is_not_a_number_names_the_layer_and_leaves_the_weights(vlm):
    layers = vlm.towers.inventory.layers[:1]
    weight = vlm.model.get_submodule(layers[0].name).weight
    before = weight.clone()
    vlm.model.get_output_embeddings().weight.data.fill_(torch.nan)
    with pytest.raises(CalibrationError, match=f"noise on {layers[0].name}"):
        measured(vlm, layers=layers)
    assert weight.equal(before)


def _measure_as_worker(rank: int, workers: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/rendezvous", workers)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=workers)
    vlm = MODELS["llava"]()
    torch.save(measured(vlm, layers=vlm.towers.inventory.layers[:5]), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_workers_find_the_same_bit_for_bit(tmp_path: Path):
    mp.spawn(_measure_as_worker, (2, str(tmp_path)), nprocs=2)
    vlm = MODELS["llava"]()
    alone = measured(vlm, layers=vlm.towers.inventory.layers[:5])
    assert torch.load(tmp_path / "0.pt") == torch.load(tmp_path / "1.pt") == alone
