import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL.Image import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from ressa.catalog import MODELS
from ressa.data.easy_vqa import EasyVQA
from ressa.errors import SpecError
from ressa.models import NO_LABEL, VLM, load_inventory, load_vlm
from ressa.models import vlm as module
from ressa.sparsity import Inventory

torch.set_num_threads(1)
POCKET = ["pocket-blip2", "pocket-llava"]


@pytest.fixture(scope="module")
def task() -> EasyVQA:
    return EasyVQA()


@pytest.fixture(scope="module", params=POCKET)
def vlm(request: pytest.FixtureRequest) -> VLM:
    return load_vlm(request.param)


def test_sharing_pictures_equals_repeating_them(vlm: VLM, task: EasyVQA) -> None:
    shared = vlm.encode(task.examples("validation", 30), task.image, answers=True)
    assert len(shared.inputs["pixel_values"]) < len(shared) == 30
    repeated = replace(
        shared,
        inputs={
            **shared.inputs,
            "pixel_values": shared.inputs["pixel_values"][shared.image_index],
        },
        image_index=torch.arange(30),
    )
    with torch.no_grad():
        one, other = vlm.answer_logits(shared)[0], vlm.answer_logits(repeated)[0]
    assert torch.allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("name", POCKET)
def test_prompts_are_what_the_processor_makes_of_them_with_few_pictures_processed(
    name: str, task: EasyVQA, monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm = load_vlm(name)
    processor, calls = type(vlm.processor), 0
    ask = processor.__call__

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return ask(*args, **kwargs)

    distinct = {e.question: replace(e, image_id="train/10") for e in task.examples("train")}
    examples = list(distinct.values())
    monkeypatch.setattr(processor, "__call__", counted)
    batch = vlm.encode(examples, task.image, answers=False)
    monkeypatch.undo()
    assert calls < 10 < len(examples)
    for row, example in enumerate(examples):
        text, picture = vlm.asking.prompt(example.question), task.image("train/10")
        wanted = vlm.processor(images=[picture], text=[text], return_tensors="pt")
        is_text = batch.inputs["attention_mask"][row].bool()
        for given in ("input_ids", "attention_mask"):
            assert batch.inputs[given][row][is_text].equal(wanted[given][0])


def test_padding_changes_no_logit_beyond_rounding(vlm: VLM, task: EasyVQA) -> None:
    examples = sorted(task.examples("validation", 40), key=lambda e: len(e.question))
    chosen = [examples[0], examples[-1]]  # the shortest and the longest question
    with torch.no_grad():
        together, _ = vlm.answer_logits(vlm.encode(chosen, task.image, answers=True))
        alone = [vlm.answer_logits(vlm.encode([e], task.image, answers=True))[0] for e in chosen]
    assert torch.allclose(together, torch.cat(alone), atol=1e-3)


@pytest.mark.parametrize("in_memory", [2**30, 200_000])  # all of them take 350,000 bytes
def test_few_pictures_are_open_at_a_time_and_come_to_the_same_in_memory_or_on_disk(
    vlm: VLM, task: EasyVQA, monkeypatch: pytest.MonkeyPatch, in_memory: int
) -> None:
    examples = task.examples("validation", 60)
    at_once = vlm.encode(examples, task.image, answers=True)
    opened: list[weakref.ref[Image]] = []

    def counted(image_id: str) -> Image:
        picture = task.image(image_id).copy()
        opened.append(weakref.ref(picture))
        assert sum(one() is not None for one in opened) <= 2
        return picture

    monkeypatch.setattr(module, "_OPEN", 2)
    monkeypatch.setattr(module, "_IN_MEMORY", in_memory)
    in_turn = vlm.encode(examples, counted, answers=True)
    lies_on_disk = in_memory < in_turn.inputs["pixel_values"].nbytes
    assert ("ressa-tensor-" in Path("/proc/self/maps").read_text()) == lies_on_disk
    assert in_turn.pictures == at_once.pictures > 3
    assert in_turn.inputs.keys() == at_once.inputs.keys()
    assert all(tensor.equal(at_once.inputs[name]) for name, tensor in in_turn.inputs.items())
    assert in_turn.labels is not None and at_once.labels is not None
    assert in_turn.labels.equal(at_once.labels)
    assert in_turn.image_index.equal(at_once.image_index)


def test_pictures_of_one_row_and_of_several_are_joined_as_if_made_at_once() -> None:
    small, large = torch.ones(2, 3, 4, 4), torch.ones(5, 3, 6, 4)
    alone = {"pixel_values": small}, None
    cut = {"pixel_values": large}, {"pixel_values": (2, 3)}
    joined, rows = module._end_to_end([alone, cut, alone])
    assert rows == {"pixel_values": (1, 1, 2, 3, 1, 1)}
    assert joined["pixel_values"].shape == (9, 3, 6, 4)
    assert joined["pixel_values"].sum() == 2 * small.numel() + large.numel()


@pytest.mark.parametrize("count", [1, 30])
def test_large_logits_are_made_only_where_an_answer_is_predicted(
    vlm: VLM, task: EasyVQA, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    batch = vlm.encode(task.examples("validation", count), task.image, answers=True)
    places = []
    head = vlm.model.get_output_embeddings()
    hook = head.register_forward_hook(lambda *_: places.append(_[2].shape[1]))
    with torch.no_grad():
        everywhere, tokens = vlm.answer_logits(batch)
        monkeypatch.setattr(module, "_ALL_LOGITS", 0)
        there, same = vlm.answer_logits(batch)
    hook.remove()
    assert same.equal(tokens)
    torch.testing.assert_close(there, everywhere, rtol=1e-4, atol=1e-4)
    if not vlm.has_encoder:  # whose decoder has the answers alone
        assert places[1] < 10 < places[0]


def test_generating_and_scoring_answers_agree(vlm: VLM, task: EasyVQA) -> None:
    examples = task.examples("validation", 50)
    generated = vlm.generate(vlm.encode(examples, task.image, answers=False), 3)
    with torch.no_grad():
        logits, tokens = vlm.answer_logits(vlm.encode(examples, task.image, answers=True))
    right = (logits.argmax(dim=1) == tokens).reshape(50, 2).all(dim=1)  # a word and its end
    given = zip(generated, examples, strict=True)
    assert [answer == example.answer for answer, example in given] == right.tolist()


def test_labels_mark_the_answer_and_its_end_only(vlm: VLM, task: EasyVQA) -> None:
    examples = task.examples("validation", 9)
    batch = vlm.encode(examples, task.image, answers=True)
    assert batch.labels is not None
    tokenizer = vlm.processor.tokenizer
    for row, example in zip(batch.labels, examples, strict=True):
        text = tokenizer.decode(row[row != NO_LABEL])
        assert text.replace(" ", "") == f"{example.answer}</s>"
    if not vlm.has_encoder:
        marked = batch.labels != NO_LABEL
        assert batch.inputs["input_ids"][marked].equal(batch.labels[marked])


def test_logits_carry_gradients_to_both_towers(vlm: VLM, task: EasyVQA) -> None:
    batch = vlm.encode(task.examples("validation", 4), task.image, answers=True)
    logits, tokens = vlm.answer_logits(batch)
    torch.nn.functional.cross_entropy(logits, tokens).backward()
    for layer in vlm.towers.inventory.layers:
        gradient = vlm.model.get_submodule(layer.name).weight.grad
        assert gradient is not None, layer.name
    vlm.model.zero_grad()


def test_a_blank_picture_is_encoded_once_for_all_questions(vlm: VLM, task: EasyVQA) -> None:
    examples = task.examples("validation", 20)
    batch = vlm.encode(examples, task.image, answers=False, blank=task.blank_image())
    assert len(batch.inputs["pixel_values"]) == 1
    assert batch.image_index.tolist() == [0] * 20


def test_no_hook_is_left_behind(vlm: VLM, task: EasyVQA) -> None:
    vlm.generate(vlm.encode(task.examples("validation", 3), task.image, answers=False), 2)
    assert not vlm.model.get_submodule(vlm.towers.projector)._forward_hooks


def test_a_question_in_plain_text_is_understood(vlm: VLM, task: EasyVQA) -> None:
    example = next(e for e in task.examples("validation") if e.kind == "color")
    shouted = replace(example, question=example.question.upper())
    batch = vlm.encode([shouted], task.image, answers=False)
    assert vlm.generate(batch, 3) == [example.answer]


@pytest.mark.parametrize("name", POCKET)
def test_each_shipped_model_loads_by_the_auto_classes_alone(name: str, task: EasyVQA) -> None:
    folder = MODELS[name].folder
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert model.dtype == torch.float32
    example = next(e for e in task.examples("test") if e.kind == "color")
    text = f"<image>{example.question}" if name == "pocket-llava" else example.question
    inputs = processor(images=[task.image(example.image_id)], text=[text], return_tensors="pt")
    answer = model.generate(**inputs, max_new_tokens=3)
    decoded = processor.batch_decode(answer, skip_special_tokens=True)[0]
    assert decoded.split()[-1] == example.answer


def test_the_shipped_inventory_is_that_of_the_model(vlm: VLM) -> None:
    assert MODELS[vlm.name].inventory() == vlm.towers.inventory
    assert load_inventory(str(MODELS[vlm.name].folder)) == vlm.towers.inventory
    text = vlm.towers.inventory.to_json()
    assert text == (MODELS[vlm.name].folder / "inventory.json").read_text(encoding="utf-8")
    assert Inventory.from_json(text) == vlm.towers.inventory


@pytest.mark.parametrize("name", POCKET)
def test_each_shipped_model_is_a_few_megabytes(name: str) -> None:
    files = list(MODELS[name].folder.iterdir())
    assert sum(file.stat().st_size for file in files) < 3e6
    assert {"model.safetensors", "MODEL_CARD.md", "training.json"} <= {f.name for f in files}


def test_a_copied_folder_is_loaded_without_an_inventory(tmp_path: Path, task: EasyVQA) -> None:
    for file in MODELS["pocket-blip2"].folder.iterdir():
        if file.name != "inventory.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    copy, original = load_vlm(str(tmp_path)), load_vlm("pocket-blip2")
    assert copy.towers == original.towers
    batch = copy.encode(task.examples("validation", 6), task.image, answers=False)
    assert copy.generate(batch, 2) == original.generate(batch, 2)


def test_without_a_template_the_authors_prompt_is_used(tmp_path: Path) -> None:
    for file in MODELS["pocket-llava"].folder.iterdir():
        if file.name != "chat_template.jinja":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    assert load_vlm(str(tmp_path)).asking.prompt("why?") == "USER: <image>\nwhy? ASSISTANT:"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pocket-blipp2", "Did you mean 'pocket-blip2'"),
        ("./no/such/folder", "there is no such folder"),
        ("{empty}", "has no config.json"),
    ],
)
def test_a_model_that_is_not_there_is_a_fault_of_the_spec(
    tmp_path: Path, name: str, message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        load_vlm(name.format(empty=tmp_path))


def test_a_folder_with_a_broken_file_says_which_model(tmp_path: Path) -> None:
    for file in MODELS["pocket-blip2"].folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SpecError, match="cannot be loaded from"):
        load_vlm(str(tmp_path))


