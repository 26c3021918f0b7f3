import logging
import shutil
from pathlib import Path

import pytest
import torch

from ressa.catalog import MODELS
from ressa.data.easy_vqa import EasyVQA
from ressa.errors import SpecError
from ressa.evaluate import predictions
from ressa.models import load_inventory, load_vlm
from ressa.models.identity import fingerprint, is_on_hub, pinned
from ressa.spec import ModelRef


def test_weights_are_mapped_from_their_file_and_so_shared_by_workers_of_a_node() -> None:
    vlm = load_vlm("pocket-blip2")
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    mapped = [
        tuple(int(end, 16) for end in fields[0].split("-"))
        for fields in maps
        if fields[-1].endswith("pocket-blip2/model.safetensors")
    ]
    for name, parameter in vlm.model.named_parameters():
        assert any(low <= parameter.data_ptr() < high for low, high in mapped), name


def test_pickled_weights_are_refused_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(MODELS["pocket-blip2"].folder, folder)
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(SpecError, match=r"no \*\.safetensors, only pytorch_model\.bin"):
        load_vlm(str(folder))
    assert load_inventory(str(folder)) == MODELS["pocket-blip2"].inventory()  # needs no weights


def test_a_hub_that_does_not_answer_is_asked_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(SpecError, match=r"nobody/no-such-model cannot be loaded from the hub"),
    ):
        load_inventory("nobody/no-such-model")
    assert caplog.text.count("the hub does not answer") == 1
    assert "Retrying" not in caplog.text


def test_a_model_known_by_name_whose_weights_are_on_the_hub_is_told_by_its_revision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    ref = ModelRef(id="Salesforce/instructblip-flan-t5-xl", revision="abc")
    assert is_on_hub(ref)
    assert fingerprint(ref) == "hub:Salesforce/instructblip-flan-t5-xl@abc"
    assert pinned(ref) == (ref, False)  # no copy here says which commit it is


@pytest.mark.parametrize("name", ["pocket-blip2", "pocket-llava"])
def test_pictures_of_another_size_are_read_as_well(name: str) -> None:
    task = EasyVQA()
    examples = task.examples("validation", 40, seed=0)
    vlm = load_vlm(ModelRef(id=name, image_size=96))
    batch = vlm.encode(examples, task.image, answers=False)
    assert batch.inputs["pixel_values"].shape[-2:] == (96, 96)
    answers = predictions(vlm, task, examples)
    right = sum(given == e.answer for given, e in zip(answers, examples, strict=True))
    assert right > 0.9 * len(examples)


@pytest.mark.parametrize(
    ("size", "why"), [(60, "a multiple of the patch size 8"), (4, "a multiple of the patch size 8")]
)
def test_a_size_that_patches_do_not_fill_is_refused_before_a_weight_is_read(
    size: int, why: str
) -> None:
    with pytest.raises(SpecError, match=f"model.image_size: {why}"):
        load_inventory(ModelRef(id="pocket-llava", image_size=size))
