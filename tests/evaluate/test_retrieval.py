"""Retrieval through a pruned tower, against transformers' own matching model."""

import math
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import Blip2Config, Blip2ForImageTextRetrieval
from transformers.models.blip_2 import Blip2Processor

from ressa.data.easy_vqa import EasyVQA
from ressa.errors import EvaluationError
from ressa.evaluate import Answer
from ressa.evaluate.measures import measure_of
from ressa.evaluate.retrieval import Matching
from ressa.models import load_vlm
from ressa.spec import spec_from_mapping
from ressa.store import open_store
from ressa.sweep.driver import continued
from ressa.sweep.plan import commits_of, make_plan
from tests.data import published

CAPTIONS = ("a red circle", "there is a blue triangle in the image", "what is it ?")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """A tiny matching model, twice pocket-blip2's picture size, saved as a checkpoint is."""
    vlm = load_vlm("pocket-blip2")
    vision = vlm.model.config.vision_config.to_dict() | {"image_size": 128}
    torch.manual_seed(0)
    config = Blip2Config(
        vision_config=vision,
        qformer_config={
            "vocab_size": len(vlm.processor.tokenizer),
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 48,
            "encoder_hidden_size": vision["hidden_size"],
            "use_qformer_text_input": True,
            "pad_token_id": vlm.processor.tokenizer.pad_token_id,
        },
        num_query_tokens=4,
        image_text_hidden_size=16,
        image_token_index=None,
    )
    model = Blip2ForImageTextRetrieval(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    path = tmp_path_factory.mktemp("matching")
    model.save_pretrained(path)
    processor = vlm.processor
    images = type(processor.image_processor).from_dict(
        processor.image_processor.to_dict() | {"size": {"height": 128, "width": 128}}
    )
    Blip2Processor(images, processor.tokenizer, num_query_tokens=None).save_pretrained(path)
    return str(path)


@pytest.fixture
def task(folder):
    easy = EasyVQA()
    source = SimpleNamespace(model=folder, model_revision=None, batch_size=3, rerank=128)
    return SimpleNamespace(image=easy.image, measure="retrieval", source=source, easy=easy)


def captions_of(task, pictures: int) -> list:
    """Two captions of each of so many pictures."""
    found: dict[str, list] = {}
    for example in task.easy.examples("validation"):
        texts = found.setdefault(example.image_id, [])
        if len(texts) < 2:
            text = CAPTIONS[(len(found) + len(texts)) % 3]
            texts.append(replace(example, question=text, verbatim=True))
        if len(found) > pictures:
            break
    return [example for texts in list(found.values())[:pictures] for example in texts]


def test_what_was_no_candidate_is_not_found_however_few_candidates_there_are(folder, task):
    task.source.rerank = 1
    vlm, examples = load_vlm("pocket-blip2"), captions_of(task, 12)
    answers = measure_of(task).answer(vlm, task, examples, blank=False)
    of_image, _, of_caption, _ = zip(*(answer.values for answer in answers), strict=True)
    assert {*of_image} == {0, 12}  # first of twelve pictures, or not found
    assert {*of_caption} == {0, 24}
    scores, _ = measure_of(task).score(task, examples, answers)
    assert scores["ir10"] == scores["ir1"]
    assert scores["tr10"] == scores["tr1"]


@torch.no_grad()
def test_the_parts_are_transformers_own_forward_pass(folder, task):
    """With the VLM's tower in the matching model, its positions interpolated by hand."""
    vlm = load_vlm("pocket-blip2")
    matching = Matching(vlm, folder, 2)
    whole = Blip2ForImageTextRetrieval.from_pretrained(folder)
    own = {k: v for k, v in vlm.vision_tower.state_dict().items() if "post_layernorm" not in k}
    grid = own["embeddings.position_embedding"]
    side = int((grid.shape[1] - 1) ** 0.5)
    patches = grid[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    larger = torch.nn.functional.interpolate(patches, scale_factor=2, mode="bicubic")
    own["embeddings.position_embedding"] = torch.cat(
        [grid[:, :1], larger.permute(0, 2, 3, 1).flatten(1, 2)], dim=1
    )
    whole.vision_model.load_state_dict(own, strict=False)
    picture = task.image("train/10")
    pixels = matching.processor.image_processor(picture, return_tensors="pt")["pixel_values"]
    features = matching.features([picture])
    seen = whole.vision_model(pixels).last_hidden_state
    assert torch.allclose(matching._normed(features), seen, atol=1e-5)
    tokens, mask = matching._tokens(CAPTIONS[:1])
    inputs = {"pixel_values": pixels, "input_ids": tokens, "attention_mask": mask}
    near = whole(**inputs).logits_per_image
    ours = matching.image_embeddings(features)[0] @ matching.caption_embeddings(CAPTIONS[:1]).T
    assert torch.allclose(ours.amax(dim=0), near.flatten(), atol=1e-5)
    odds = whole(**inputs, use_image_text_matching_head=True).logits_per_image[0, 1]
    assert torch.allclose(matching.match(features[0], CAPTIONS[:1]), odds, atol=1e-5)


def test_scores_do_not_depend_on_the_batch_and_only_candidates_are_matched(task):
    vlm = load_vlm("pocket-blip2")
    examples = captions_of(task, 4)
    images = list(dict.fromkeys(e.image_id for e in examples))
    texts = [e.question for e in examples]
    one = Matching(vlm, task.source.model, 3).scores(task, images, texts, 128)
    other = Matching(vlm, task.source.model, 64).scores(task, images, texts, 128)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(one, other, strict=True))
    few = Matching(vlm, task.source.model, 3).scores(task, images, texts, 2)
    for whole, part in zip(one, few, strict=True):
        assert ((part > -100).sum(dim=1) == 2).all()
        assert torch.allclose(part[part > -100], whole[part > -100], atol=1e-4)


def test_every_caption_has_a_place_for_its_picture_and_one_of_its_own(task):
    examples = captions_of(task, 5)
    measure = measure_of(task)
    answers = measure.answer(load_vlm("pocket-blip2"), task, examples, blank=False)
    assert all(0 <= a.values[0] < 5 and 0 <= a.values[2] < 10 for a in answers)
    scores, each = measure.score(task, examples, answers)
    assert scores["ir10"] == scores["tr10"] == 1
    assert scores["ir1"] == sum(own.value for own in each) / len(each)
    images = [example.image_id for example in examples]
    of_images = {image: own.image_value for image, own in zip(images, each, strict=True)}
    assert scores["tr1"] == sum(of_images.values()) / len(of_images)


def test_recall_counts_a_picture_by_its_best_caption(task):
    examples = captions_of(task, 2)
    places = [(0, 0), (5, 0), (0, 3), (1, 3)]  # of the picture; of the best of its captions
    answers = [Answer("x", (image, 0, caption, 0)) for image, caption in places]
    scores, _ = measure_of(task).score(task, examples, answers)
    assert (scores["ir1"], scores["ir5"], scores["ir10"]) == (0.5, 0.75, 1)
    assert (scores["tr1"], scores["tr5"], scores["tr10"]) == (0.5, 1, 1)


def test_of_equals_each_order_counts_alike(task):
    examples = captions_of(task, 2)
    answers = [Answer("x", values) for values in ((0, 3, 0, 1), (9, 3, 8, 7)) for _ in range(2)]
    scores, each = measure_of(task).score(task, examples, answers)
    assert each[0].value == 0.25
    assert scores["ir10"] == pytest.approx((1 + 1 + 0.25 + 0.25) / 4)
    assert scores["tr10"] == pytest.approx((1 + 2 / 8) / 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tower_that_sees_nothing_finds_by_chance(task, dtype):
    vlm, examples = load_vlm("pocket-blip2"), captions_of(task, 12)
    vlm.model.to(dtype)
    with torch.no_grad():
        vlm.vision_tower.embeddings.patch_embedding.weight.zero_()
    measure = measure_of(task)
    answers = measure.answer(vlm, task, examples, blank=False)
    scores, _ = measure.score(task, examples, answers)
    assert scores["ir1"] == pytest.approx(1 / 12)
    assert scores["ir5"] == pytest.approx(5 / 12)


def test_of_logits_that_overflow_nothing_is_found_or_missed(task):
    vlm, examples = load_vlm("pocket-blip2"), captions_of(task, 4)
    with torch.no_grad():
        vlm.vision_tower.embeddings.patch_embedding.weight.fill_(torch.nan)
    measure = measure_of(task)
    scores, _ = measure.score(task, examples, measure.answer(vlm, task, examples, blank=False))
    assert math.isnan(scores["ir1"]) and math.isnan(scores["tr10"])


def test_rounding_to_16_bits_makes_no_two_pictures_alike(task):
    vlm, examples = load_vlm("pocket-blip2"), captions_of(task, 40)
    vlm.model.to(torch.bfloat16)
    answers = measure_of(task).answer(vlm, task, examples, blank=False)
    assert sum(answer.values[1] for answer in answers) < len(answers) / 10


def test_of_a_matching_model_on_the_hub_the_commit_counts_that_is_read(
    folder, tmp_path, monkeypatch
):
    """The hub's local copy: what was called newest when it was fetched, and the files of it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    own = tmp_path / "hub" / "models--org--matching"
    (own / "refs").mkdir(parents=True)
    commits = ["a" * 40, "b" * 40]
    for commit in commits:
        shutil.copytree(folder, own / "snapshots" / commit)
    published.karpathy(tmp_path / "flickr", pictures=6)
    splits = {"validation": "test"}
    data = {"task": "retrieval", "format": "karpathy", "splits": splits, "model": "org/matching"}
    sweep = {
        "ressa": 1,
        "model": "pocket-blip2",
        "data": {"flickr": {**data, "path": str(tmp_path / "flickr")}},
        "space": {"vision_sparsity": 0.5, "language_sparsity": 0.5},
        "evaluate": [{"task": "flickr", "samples": None}],
    }
    asked = spec_from_mapping(sweep).spec
    point = {"vision_sparsity": "0.5", "language_sparsity": "0.5"}
    trials = []
    for newest in commits:
        (own / "refs" / "main").write_text(newest)
        plan = make_plan(asked)
        assert commits_of(plan.spec)["data.flickr.model_revision"] == newest
        trials.append(plan.trial(point))
    assert [trial.data[0].source.model_revision for trial in trials] == commits
    assert trials[0].key != trials[1].key
    # A sweep that began with the first commit goes on with it.
    stored = open_store(tmp_path / "store", create=True).create_sweep("hub", asked.to_yaml())
    stored.event("grown", {"data.flickr.model_revision": commits[0]}, epoch=1)
    assert make_plan(continued(stored, asked)).trial(point).key == trials[0].key
    # The first commit is read, though another is the newest by now.
    shutil.rmtree(own / "snapshots" / commits[1])
    Matching(load_vlm("pocket-blip2"), "org/matching", 2, revision=commits[0])
    with pytest.raises(EvaluationError, match="org/matching cannot be loaded from the hub"):
        Matching(load_vlm("pocket-blip2"), "org/matching", 2, revision=commits[1])


def test_a_matching_model_of_pickled_weights_is_refused(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "pickled")
    weights = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    torch.save(weights, copy / "pytorch_model.bin")
    with pytest.raises(EvaluationError, match=r"has no \*.safetensors, only pytorch_model.bin"):
        Matching(load_vlm("pocket-blip2"), str(copy), 2)


def test_another_kind_of_tower_is_refused_by_name(folder):
    with pytest.raises(EvaluationError, match=r"retrieval looks through .* pocket-llava has"):
        Matching(load_vlm("pocket-llava"), folder, 2)
