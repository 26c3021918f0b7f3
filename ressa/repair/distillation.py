"""What repair learns from: the task's answers and the dense model's logits.

    loss = (1 − λ)·CE + λ·T²·KL(teacher ‖ student),    both means over the answer tokens

Only answer positions count, and every token counts once, so that neither padding nor the way a
batch is composed changes the loss (`reduction: token_mean`, the default). λ stands before T²: at a
temperature T it weighs a divergence whose gradient has the size that it has at T = 1.

The published code of RESSA (arXiv:2404.02424) sums the divergence over all positions, padding
too, divides by the number of questions and knows no T² (`reduction: reference`): its weight then
grows with the padded length and falls with T², and depends on how a batch is composed.

Vision alone can learn from the dense model too, from its vision tower's features
(`repair.objective: features`); no answer and no language model is then in the loop.

Dimensions: token = answer tokens of all examples laid end to end, in example order;
example = questions with their answers; time = all positions of the padded answering sequence;
vocab = the language model's vocabulary; image = distinct pictures; place = the vision tower's
tokens.
"""

import copy
import json
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from tempfile import TemporaryFile, gettempdir
from typing import TypeAlias
from weakref import finalize

import safetensors.torch
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from ressa.errors import RepairError, as_stored
from ressa.memory import in_batches
from ressa.models.vlm import NO_LABEL, VLM, Batch, Pictures
from ressa.records import Example
from ressa.spec import Distillation
from ressa.workers import gather, rank_and_world_size

CHUNK = 64
"""Examples per teacher pass; fixed, so that logits do not depend on the number of workers."""


def cross_entropy(
    logits: Float[Tensor, "token vocab"], targets: Int[Tensor, " token"]
) -> Float[Tensor, ""]:
    """Cross-entropy of the answers, summed over tokens."""
    return functional.cross_entropy(logits.float(), targets, reduction="sum")


def divergence(
    logits: Float[Tensor, "token vocab"],
    teacher: Float[Tensor, "token vocab"],
    temperature: float,
) -> Float[Tensor, ""]:
    r"""T² · KL(teacher ‖ student) of the distributions at temperature T, summed over tokens.

    T² keeps the size of its gradient independent of the temperature (Hinton et al.,
    arXiv:1503.02531).
    """
    student_log = functional.log_softmax(logits.float() / temperature, dim=-1)
    teacher_log = functional.log_softmax(teacher.float() / temperature, dim=-1)
    divergence = functional.kl_div(student_log, teacher_log, reduction="sum", log_target=True)
    return divergence * temperature**2


def reference_divergence(
    logits: Float[Tensor, "example time vocab"],
    teacher: Float[Tensor, "example time vocab"],
    temperature: float,
) -> Float[Tensor, ""]:
    """KL(teacher ‖ student) at temperature T, summed over every position, without T².

    Divided by the number of examples it is torch's `batchmean`, the loss of the paper's code.
    """
    return divergence(logits, teacher, temperature) / temperature**2


def feature_error(
    features: Float[Tensor, "image place hidden"],
    dense: Float[Tensor, "image place hidden"],
    image_index: Int[Tensor, " question"],
) -> Float[Tensor, ""]:
    """‖F − D‖² / ‖D‖² of the picture that each question looks at, summed over questions.

    A picture counts as often as it is asked about, as it does when answers are learnt, so that
    the sum does not depend on how a batch is cut up.
    """
    features, dense = features.float(), dense.float()
    error = (features - dense).square().sum(dim=(1, 2)) / dense.square().sum(dim=(1, 2))
    return error[image_index].sum()


def loss_parts(
    vlm: VLM,
    batch: Batch,
    teacher: Tensor | None,
    plan: Distillation,
    *,
    tokens: float,
    questions: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""] | None]:
    """Runs the student; returns a micro-batch's parts of the global batch's CE and divergence.

    Args:
        teacher: what `of` of a teacher returned for this micro-batch.
        tokens: answer tokens of the global batch.
        questions: of the global batch.
    """
    if plan.reduction == "token_mean" or teacher is None:
        logits, targets = vlm.answer_logits(batch)
        ce = cross_entropy(logits, targets) / tokens
        if teacher is None:
            return ce, None
        return ce, divergence(logits, teacher.to(logits.device), plan.temperature) / tokens
    every = vlm.all_logits(batch)
    logits, targets = vlm.at_answers(every, batch)
    kl = reference_divergence(every, teacher.to(every.device), plan.temperature)
    return cross_entropy(logits, targets) / tokens, kl / questions