def test_an_unreachable_hub_is_a_fault_with_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SpecError, match=r"the hub, revision newest.*network"):
        load_vlm("nobody/no-such-model")


def test_a_connector_that_hands_on_something_else_is_refused(task: EasyVQA) -> None:
    vlm = load_vlm("pocket-llava")
    projector = vlm.model.get_submodule(vlm.towers.projector)
    batch = vlm.encode(task.examples("validation", 3), task.image, answers=False)
    # As models do that lay the tokens of all pictures end to end.
    projector.register_forward_hook(lambda module, args, output: output.flatten(0, 1))
    with pytest.raises(SpecError, match="not a fixed number of tokens"):
        vlm.generate(batch, 2)


def test_looking_up_a_fingerprint_needs_no_torch() -> None:
    code = "import sys, ressa.models.identity; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", ["pocket-blip2", "pocket-llava"])
def test_a_batch_that_is_kept_is_seen_once_by_towers_of_equal_weights(name: str) -> None:
    task = EasyVQA()
    examples = task.examples("validation", 20, seed=0)
    vlm = load_vlm(name)
    plain = vlm.encode(examples, task.image, answers=False)
    batch = replace(plain, seen={})
    looks = []
    block = vlm.model.get_submodule(vlm.towers.inventory.tower("vision")[0].name)
    block.register_forward_hook(lambda *_: looks.append(1))
    answers = vlm.generate(plain, 3)
    once = len(looks)
    assert [vlm.generate(batch, 3) for _ in range(3)] == [answers] * 3
    assert len(looks) == 2 * once
    with torch.no_grad():
        block.weight.zero_()
    assert vlm.generate(batch, 3) == vlm.generate(plain, 3)
    assert len(looks) == 4 * once, "with other weights it looks again"
