"""How the pocket models were trained: two stages on one CPU thread, from a seed.

1. The vision tower learns to name shape and colour from its class token, through a linear head that
   is thrown away. The labels are read off the questions and answers.
2. The whole model learns to answer, by cross-entropy on the answer's tokens; the head of stage 1
   stays on as an auxiliary loss, because a picture's shape is what takes longest to learn.

It trains on the `train` and `calibration` splits together. The schedule is fixed and the last step
counts: the validation split only served to choose the recipe, and the test split is read once,
after the last step. Each step encodes 64 pictures once and asks several questions about each.

Dimensions: image = pictures of one step; slot = questions asked about one picture.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from PIL.Image import Image
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import ProcessorMixin

from ressa.models.pocket.build import WIDTH, build_blip2, build_llava
from ressa.models.pocket.losses import AnswerLoss, blip2_loss, llava_loss
from ressa.records import Example

log = logging.getLogger(__name__)

SHAPES = ("circle", "rectangle", "triangle")
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
TRAINING_SPLITS = ("train", "calibration")
_UNKNOWN = -100  # cross-entropy's own mark for "no label"
_IMAGES_PER_STEP = 64
_LARGEST_SHIFT = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One model's recipe; learning rates follow a cosine after a linear warm-up."""

    build: Callable[[list[str]], tuple[PreTrainedModel, ProcessorMixin]]
    answer_loss: AnswerLoss
    questions_per_image: int
    vision_steps: int
    vision_learning_rate: float
    joint_steps: int
    joint_learning_rate: float
    joint_vision_factor: float
    """The vision tower's learning rate in stage 2, over the others'."""
    auxiliary_weight: float


RECIPES = {
    "pocket-blip2": Recipe(
        build=build_blip2,
        answer_loss=blip2_loss,
        questions_per_image=4,
        vision_steps=600,
        vision_learning_rate=2e-3,
        joint_steps=900,
        joint_learning_rate=2e-3,
        joint_vision_factor=0.3,
        auxiliary_weight=0.3,
    ),
    "pocket-llava": Recipe(
        build=build_llava,
        answer_loss=llava_loss,
        questions_per_image=6,
        vision_steps=600,
        vision_learning_rate=2e-3,
        joint_steps=1200,
        joint_learning_rate=2e-3,
        joint_vision_factor=0.5,
        auxiliary_weight=0.3,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pictures:
    """The training pictures, and what is asked about each."""

    pixels: Float[Tensor, "image 3 64 64"]
    shape: Int[Tensor, " image"]
    colour: Int[Tensor, " image"]
    questions: list[list[Example]]


@runtime_checkable
class TrainingTask(Protocol):
    """What training asks of easy-VQA; tests give it fewer pictures."""

    @property
    def answers(self) -> Sequence[str]: ...

    def examples(self, split: str) -> Sequence[Example]: ...

    def image(self, image_id: str) -> Image: ...


def train(
    name: str, seed: int, task: TrainingTask
) -> tuple[PreTrainedModel, ProcessorMixin, float]:
    """Trains a pocket model from scratch; the same seed gives the same weights on one machine.

    Args:
        name: "pocket-blip2" or "pocket-llava".
        seed: of initial weights, order of pictures, choice of questions and augmentation.
        task: easy-VQA.

    Returns:
        The model, its processor and the CPU-seconds that training took.
    """
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    recipe = RECIPES[name]
    model, processor = recipe.build(vocabulary(task))
    began = time.process_time()
    pictures = _load(task, processor)
    head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, len(SHAPES) + len(COLOURS)))
    generator = torch.Generator().manual_seed(seed)
    _learn_to_see(model, head, recipe, pictures, generator)
    _learn_to_answer(model, processor, head, recipe, pictures, generator)
    return model.eval(), processor, time.process_time() - began


def vocabulary(task: TrainingTask) -> list[str]:
    """The words of the training questions and of the answers, in alphabetical order."""
    questions = {e.question for split in TRAINING_SPLITS for e in task.examples(split)}
    words = {w for question in questions for w in question.lower().replace("?", " ?").split()}
    return sorted(words | set(task.answers))


def labels_of(questions: Sequence[Example]) -> tuple[int, int]:
    """Reads a picture's shape and colour off its questions; -100 where none of them tells."""
    shape = colour = _UNKNOWN
    for example in questions:
        words = example.question.rstrip("?").split()
        negated = "not" in words or "no" in words
        affirmed = example.answer == ("no" if negated else "yes")
        told = {example.answer} | (set(words) if affirmed or example.kind != "yes-no" else set())
        for index, name in enumerate(SHAPES):
            shape = index if name in told else shape
        for index, name in enumerate(COLOURS):
            colour = index if name in told else colour
    return shape, colour


def class_token(model: PreTrainedModel, pixels: Tensor) -> Float[Tensor, "image width"]:
    """What the vision tower's class token says, as the connector sees it."""
    seen = model.get_encoder("image")(pixel_values=pixels, output_hidden_states=True)
    # LLaVA reads the last block as it is, BLIP-2 after one more layer norm.
    tokens: Tensor = seen.last_hidden_state if _is_blip2(model) else seen.hidden_states[-1]
    return tokens[:, 0]


