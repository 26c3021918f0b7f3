"""The losses of repair, and the teacher that it learns from."""

import dataclasses
import weakref
from typing import cast

import pytest
import torch
from pruned import dense_vlm, prune, questions, repair_plan, task, teacher_logits
from torch import Tensor
from torch.nn import functional

from ressa.errors import RepairError
from ressa.models.vlm import VLM
from ressa.records import Example
from ressa.repair import (
    REPAIR_METHODS,
    LiveTeacher,
    StoredTeacher,
    Teacher,
    attach,
    distillation,
    merge,
    teacher_parts,
    train,
)
from ressa.repair.distillation import (
    cross_entropy,
    divergence,
    loss_parts,
    reference_divergence,
    trimmed,
)
from ressa.spec import Distillation


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


def test_a_teacher_for_whom_a_chunk_is_too_much_is_asked_less_at_once() -> None:
    vlm, examples = dense_vlm("llava"), questions(12)
    wanted = teacher_logits(vlm, examples, task())
    asked = []

    def little_room(module: object, args: object, inputs: dict[str, Tensor]) -> None:
        asked.append(len(inputs["input_ids"]))
        if asked[-1] > 8:
            raise torch.OutOfMemoryError

    vlm.model.register_forward_pre_hook(little_room, with_kwargs=True)
    got = teacher_logits(vlm, examples, task())
    assert asked[-2:] == [8, 4]
    torch.testing.assert_close(got.rows, wanted.rows, rtol=1e-4, atol=1e-4)


def test_the_teacher_knows_how_many_tokens_each_answer_has() -> None:
    teacher = teacher_logits(dense_vlm(), questions(7), task())
    words = {example.id: len(example.answer.split()) for example in questions(7)}
    assert {id: len(rows) - 1 for id, rows in teacher.rows.items()} == words


