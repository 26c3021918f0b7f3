"""What a sweep on GPUs will take, estimated from the list of layers alone: hours and bytes.

A weight takes part once in every position's forward pass, 2 floating-point operations; a step of
SparseLoRA costs three products of that size, since its gradient needs the whole product of outputs
and inputs, and one more where blocks are computed again in backward. Writing an answer reads all
weights of the language model once a token. Nothing here was measured: it is for telling hours from
weeks, and each number that it rests on is printed with it.

In the store lie, of each calibration, 16 bytes an input feature, and where Gram matrices are taken
(`keys.statistics_of`) 4 bytes a pair of features, counted once for layers that read one input; of
each mask that trials share a bit a weight, and of SparseGPT the weights that stay. Of the teacher
lie there its logits at each token of each answer; every trial's workers lay down on their disks
what they read of them (`TeacherOnDisk`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from ressa.catalog import Need
from ressa.keys import NO_VERSIONS, calibration_key, mask_keys, statistics_of, teacher_key
from ressa.records import TrialSpec
from ressa.sparsity import TOWERS, LayerShape
from ressa.spec import DataRef
from ressa.sweep.plan import SweepPlan

TERAFLOPS = 312.0  # of an A100 in bf16, as its data sheet says
USE = 0.4  # the share of them that is reached
TERABYTES = 2.0  # a second, from the GPU's memory
VISION_POSITIONS = 257  # 224 pixels in patches of 14, and the class token
LANGUAGE_POSITIONS = 64  # 32 of the picture's, and a short text
ANSWER_TOKENS = 8
PAIR_FLOPS = 2 * 105e6 * 52  # one caption matched with one picture: a Q-Former on 32 + 20 positions
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Of a weight, by its type."""

# Questions (or captions, or pictures to caption) and pictures of published splits.
_SIZES = {
    ("vqav2", "val2014"): (214_354, 40_504),
    ("okvqa", "val2014"): (5_046, 5_033),
    ("gqa", "testdev_balanced"): (12_578, 398),
    ("nocaps", "val"): (4_500, 4_500),
    ("karpathy", "val"): (5_000, 5_000),
    ("karpathy", "test"): (5_000, 1_000),
    ("aokvqa", "val"): (1_145, 1_122),
}
_UNKNOWN = (10_000, 10_000)
# How layers are called that stand behind an attention, and modules that look at another tower.
_BEHIND = ("o", "proj", "dense", "c_proj")
_CROSS = ("cross", "encdec", "encoder_attn")


Fact: TypeAlias = tuple[str, str]
"""What is said of a sweep before it runs: a topic, and words."""


@dataclass(frozen=True, slots=True)
class Cost:
    """An estimate for one sweep."""

    hours: dict[str, float]
    """GPU-hours of all trials together, by stage."""
    store_bytes: float
    """Of masks, statistics, teachers and answers in the store."""
    teacher_bytes: float
    """Of one teacher's logits: in the store, and on the disks of each trial's workers together."""
    worker_bytes: float
    """Of weights that each worker holds on its GPU; activations come on top."""


def estimate(plan: SweepPlan, trials: int, known: Sequence[TrialSpec]) -> Cost:
    """Estimates what so many trials and the baselines take.

    Args:
        plan: of the sweep; data that were not read count with their published sizes.
        trials: how many the search will run.
        known: what it may run, each once: all of a list, or some that were drawn from a continuous
            space.
    """
    known = known or [plan.baseline("dense_repaired")]
    spec, parts = plan.spec, plan.inventory.parameters
    vision, language = parts["vision"], parts["language"]
    weight = BYTES[spec.model.dtype]
    forward = 2.0 * (vision * VISION_POSITIONS + language * LANGUAGE_POSITIONS)
    repairs = spec.repair.method != "none"
    scored = [_scoring_flops(plan, ref) for ref in spec.evaluate]
    written = [_writing_seconds(plan, ref) for ref in spec.evaluate]
    states = trials * (2 if repairs else 1) + len(plan.baselines)
    questions, statistics = _calibrations(plan, trials, known)
    repaired = (trials + ("dense-repaired" in plan.baselines)) if repairs else 0
    products = 3 + spec.repair.gradient_checkpointing
    live = spec.repair.distillation.reduction == "reference" and spec.repair.distillation.weight > 0
    seen = spec.repair.steps * spec.repair.batch_size
    hours = {
        "calibration": questions * forward,
        "repair": repaired * seen * forward * (products + live),
        "evaluation": states * sum(scored),
    }
    seconds = {name: flops / (TERAFLOPS * 1e12 * USE) for name, flops in hours.items()}
    seconds["evaluation"] += states * sum(written)
    teachers = _teachers(plan, known)
    store = (
        statistics
        + sum(teachers)
        + _mask_bytes(plan, trials, known)
        + 100.0 * states * sum(_size(plan, ref)[0] for ref in spec.evaluate)
    )
    copies = 2 if repairs and live else 1
    return Cost(
        hours={name: value / 3600 for name, value in seconds.items()},
        store_bytes=store,
        teacher_bytes=max(teachers, default=0.0),
        worker_bytes=float(copies * plan.inventory.whole * weight),
    )