def _learn_to_see(
    model: PreTrainedModel,
    head: nn.Module,
    recipe: Recipe,
    pictures: _Pictures,
    generator: torch.Generator,
) -> None:
    vision = _vision_parameters(model)
    groups = [{"params": [*vision, *head.parameters()], "lr": recipe.vision_learning_rate}]
    optimizer, scheduler = _optimizer(groups, recipe.vision_steps)
    for step, chosen in enumerate(
        _batches(len(pictures.questions), recipe.vision_steps, generator)
    ):
        token = class_token(model, _augment(pictures.pixels[chosen], generator))
        loss = _naming_loss(head(token), pictures, chosen)
        _update(optimizer, scheduler, loss)
        if step % 100 == 99:
            log.info(
                "vision step %d  loss %.3f  %.0f CPU-s", step + 1, loss.item(), time.process_time()
            )


def _learn_to_answer(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    head: nn.Module,
    recipe: Recipe,
    pictures: _Pictures,
    generator: torch.Generator,
) -> None:
    vision = _vision_parameters(model)
    seen = {id(parameter) for parameter in vision}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in seen]
    rate = recipe.joint_learning_rate
    groups = [
        {"params": [*rest, *head.parameters()], "lr": rate},
        {"params": vision, "lr": rate * recipe.joint_vision_factor},
    ]
    optimizer, scheduler = _optimizer(groups, recipe.joint_steps)
    for step, chosen in enumerate(_batches(len(pictures.questions), recipe.joint_steps, generator)):
        questions = [
            _draw(pictures.questions[index], recipe.questions_per_image, generator)
            for index in chosen.tolist()
        ]
        pixels = _augment(pictures.pixels[chosen], generator)
        answering, token = recipe.answer_loss(model, processor, pixels, questions)
        naming = _naming_loss(head(token), pictures, chosen)
        _update(optimizer, scheduler, answering + recipe.auxiliary_weight * naming)
        if step % 100 == 99:
            log.info(
                "joint step %d  loss %.3f  naming %.3f  %.0f CPU-s",
                *(step + 1, answering.item(), naming.item(), time.process_time()),
            )


def _naming_loss(
    logits: Float[Tensor, "image name"], pictures: _Pictures, chosen: Int[Tensor, " image"]
) -> Float[Tensor, ""]:
    shape, colour = logits.split([len(SHAPES), len(COLOURS)], dim=1)
    return nn.functional.cross_entropy(
        shape, pictures.shape[chosen], ignore_index=_UNKNOWN
    ) + nn.functional.cross_entropy(colour, pictures.colour[chosen], ignore_index=_UNKNOWN)


def _vision_parameters(model: PreTrainedModel) -> list[nn.Parameter]:
    return list(model.get_encoder("image").parameters())


def _is_blip2(model: PreTrainedModel) -> bool:
    return bool(model.config.model_type == "blip-2")


def _optimizer(
    groups: list[dict[str, object]], steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.01)
    warmup = 40

    def factor(step: int) -> float:
        return min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * step / steps))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def _update(
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LambdaLR,
    loss: Float[Tensor, ""],
) -> None:
    optimizer.zero_grad()
    loss.backward()
    for group in optimizer.param_groups:
        nn.utils.clip_grad_norm_(group["params"], 1.0)
    optimizer.step()
    scheduler.step()


def _batches(
    images: int, steps: int, generator: torch.Generator
) -> Iterator[Int[Tensor, " image"]]:
    """Deals out every picture once before any picture comes again."""
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(order) < _IMAGES_PER_STEP:
            order = torch.cat([order, torch.randperm(images, generator=generator)])
        yield order[:_IMAGES_PER_STEP]
        order = order[_IMAGES_PER_STEP:]


def _draw(questions: list[Example], count: int, generator: torch.Generator) -> list[Example]:
    """Draws questions of one picture, some twice if it has fewer than `count`."""
    order = torch.randperm(len(questions), generator=generator).tolist()
    return [questions[order[slot % len(order)]] for slot in range(count)]


def _augment(
    pixels: Float[Tensor, "image 3 64 64"], generator: torch.Generator
) -> Float[Tensor, "image 3 64 64"]:
    """Mirrors half of the pictures and shifts each, repeating its edge: shape and colour stay."""
    shift, size = _LARGEST_SHIFT, pixels.shape[-1]
    padded = nn.functional.pad(pixels, [shift] * 4, mode="replicate")
    corner = torch.randint(0, 2 * shift + 1, (len(pixels), 2), generator=generator).tolist()
    mirrored = (torch.rand(len(pixels), generator=generator) < 0.5).tolist()
    shifted = []
    for image, (top, left), mirror in zip(padded, corner, mirrored, strict=True):
        image = image[:, top : top + size, left : left + size]
        shifted.append(image.flip(-1) if mirror else image)
    return torch.stack(shifted)


def _load(task: TrainingTask, processor: ProcessorMixin) -> _Pictures:
    examples = [e for split in TRAINING_SPLITS for e in task.examples(split)]
    questions = [list(group) for _, group in groupby(examples, key=lambda e: e.image_id)]
    images = [task.image(group[0].image_id) for group in questions]
    labels = torch.tensor([labels_of(group) for group in questions])
    return _Pictures(
        pixels=processor.image_processor(images, return_tensors="pt")["pixel_values"],
        shape=labels[:, 0],
        colour=labels[:, 1],
        questions=questions,
    )
