"""Fields of `repair` that exclude each other: judged in a file, and at points that set them."""

from collections.abc import Iterator

from ressa.spec.schema import SweepSpec
from ressa.spec.yaml import Path, Problem


def _conflict(path: Path, message: str, *fields: str) -> Problem:
    return Problem(path, message, frozenset(f"repair.{field}" for field in fields))


def repair_conflicts(spec: SweepSpec) -> Iterator[Problem]:
    """Yields which fields of `repair` exclude each other, or others of the spec, and why."""
    yield from training_conflicts(spec)
    yield from precision_conflicts(spec)
    yield from stopping_conflicts(spec)


def training_conflicts(spec: SweepSpec) -> Iterator[Problem]:
    """Yields those of steps, batches, methods and objectives."""
    repair, workers = spec.repair, spec.resources.workers
    if repair.warmup_steps > repair.steps:
        message = f"the warm-up is part of steps ({repair.steps}), got {repair.warmup_steps}."
        yield _conflict(("repair", "warmup_steps"), message, "steps", "warmup_steps")
    if repair.batch_size % workers:
        message = f"must divide repair.batch_size ({repair.batch_size}), got {workers}."
        yield _conflict(("resources", "workers"), message, "batch_size")
    if repair.dropout and repair.method not in ("lora", "none"):
        message = (
            f"{repair.method} has no place for dropout, got {repair.dropout}: its update meets no "
            "input of its own. Leave it out, or take method lora."
        )
        yield _conflict(("repair", "dropout"), message, "method", "dropout")
    only = {"text": "language", "features": "vision"}.get(repair.objective)
    if only is not None and repair.train != (only,) and repair.method != "none":
        message = (
            f"{repair.objective} trains {only} alone, got train: {', '.join(repair.train)}. Set "
            f"repair.train to [{only}]."
        )
        yield _conflict(("repair", "objective"), message, "objective", "train", "method")
    if repair.distillation.reduction == "reference" and repair.zero_stage == 3:
        message = (
            "3 is for models that one worker cannot hold, and distillation.reduction reference "
            "has each hold the whole dense model as its teacher. Set zero_stage to 2, or "
            "reduction to token_mean."
        )
        yield _conflict(("repair", "zero_stage"), message, "distillation.reduction", "zero_stage")


def precision_conflicts(spec: SweepSpec) -> Iterator[Problem]:
    """Yields those of types of numbers and of where they lie."""
    repair, on_gpus = spec.repair, bool(spec.resources.gpus_per_worker)
    if repair.dtype == "float16" and not on_gpus:
        message = (
            "float16 is trained on GPUs alone (resources.gpus_per_worker is 0). "
            "Choose bfloat16 or float32."
        )
        yield _conflict(("repair", "dtype"), message, "dtype")
    elif repair.method != "none" and spec.model.dtype == "float16" != repair.dtype:
        both = "Set repair.dtype to float16 too, or this" if on_gpus else "Set it"
        message = (
            "most gradients of a model in float16 vanish unless the loss is scaled, which "
            f"repair.dtype {repair.dtype} does not. {both} to bfloat16 or float32."
        )
        yield _conflict(("model", "dtype"), message, "dtype", "method")
    if repair.offload == "cpu" and not on_gpus:
        message = (
            "cpu takes the optimiser's state off GPUs; without one (resources.gpus_per_worker is "
            "0) it is in main memory as it is. Leave it out."
        )
        yield _conflict(("repair", "offload"), message, "offload")
    elif repair.offload == "cpu" and repair.zero_stage == 0 and repair.dtype == "float32":
        yield _conflict(
            ("repair", "offload"),
            "cpu needs zero_stage 1, 2 or 3, got 0.",
            "offload",
            "zero_stage",
            "dtype",
        )
    if repair.zero_stage == 3 and repair.dtype != spec.model.dtype:
        message = (
            f"3 shares out frozen and trained weights together, of one type, got model.dtype "
            f"{spec.model.dtype} and repair.dtype {repair.dtype}. Set them alike, or zero_stage "
            "to 2."
        )
        yield _conflict(("repair", "zero_stage"), message, "zero_stage", "dtype")


def stopping_conflicts(spec: SweepSpec) -> Iterator[Problem]:
    """Yields what of `repair` leaves early stopping nothing to look at."""
    if spec.early_stopping is None:
        return
    if spec.repair.method == "none":
        message = "trials end at steps of repair, and repair.method is none. Leave it out."
        yield _conflict(("early_stopping",), message, "method")
    if spec.repair.zero_stage == 3:
        message = "a rung scores the student on each worker, which zero_stage 3 shares out. Set 2."
        yield _conflict(("repair", "zero_stage"), message, "zero_stage")