def cost_words(plan: SweepPlan, trials: int, known: Sequence[TrialSpec]) -> list[Fact]:
    """Says an estimate and what it rests on; nothing for a sweep without GPUs."""
    if not plan.spec.resources.gpus_per_worker:
        return []
    cost = estimate(plan, trials, known)
    parts = ", ".join(f"{name} {value:.1f}" for name, value in cost.hours.items())
    sizes = [(ref.task, _size(plan, ref)) for ref in plan.spec.evaluate]
    data = ", ".join(f"{task} {items:,} on {images:,} pictures" for task, (items, images) in sizes)
    teacher = (
        f", {_gib(cost.teacher_bytes)} of it the teacher's logits, which each trial's workers lay "
        "down in TMPDIR too"
        if cost.teacher_bytes
        else ""
    )
    return [
        (
            "estimate",
            f"not measured: {sum(cost.hours.values()):.1f} GPU-hours ({parts}); "
            f"{_gib(cost.store_bytes)} in the store{teacher}; "
            f"{_gib(cost.worker_bytes)} of weights on each worker's GPU",
        ),
        (
            "assumes",
            f"{TERAFLOPS:.0f} TFLOP/s used to {USE:.0%}, {TERABYTES:g} TB/s, "
            f"{VISION_POSITIONS} vision and {LANGUAGE_POSITIONS} language positions, "
            f"{ANSWER_TOKENS} tokens an answer, each state scored on real and on blank pictures; "
            f"{data}",
        ),
    ]


def _calibrations(plan: SweepPlan, trials: int, known: Sequence[TrialSpec]) -> tuple[float, float]:
    """Counts the questions that go through the model for statistics, and the bytes kept of them."""
    questions, found = 0.0, {}
    for trial, tower in ((trial, tower) for trial in known for tower in TOWERS):
        taken = statistics_of(trial, tower, plan.inventory)
        key = calibration_key(trial, tower, plan.inventory)
        if key is not None:
            size = statistics_bytes(plan.inventory.tower(tower), taken)
            found[key] = trial.calibration.samples, size
        elif taken != "nothing":  # behind pruned blocks: by every trial, and not kept
            questions += trial.calibration.samples * trials / len(known)
    return questions + sum(asked for asked, _ in found.values()), sum(
        size for _, size in found.values()
    )


def statistics_bytes(layers: Sequence[LayerShape], taken: Need) -> float:
    """Estimates what a tower's statistics take in the store."""
    inputs: dict[tuple[str, int, str], int] = {}
    for layer in layers:
        # Layers of one module and width read one input: queries, keys and values; both halves of a
        # gated unit. But not what comes behind attention, nor what looks at another tower's output.
        parent, _, name = layer.name.rpartition(".")
        own = name if name.startswith(_BEHIND) else ""
        if any(word in parent.lower() for word in _CROSS) and name[0] in "kv":
            own = "keys and values"
        inputs[parent, layer.columns, own] = layer.columns
    widths = inputs.values()
    return sum(16.0 * width + (4.0 * width**2 if taken == "gram" else 0) for width in widths)


def _mask_bytes(plan: SweepPlan, trials: int, known: Sequence[TrialSpec]) -> float:
    """Estimates what masks take in the store, those that trials share once."""
    weight, found = BYTES[plan.spec.model.dtype], {}
    for trial in known:
        for tower, key in mask_keys(trial, NO_VERSIONS).items():
            wanted = trial.tower(tower)
            stays = 1 - float(wanted.target.sparsity) if wanted.method == "sparsegpt" else 0
            found[key] = plan.inventory.prunable(tower) * (1 / 8 + weight * stays)
    return sum(found.values()) * trials / len(known)


def _teachers(plan: SweepPlan, known: Sequence[TrialSpec]) -> list[float]:
    """Estimates what each teacher's logits take."""
    token = plan.inventory.vocabulary * BYTES[plan.spec.model.dtype]
    found = {
        key: _size(plan, trial.repair.data)[0] * ANSWER_TOKENS * token
        for trial in known
        if trial.repair is not None and (key := teacher_key(trial)) is not None
    }
    return [float(size) for size in found.values()]


def _size(plan: SweepPlan, ref: DataRef) -> tuple[int, int]:
    """How many examples an evaluation has and on how many pictures: asked, else as published."""
    source = plan.spec.data.get(ref.task)
    name = source.splits.get(ref.split, "").partition("[")[0] if source else ""
    items, images = _SIZES.get((source.format if source else "", name), _UNKNOWN)
    if source is not None and source.task == "captioning":
        items = images  # scored by picture
    if ref.samples is None or ref.samples > items:
        return items, images
    return ref.samples, max(1, images * ref.samples // items)


def _scoring_flops(plan: SweepPlan, ref: DataRef) -> float:
    items, images = _size(plan, ref)
    source, parts = plan.spec.data.get(ref.task), plan.inventory.parameters
    if source is not None and source.task == "retrieval":
        larger = 2.6 * VISION_POSITIONS  # 364 pixels
        pairs = (images + items) * source.rerank
        return 2.0 * parts["vision"] * larger * images + pairs * PAIR_FLOPS
    beams = source.decoding.beams if source else 1
    asked = 2.0 * parts["language"] * (LANGUAGE_POSITIONS + beams * ANSWER_TOKENS)
    return 2.0 * parts["vision"] * VISION_POSITIONS * images + 2 * asked * items  # and on blank


def _writing_seconds(plan: SweepPlan, ref: DataRef) -> float:
    """What reading the language model's weights for each token takes, batch after batch."""
    source = plan.spec.data.get(ref.task)
    if source is not None and source.task not in ("vqa", "captioning"):
        return 0.0
    passes = 2 * _size(plan, ref)[0] / (source.batch_size if source else 256) * ANSWER_TOKENS
    weight = BYTES[plan.spec.model.dtype]
    return passes * plan.inventory.parameters["language"] * weight / (TERABYTES * 1e12)


def _gib(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"