def test_a_teacher_survives_being_stored() -> None:
    teacher = teacher_logits(dense_vlm(), questions(7), task())
    restored = Teacher.from_bytes(teacher.to_bytes())
    assert list(restored.rows) == list(teacher.rows)
    assert torch.equal(restored.of(questions(7)), teacher.of(questions(7)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_teacher_is_made_in_parts_and_reads_what_it_is_asked_about(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(distillation, "CHUNK", 5)
    vlm, examples = dense_vlm(dtype=dtype), questions(12)
    parts = list(teacher_parts(vlm, examples, task()))
    assert [len(part.rows) for part in parts] == [5, 5, 2]
    few = (examples[11], examples[0], examples[6])
    teacher = StoredTeacher([part.to_bytes() for part in parts]).about(few)
    wanted = teacher_logits(vlm, examples, task())
    assert torch.equal(teacher.of(few), wanted.of(few))
    assert torch.equal(teacher.of(few[:1]), wanted.of(few[:1]))
    with pytest.raises(KeyError):  # no row of another example takes room
        teacher.of(examples[1:2])


def test_a_disk_without_room_for_the_teacher_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    full = open("/dev/full", "r+b")  # noqa: SIM115
    monkeypatch.setattr(distillation, "TemporaryFile", lambda **_: full)
    stored = StoredTeacher([teacher_logits(dense_vlm(), questions(2), task()).to_bytes()])
    with pytest.raises(RepairError, match=r"do not fit in .*No space left .*TMPDIR") as error:
        stored.about(questions(2))
    assert error.value.failure == "node"


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


def test_the_loss_of_a_batch_is_the_mean_of_its_questions_alone() -> None:
    """However they are padded and grouped: what each token adds is its own."""
    vlm, examples = dense_vlm(), questions(10)
    teacher = teacher_logits(vlm, examples, task())
    prune(vlm)
    plan = Distillation(temperature=2.0)

    def parts(asked: tuple[Example, ...]) -> Tensor:
        batch = vlm.encode(asked, task().image, answers=True)
        with torch.no_grad():
            found = loss_parts(
                vlm, batch, teacher.of(asked, batch), plan, tokens=1.0, questions=1.0
            )
        return torch.stack([cast(Tensor, part) for part in found])

    together = parts(examples)
    alone = torch.stack([parts((example,)) for example in examples]).sum(dim=0)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(parts(examples[::-1]), together, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["blip2", "llava"])
def test_what_padding_holds_changes_no_loss(kind: str) -> None:
    vlm, examples = dense_vlm(kind), questions(10)
    teacher = teacher_logits(vlm, examples, task())
    prune(vlm)
    batch = vlm.encode(examples, task().image, answers=True)
    other = dict(batch.inputs)
    other["input_ids"] = other["input_ids"].masked_fill(other["attention_mask"] == 0, 5)
    for changed in (batch, dataclasses.replace(batch, inputs=other)):
        with torch.no_grad():
            ce, kl = loss_parts(
                vlm, changed, teacher.of(examples), Distillation(), tokens=1.0, questions=1.0
            )
        if changed is batch:
            wanted = ce, kl
    assert (ce, kl) == wanted


def test_the_reference_is_torchs_batchmean(logits: tuple[Tensor, Tensor]) -> None:
    """Which is the number of positions times the mean over them, and knows no T²."""
    generator = torch.Generator().manual_seed(1)
    student, teacher = torch.randn(2, 3, 7, 11, generator=generator)
    for temperature in (1.0, 2.0):
        log, target = (student / temperature).log_softmax(-1), (teacher / temperature).softmax(-1)
        wanted = functional.kl_div(log, target, reduction="batchmean")
        got = reference_divergence(student, teacher, temperature) / len(student)
        torch.testing.assert_close(got, wanted)
        flat = student.flatten(0, 1), teacher.flatten(0, 1)
        token_mean = divergence(*flat, temperature) / len(flat[0]) / temperature**2
        torch.testing.assert_close(got, 7 * token_mean)


@pytest.mark.parametrize("kind", ["blip2", "llava"])
def test_the_reference_counts_every_position_of_a_batch(kind: str) -> None:
    vlm, examples = dense_vlm(kind), questions(10)
    teacher = LiveTeacher(vlm)
    prune(vlm)
    batch = vlm.encode(examples, task().image, answers=True)
    plan = Distillation(reduction="reference", temperature=2.0)
    with torch.no_grad():
        dense = teacher.of(examples, batch)
        ce, kl = loss_parts(vlm, batch, dense, plan, tokens=1.0, questions=10.0)
        logits, targets = vlm.answer_logits(batch)
        student = vlm.all_logits(batch)
    assert dense.shape[:2] == batch.labels.shape  # padding and all
    torch.testing.assert_close(ce, functional.cross_entropy(logits, targets, reduction="sum"))
    log, target = (student / 2).log_softmax(-1), (dense / 2).softmax(-1)
    torch.testing.assert_close(kl, functional.kl_div(log, target, reduction="batchmean"))


@pytest.mark.parametrize("kind", ["blip2", "llava"])
def test_a_batch_is_trimmed_to_what_it_would_be_by_itself(kind: str) -> None:
    vlm, examples = dense_vlm(kind), questions(20)
    encoded = vlm.encode(examples, task().image, answers=True)
    shortest = sorted(range(20), key=lambda i: len(examples[i].answer + examples[i].question))[:3]
    got = trimmed(encoded.select(shortest))
    alone = vlm.encode([examples[index] for index in shortest], task().image, answers=True)
    assert torch.equal(got.labels, alone.labels)
    for name in ("input_ids", "attention_mask"):
        assert torch.equal(got.inputs[name], alone.inputs[name])


def test_an_answer_is_whole_where_the_longest_is_as_long_as_the_longest_prompt() -> None:
    """An encoder's prompts and a decoder's answers are then tensors of one shape."""
    vlm, examples = dense_vlm("blip2"), [*questions(20)]
    lengths = vlm.encode(examples, task().image, answers=True).inputs["attention_mask"].sum(dim=1)
    words = " ".join(["yes"] * (int(lengths.max()) - 1))  # and the end of text
    shortest = int(lengths.argmin())
    examples[shortest] = dataclasses.replace(examples[shortest], answer=words)
    encoded = vlm.encode(examples, task().image, answers=True)
    assert encoded.labels.shape == encoded.inputs["input_ids"].shape
    got = trimmed(encoded.select([shortest]))
    alone = vlm.encode([examples[shortest]], task().image, answers=True)
    assert torch.equal(got.labels, alone.labels)
    assert torch.equal(got.inputs["input_ids"], alone.inputs["input_ids"])


@pytest.mark.parametrize("method", sorted(REPAIR_METHODS))
def test_a_live_teacher_is_the_dense_model_before_and_after(method: str) -> None:
    vlm = dense_vlm()
    batch = vlm.encode(questions(12), task().image, answers=True)
    with torch.no_grad():
        dense = vlm.all_logits(batch)
    teacher = LiveTeacher(vlm)
    assert torch.equal(teacher.of(questions(12), batch), dense)
    plan = repair_plan(
        steps=2, method=method, distillation=Distillation(weight=0.5, reduction="reference")
    )
    adapters = attach(vlm.model, prune(vlm), vlm.towers, plan, seed=0)
    curve = list(train(vlm, adapters, questions(), task(), teacher, plan, seed=0))
    assert all(step.kl and step.loss == pytest.approx((step.ce + step.kl) / 2) for step in curve)
    merge(adapters)
    assert torch.equal(teacher.of(questions(12), batch), dense)
    with torch.no_grad():
        assert not torch.equal(vlm.all_logits(batch), dense)


def test_a_live_teacher_speaks_of_one_micro_batch_at_a_time() -> None:
    said: list[weakref.ref[Tensor]] = []

    class Heard(LiveTeacher):
        def of(self, examples, batch):
            assert not any(logits() is not None for logits in said)
            logits = super().of(examples, batch)
            said.append(weakref.ref(logits))
            return logits

    vlm = dense_vlm()
    teacher = Heard(vlm)
    plan = repair_plan(
        steps=2,
        micro_batch=4,
        distillation=Distillation(weight=0.5, reduction="reference"),
    )
    adapters = attach(vlm.model, prune(vlm), vlm.towers, plan, seed=0)
    list(train(vlm, adapters, questions(), task(), teacher, plan, seed=0))
    assert len(said) == 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_teacher_logits_are_stored_as_they_were_computed(dtype: torch.dtype) -> None:
    vlm = dense_vlm()
    vlm.model.to(dtype)
    batch = vlm.encode(questions(7), task().image, answers=True)
    with torch.no_grad():
        found = teacher_logits(vlm, questions(7), task()).of(questions(7))
        assert found.dtype == dtype  # fp32 would take twice the bytes
        assert torch.equal(found, vlm.answer_logits(batch)[0])
