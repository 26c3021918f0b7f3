import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, LlavaConfig

from ressa.catalog import MODELS
from ressa.data.easy_vqa import EasyVQA
from ressa.errors import SpecError
from ressa.evaluate import predictions
from ressa.models import load_inventory, load_vlm
from ressa.models.identity import fingerprint, is_on_hub, pinned
from ressa.models.loading import refuse_unloadable
from ressa.spec import ModelRef
from ressa.testing import ModelContract


class TestPocketBlip2KeepsTheContract(ModelContract):
    model = MODELS["pocket-blip2"]


class TestPocketLlavaKeepsTheContract(ModelContract):
    model = MODELS["pocket-llava"]


def test_the_contract_catches_a_model_with_layers_of_another(tmp_path: Path) -> None:
    folder = shutil.copytree(MODELS["pocket-blip2"].folder, tmp_path / "mixed")
    shutil.copy(MODELS["pocket-llava"].folder / "inventory.json", folder)
    mixed = replace(MODELS["pocket-blip2"], folder=folder)
    contract = type("Contract", (ModelContract,), {"model": mixed})()
    with pytest.raises(AssertionError):
        contract.test_its_list_of_layers_is_that_of_its_files()


@pytest.mark.parametrize("shard", ["1GB", "500KB"])
def test_weights_are_mapped_from_their_files_and_so_shared_by_workers_of_a_node(
    shard: str, tmp_path: Path
) -> None:
    pocket = load_vlm("pocket-blip2")
    pocket.model.save_pretrained(tmp_path, max_shard_size=shard)
    pocket.processor.save_pretrained(tmp_path)
    files = len(list(tmp_path.glob("*.safetensors")))
    assert (files == 1) == (shard == "1GB")
    vlm = load_vlm(str(tmp_path))
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    mapped = [
        tuple(int(end, 16) for end in fields[0].split("-"))
        for fields in maps
        if fields[-1].startswith(f"{tmp_path}/model") and fields[-1].endswith(".safetensors")
    ]
    assert len(mapped) >= files
    for name, parameter in vlm.model.named_parameters():
        assert any(low <= parameter.data_ptr() < high for low, high in mapped), name


# Loads a model, reads every weight, and tells on demand how many bytes its weights' files take of
# the memory (those of a page that two processes map count half), and how many it holds by itself.
_WORKER = """
import json, sys
from ressa.models import load_vlm
from ressa.spec import ModelRef

load_vlm("pocket-llava")  # whatever loading takes by itself is there before
def memory():
    mapped = anonymous = 0
    of_weights = False
    for line in open("/proc/self/smaps"):
        if "-" in line.split()[0]:
            of_weights = line.rstrip().endswith(".safetensors")
        elif line.startswith("Pss:") and of_weights:
            mapped += int(line.split()[1]) * 1024
        elif line.startswith("Anonymous:"):
            anonymous += int(line.split()[1]) * 1024
    return mapped, anonymous

before = memory()[1]
vlm = load_vlm(ModelRef(id=sys.argv[1], dtype="bfloat16"))
for parameter in vlm.model.parameters():
    parameter.abs().max()
print("read", flush=True)
for _ in sys.stdin:
    mapped, anonymous = memory()
    print(json.dumps([mapped, anonymous - before]), flush=True)
"""


@pytest.mark.slow
def test_two_workers_of_a_node_hold_one_copy_of_a_large_models_weights(tmp_path: Path) -> None:
    vision = {"model_type": "clip_vision_model", "hidden_size": 512, "intermediate_size": 2048}
    vision |= {"num_hidden_layers": 8, "num_attention_heads": 8, "image_size": 32, "patch_size": 8}
    text = {"model_type": "llama", "hidden_size": 1024, "intermediate_size": 4096}
    text |= {"num_hidden_layers": 14, "num_attention_heads": 8, "vocab_size": 200}
    config = LlavaConfig(vision_config=vision, text_config=text)
    model = AutoModelForImageTextToText.from_config(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size="100MB")
    load_vlm("pocket-llava").processor.save_pretrained(tmp_path)
    size = sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    assert size > 400e6
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", _WORKER, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        told = []
        for worker in workers:
            assert worker.stdout is not None and worker.stdout.readline() == "read\n"
        for worker in workers:
            assert worker.stdin is not None and worker.stdout is not None
            worker.stdin.write("now\n")
            worker.stdin.flush()
            told.append(json.loads(worker.stdout.readline()))
    finally:
        for worker in workers:
            worker.communicate()
    assert abs(sum(mapped for mapped, _ in told) - size) < 0.05 * size
    assert all(own < 0.1 * size for _, own in told)


def test_pickled_weights_are_refused_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(MODELS["pocket-blip2"].folder, folder)
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(SpecError, match=r"no \*\.safetensors, only pytorch_model\.bin"):
        load_vlm(str(folder))
    assert load_inventory(str(folder)) == MODELS["pocket-blip2"].inventory()  # needs no weights


def _without_processor(folder: Path) -> None:
    (folder / "processor_config.json").unlink()


def _without_template(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "vipllava"  # its authors' form is not known
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").unlink()


def _cut_short(folder: Path) -> None:
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(100_000)


def _without_a_shard(folder: Path) -> None:
    load_vlm("pocket-llava").model.save_pretrained(folder, max_shard_size="300KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    (folder / "model-00002-of-00004.safetensors").unlink()


def _with_half_an_index(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text("{")


def _with_another_tokenizer(folder: Path) -> None:
    tokenizer = {"added_tokens": [], "model": {"type": "none"}}  # a bare Exception from tokenizers
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def _with_another_processor(folder: Path) -> None:
    (folder / "processor_config.json").write_text('{"processor_class": 3}')


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_without_template, "comes without a chat template"),
        (_without_processor, "holds no processor"),
        (_cut_short, r"model\.safetensors is damaged, or was not copied whole"),
        (_with_half_an_index, "cannot be loaded from .*property name"),
        (_with_another_tokenizer, "cannot be loaded from .*untagged enum"),
        (_with_another_processor, "cannot be loaded from "),
        (_without_a_shard, "1 of its 4 files of weights are not in .*model-00002-of-00004"),
    ],
)
def test_a_folder_that_no_trial_could_load_is_refused_before_its_weights_are_read(
    damage: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    folder = shutil.copytree(MODELS["pocket-llava"].folder, tmp_path / "model")
    refuse_unloadable(ModelRef(id=str(folder)))
    damage(folder)
    with pytest.raises(SpecError, match=said):
        refuse_unloadable(ModelRef(id=str(folder)))


def test_a_model_of_texts_alone_is_refused_by_its_type(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(SpecError, match=r"its type, gpt2, as no vision-language model") as refused:
        load_inventory(str(tmp_path))
    assert "LlavaConfig" not in str(refused.value)


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
