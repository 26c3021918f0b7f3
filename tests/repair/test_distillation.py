"""The losses of repair, and the teacher that it learns from."""

import dataclasses

import pytest
import torch
from pruned import dense_vlm, prune, questions, repair_plan, task
from torch import Tensor

from ressa.models.vlm import VLM
from ressa.records import Example
from ressa.repair import Teacher, attach, distillation, merge, teacher_logits, train
from ressa.repair.distillation import cross_entropy, divergence


@pytest.fixture
def logits() -> tuple[Tensor, Tensor]:
    """A student's and a teacher's logits for seven tokens of a vocabulary of eleven."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 7, 11, generator=generator, dtype=torch.float64)
    return student, teacher


def test_a_student_like_its_teacher_does_not_diverge(logits: tuple[Tensor, Tensor]) -> None:
    student, _ = logits
    assert divergence(student, student, 2.0).item() == pytest.approx(0, abs=1e-6)
    shifted = student + torch.randn(7, 1, dtype=torch.float64)
    assert divergence(student, shifted, 2.0).item() == pytest.approx(0, abs=1e-5)


def test_divergence_is_the_textbook_sum(logits: tuple[Tensor, Tensor]) -> None:
    student, teacher = logits
    for temperature in (1.0, 2.0, 5.0):
        p, q = (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)
        wanted = temperature**2 * (p * (p.log() - q.log())).sum()
        got = divergence(student, teacher, temperature)
        torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-6)


def test_the_size_of_the_gradient_hardly_depends_on_the_temperature(
    logits: tuple[Tensor, Tensor],
) -> None:
    student, teacher = logits

    def size(temperature: float) -> float:
        leaf = student.clone().requires_grad_()
        divergence(leaf, teacher, temperature).backward()
        assert leaf.grad is not None
        return leaf.grad.norm().item()

    assert size(100.0) == pytest.approx(size(50.0), rel=0.05)


def test_losses_are_sums_over_tokens(logits: tuple[Tensor, Tensor]) -> None:
    student, teacher = logits
    targets = torch.arange(7)
    parts = [slice(0, 2), slice(2, 7)]
    by_parts = sum(cross_entropy(student[part], targets[part]) for part in parts)
    torch.testing.assert_close(cross_entropy(student, targets), by_parts)
    by_parts = sum(divergence(student[part], teacher[part], 2.0) for part in parts)
    torch.testing.assert_close(divergence(student, teacher, 2.0), by_parts)


@pytest.mark.parametrize("kind", ["blip2", "llava"])
def test_the_teacher_has_the_logits_of_each_example_alone(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However examples are padded and grouped, and in whatever order they are asked for."""
    monkeypatch.setattr(distillation, "CHUNK", 5)
    vlm, examples = dense_vlm(kind), questions(12)
    teacher = teacher_logits(vlm, examples, task())
    wanted = torch.cat([_alone(vlm, example) for example in reversed(examples)])
    torch.testing.assert_close(teacher.of(examples[::-1]), wanted, rtol=1e-4, atol=1e-4)


def test_the_teacher_knows_how_many_tokens_each_answer_has() -> None:
    teacher = teacher_logits(dense_vlm(), questions(7), task())
    words = [len(example.answer.split()) for example in questions(7)]
    assert teacher.lengths.tolist() == [count + 1 for count in words]


def test_a_teacher_survives_being_stored() -> None:
    teacher = teacher_logits(dense_vlm(), questions(7), task())
    restored = Teacher.from_bytes(teacher.to_bytes())
    assert restored.example_ids == teacher.example_ids
    assert torch.equal(restored.of(questions(7)), teacher.logits)
    assert torch.equal(restored.lengths, teacher.lengths)


def test_repair_leaves_the_teacher_bit_identical() -> None:
    """Of a part that is not pruned, too: a connector in training must not teach itself."""
    vlm = dense_vlm()
    teacher = teacher_logits(vlm, questions(), task())
    before = teacher.to_bytes()
    plan = repair_plan(steps=2)
    adapters = attach(vlm.model, prune(vlm), vlm.towers, plan, seed=0)
    assert len(list(train(vlm, adapters, questions(), task(), teacher, plan, seed=0))) == 2
    merge(adapters)
    assert teacher.to_bytes() == before
    assert teacher_logits(dense_vlm(), questions(), task()).to_bytes() == before


def _alone(vlm: VLM, example: Example) -> Tensor:
    batch = vlm.encode([dataclasses.replace(example)], task().image, answers=True)
    with torch.no_grad():
        return vlm.answer_logits(batch)[0]
