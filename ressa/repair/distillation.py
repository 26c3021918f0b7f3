"""What repair learns from: the task's answers and the dense model's logits at answer positions.

    loss = (1 − λ)·CE + λ·T²·KL(teacher ‖ student),    both means over the answer tokens

Only answer positions count, and every token counts once, so that neither padding nor the way a
batch is composed changes the loss. The published code sums the divergence over all positions,
padding too, and divides by the batch size: its weight then grows with the padded length.

Dimensions: token = answer tokens of all examples laid end to end, in example order;
example = questions with their answers; vocab = the language model's vocabulary.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import safetensors.torch
import torch
from jaxtyping import Float, Int
from PIL.Image import Image
from torch import Tensor, distributed
from torch.nn import functional

from ressa.models.vlm import NO_LABEL, VLM
from ressa.records import Example
from ressa.workers import rank_and_world_size

CHUNK = 64
"""Examples per teacher pass; fixed, so that logits do not depend on the number of workers."""


@runtime_checkable
class Pictures(Protocol):
    """What repair asks of a task: its pictures."""

    def image(self, image_id: str) -> Image:
        """Opens a picture by its id."""


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


@dataclass(frozen=True)
class Teacher:
    """The dense model's logits at the answer positions of the repair examples."""

    example_ids: tuple[str, ...]
    logits: Float[Tensor, "token vocab"]
    lengths: Int[Tensor, " example"]
    """How many of the rows are each example's; they lie in the order of `example_ids`."""

    @cached_property
    def _by_id(self) -> dict[str, Tensor]:
        rows = torch.split(self.logits, self.lengths.tolist())
        return dict(zip(self.example_ids, rows, strict=True))

    def of(self, examples: Sequence[Example]) -> Float[Tensor, "token vocab"]:
        """The rows of these examples, in their order."""
        return torch.cat([self._by_id[example.id] for example in examples])

    def to_bytes(self) -> bytes:
        """Writes the teacher as safetensors: what the teacher stage stores."""
        ids = torch.frombuffer(bytearray(json.dumps(self.example_ids).encode()), dtype=torch.uint8)
        return safetensors.torch.save(
            {"logits": self.logits, "lengths": self.lengths, "example_ids": ids}
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> "Teacher":
        """Reads what `to_bytes` wrote."""
        tensors = safetensors.torch.load(data)
        ids = json.loads(tensors["example_ids"].numpy().tobytes())
        return cls(tuple(ids), tensors["logits"], tensors["lengths"])


@torch.no_grad()
def teacher_logits(vlm: VLM, examples: Sequence[Example], task: Pictures) -> Teacher:
    """Runs the dense model over the repair examples; call it before anything is pruned.

    The examples are cut into chunks of a fixed size, dealt to the workers in turn and gathered in
    chunk order, so every worker returns the same teacher at any number of workers.
    """
    rank, world_size = rank_and_world_size()
    chunks = [examples[start : start + CHUNK] for start in range(0, len(examples), CHUNK)]
    own = [_chunk_logits(vlm, chunk, task) for chunk in chunks[rank::world_size]]
    gathered = [own]
    if world_size > 1:
        gathered = [[] for _ in range(world_size)]
        distributed.all_gather_object(gathered, own)
    in_order = [gathered[index % world_size][index // world_size] for index in range(len(chunks))]
    return Teacher(
        example_ids=tuple(example.id for example in examples),
        logits=torch.cat([logits for logits, _ in in_order]),
        lengths=torch.cat([lengths for _, lengths in in_order]),
    )


def _chunk_logits(
    vlm: VLM, examples: Sequence[Example], task: Pictures
) -> tuple[Float[Tensor, "token vocab"], Int[Tensor, " example"]]:
    batch = vlm.encode(examples, task.image, answers=True)
    assert batch.labels is not None
    logits, _ = vlm.answer_logits(batch)
    return logits.float().cpu(), (batch.labels != NO_LABEL).sum(dim=1).cpu()
