from dataclasses import replace
from itertools import groupby

import pytest
import torch
from few import FewPictures

from ressa.data.easy_vqa import EasyVQA
from ressa.models import VLM, load_vlm
from ressa.models.pocket import recipe as recipes
from ressa.models.pocket.recipe import COLOURS, RECIPES, SHAPES, labels_of, train, vocabulary
from ressa.records import Example

torch.set_num_threads(1)
POCKET = ["pocket-blip2", "pocket-llava"]


@pytest.mark.parametrize("name", POCKET)
def test_the_same_seed_trains_the_same_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    short = replace(RECIPES[name], vision_steps=2, joint_steps=2)
    monkeypatch.setitem(recipes.RECIPES, name, short)
    (one, _, seconds), (again, _, _) = (train(name, 3, FewPictures()) for _ in range(2))
    other, _, _ = train(name, 4, FewPictures())
    weights = one.state_dict()
    assert all(tensor.equal(weights[n]) for n, tensor in again.state_dict().items())
    assert not all(tensor.equal(weights[n]) for n, tensor in other.state_dict().items())
    assert seconds > 0


@pytest.mark.parametrize("name", POCKET)
def test_what_is_trained_is_the_loss_of_the_answers(name: str) -> None:
    vlm, task = load_vlm(name), EasyVQA()
    groups = [list(g) for _, g in groupby(task.examples("calibration"), lambda e: e.image_id)]
    questions = [group[:4] for group in groups if len(group) >= 4][:5]
    pixels = vlm.encode([g[0] for g in questions], task.image, answers=True).inputs["pixel_values"]
    pixels += 0.5 * torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        loss, _ = RECIPES[name].answer_loss(vlm.model, vlm.processor, pixels, questions)
        expected = plain_loss(vlm, task, pixels, [e for group in questions for e in group])
    assert loss.item() == pytest.approx(expected, rel=1e-3)


def plain_loss(vlm: VLM, task: EasyVQA, pixels: torch.Tensor, examples: list[Example]) -> float:
    """The mean loss of each answer token, through the model's own forward pass."""
    batch = vlm.encode(examples, task.image, answers=True)
    logits, tokens = vlm.answer_logits(
        replace(batch, inputs={**batch.inputs, "pixel_values": pixels})
    )
    return torch.nn.functional.cross_entropy(logits, tokens).item()


def test_no_two_questions_about_a_picture_disagree_on_its_shape_or_colour() -> None:
    examples = EasyVQA().examples("train")
    for _, group in groupby(examples, lambda e: e.image_id):
        labels = [labels_of([example]) for example in group]
        assert len({shape for shape, _ in labels if shape >= 0}) <= 1
        assert len({colour for _, colour in labels if colour >= 0}) <= 1


@pytest.mark.parametrize(
    ("question", "answer", "shape", "colour"),
    [
        ("what is the blue shape?", "circle", "circle", "blue"),
        ("is there a red shape?", "yes", None, "red"),
        ("is there a red shape?", "no", None, None),
        ("does the image not contain a triangle?", "no", "triangle", None),
        ("is no yellow shape present?", "yes", None, None),
    ],
)
def test_labels_are_read_off_questions_and_answers(
    question: str, answer: str, shape: str | None, colour: str | None
) -> None:
    kind = "yes-no" if answer in ("yes", "no") else "shape"
    example = Example(id="1", image_id="1", question=question, answer=answer, kind=kind)
    expected = (
        -100 if shape is None else SHAPES.index(shape),
        -100 if colour is None else COLOURS.index(colour),
    )
    assert labels_of([example]) == expected


def test_the_vocabulary_covers_every_question_of_every_split() -> None:
    task = EasyVQA()
    known = set(vocabulary(task))
    for split in task.splits:
        for example in task.examples(split):
            assert set(example.question.replace("?", " ?").split()) <= known