def trimmed(batch: Batch) -> Batch:
    """Cuts off padding that no question of this batch needs, as if it had been encoded alone.

    Only `reduction: reference` minds: it counts padding.
    """
    assert batch.labels is not None
    inputs = dict(batch.inputs)
    longest = int(inputs["attention_mask"].sum(dim=1).max())
    answers = int((batch.labels != NO_LABEL).any(dim=0).nonzero().max()) + 1
    shape = inputs["attention_mask"].shape
    for name in inputs.keys() - batch.of_pictures:
        if inputs[name].shape[:2] == shape:
            inputs[name] = inputs[name][:, :longest]
    # T5's own loss wants labels without gaps.
    return replace(batch, inputs=inputs, labels=batch.labels[:, :answers].contiguous())


@dataclass(frozen=True)
class Teacher:
    """The dense model's logits at the answer positions of some repair examples."""

    rows: Mapping[str, Float[Tensor, "token vocab"]]
    """By the example's id, a row for each token of its answer."""

    def of(
        self, examples: Sequence[Example], batch: Batch | None = None
    ) -> Float[Tensor, "token vocab"]:
        """The rows of these examples, in their order; the batch that they make is not needed."""
        return torch.cat([self.rows[example.id] for example in examples])

    def to_bytes(self) -> bytes:
        """Writes the teacher as safetensors: a part of what the teacher stage stores."""
        ids = torch.frombuffer(bytearray(json.dumps([*self.rows]).encode()), dtype=torch.uint8)
        lengths = torch.tensor([len(rows) for rows in self.rows.values()])
        logits = torch.cat([*self.rows.values()])
        return safetensors.torch.save({"logits": logits, "lengths": lengths, "example_ids": ids})

    @classmethod
    def from_bytes(cls, data: bytes) -> "Teacher":
        """Reads what `to_bytes` wrote."""
        with as_stored("a teacher"):
            tensors = safetensors.torch.load(data)
            ids = json.loads(tensors["example_ids"].numpy().tobytes())
            rows = torch.split(tensors["logits"], tensors["lengths"].tolist())
            return cls(dict(zip(ids, rows, strict=True)))


class StoredTeacher:
    """A teacher that lies in the store in parts."""

    def __init__(self, parts: Iterable[bytes]) -> None:
        """Takes parts as `to_bytes` wrote them; they are read when they are asked about."""
        self._parts = parts

    def about(self, examples: Sequence[Example]) -> "TeacherOnDisk":
        """Reads what it says of these examples, a part at a time, on every worker together."""
        return TeacherOnDisk(map(Teacher.from_bytes, self._parts), {e.id for e in examples})


class TeacherOnDisk:
    """A teacher's rows in an unnamed file of this machine, of which each step reads its own.

    With a large vocabulary they are larger than memory: 25,000 captions of 9 tokens and a
    vocabulary of 152,064 make 68 GB in half precision. While there is memory to spare, the system
    keeps what it has read or written there.
    """

    def __init__(self, parts: Iterable[Teacher], asked: Container[str]) -> None:
        """Writes down the rows of the examples that are asked about, by their ids.

        Raises:
            RepairError: TMPDIR has no room for them; failure "node".
        """
        self._file = TemporaryFile(prefix="ressa-teacher-")  # noqa: SIM115  # as long as this
        finalize(self, self._file.close)
        self._places: dict[str, tuple[int, Tensor]] = {}  # where they begin, and none of their kind
        try:
            for part in parts:
                for id, rows in part.rows.items():
                    if id in asked:
                        self._places[id] = self._file.tell(), torch.empty_like(rows, device="meta")
                        self._file.write(_bytes(rows))
            self._file.flush()
        except OSError as error:
            size = self._file.tell() / 2**30
            with suppress(OSError):  # closing tries to write once more
                self._file.close()
            raise RepairError(
                f"the teacher's logits do not fit in {gettempdir()}: {error} after {size:.1f} GiB. "
                "Set TMPDIR to a larger disk, or repair.data.samples lower",
                "node",
            ) from error

    def of(
        self, examples: Sequence[Example], batch: Batch | None = None
    ) -> Float[Tensor, "token vocab"]:
        """The rows of these examples, in their order; the batch that they make is not needed."""
        return torch.cat([self._read(*self._places[example.id]) for example in examples])

    def _read(self, start: int, kind: Tensor) -> Float[Tensor, "token vocab"]:
        rows = torch.empty_like(kind, device="cpu")
        self._file.seek(start)
        self._file.readinto(_bytes(rows))
        return rows


def _bytes(rows: Tensor) -> memoryview:
    """The memory of a tensor that lies in one piece."""
    return rows.view(torch.uint8).numpy().data


class LiveTeacher:
    """The dense model itself, asked anew in each step: what `reduction: reference` learns from.

    Logits at all positions depend on how a batch is padded, so they cannot be kept for later; a
    second copy of the model can, for as many bytes as the model has. It shares nothing with the
    student, and so stays the dense model bit for bit whatever is trained (the paper's code runs
    its teacher through the connector in training).
    """

    def __init__(self, vlm: VLM) -> None:
        """Copies the model; call it before anything is pruned."""
        model = copy.deepcopy(vlm.model).requires_grad_(False)
        model.train(False)
        self._vlm = replace(vlm, model=model)

    @torch.no_grad()
    def of(self, examples: Sequence[Example], batch: Batch) -> Float[Tensor, "example time vocab"]:
        """The logits of this batch at all positions; its examples are in the batch already."""
        return self._vlm.all_logits(batch)


class FeatureTeacher:
    """The dense vision tower, asked anew in each step: what `objective: features` learns from.

    It is a second copy. Features of every picture, kept for later, would soon be larger.
    """

    def __init__(self, vlm: VLM) -> None:
        """Copies the vision tower; call it before anything is pruned."""
        tower = copy.deepcopy(vlm.vision_tower).requires_grad_(False)
        self._vlm, self._tower = vlm, tower.train(False)

    @torch.no_grad()
    def of(self, examples: Sequence[Example], batch: Batch) -> Float[Tensor, "image place hidden"]:
        """The features of this batch's pictures."""
        return self._vlm.vision_features(batch, self._tower)


AnyTeacher: TypeAlias = Teacher | StoredTeacher | TeacherOnDisk | LiveTeacher | FeatureTeacher


@torch.no_grad()
def teacher_parts(
    vlm: VLM, examples: Sequence[Example], task: Pictures, *, blank: bool = False
) -> Iterator[Teacher]:
    """Asks the dense model about the repair examples, 64 at a time, before anything is pruned.

    These chunks are dealt to the workers in turn and every worker is told all of them, in order,
    so that they are the same at any number of workers.

    Args:
        blank: True shows the task's blank picture instead of each.
    """
    rank, world_size = rank_and_world_size()
    chunks = [examples[start : start + CHUNK] for start in range(0, len(examples), CHUNK)]
    size = CHUNK
    for first in range(0, len(chunks), world_size):
        own = None
        if first + rank < len(chunks):
            ask = partial(_asked, vlm, chunks[first + rank], task, blank)
            own, size = in_batches(ask, size)
        yield from filter(None, gather(own))


def _asked(
    vlm: VLM, examples: Sequence[Example], task: Pictures, blank: bool, size: int
) -> tuple[Teacher, int]:
    """Asks about a chunk, so many examples at a time; returns how many that were, too."""
    picture = task.blank_image() if blank else None
    rows: dict[str, Tensor] = {}
    for first in range(0, len(examples), size):
        some = examples[first : first + size]
        batch = vlm.encode(some, task.image, answers=True, blank=picture)
        assert batch.labels is not None
        lengths = (batch.labels != NO_LABEL).sum(dim=1).tolist()
        logits = vlm.answer_logits(batch)[0].cpu()  # in its own type: half the bytes of fp32
        ids = [example.id for example in some]
        rows |= zip(ids, torch.split(logits, lengths), strict=True)
    return Teacher(rows), size
