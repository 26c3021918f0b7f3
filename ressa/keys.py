"""Keys of the stages that a trial reads: each is a hash of all that can change what it holds.

Worked out from the trial alone, so that `plan` can say beforehand what will be shared, and `stages
gc` what a sweep still needs.
"""

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from ressa.catalog import METHODS, NEEDS, Need
from ressa.records import TrialSpec, content_key
from ressa.sparsity import TOWERS, Inventory, Tower
from ressa.spec import Calibration, DataRef, Ecoflap, Owl, TowerTarget

STAGE_VERSION = 1
"""Raised when a stage's content would change though its key would not."""

GRAM_BYTES = 2**28
"""The most that the Gram matrices of a tower take, each layer's counted, if its method does not
read them: 256 MiB. They say how much of each layer's output is lost."""

FRESH_OUTCOME = "outcome-fresh"
"""Where a trial that shares nothing leaves its outcome: the driver reads it, no trial does."""

Versions = Mapping[Tower, tuple[int, ...]]
"""The versions of the rules that each tower's masks follow from: `PruneMethod.versions`."""


NO_VERSIONS: Versions = dict.fromkeys(TOWERS, ())
"""Where keys need only differ where the stages do: the methods are then not imported."""


def stage_key(trial: TrialSpec, *parts: Any) -> str:
    """Names a stage by all that can change it: its options, the weights, the code's version.

    A use of data counts with what it comes to, wherever the files lie.
    """
    options = trial.model_options or None
    model = (trial.fingerprint, trial.model.dtype, options, trial.cpus_per_worker)
    uses = [use for part in parts for use in (part if isinstance(part, tuple) else (part,))]
    return content_key(STAGE_VERSION, model, *parts, *(contents_of(trial, use) for use in uses))


def contents_of(trial: TrialSpec, use: Any) -> Any:
    """What a use of a data set in files comes to; None for all else."""
    data = trial.task_data(use.task) if isinstance(use, Calibration | DataRef) else None
    return None if data is None else data.identity(use)


def dense_key(trial: TrialSpec) -> str:
    """The key of the dense model's scores."""
    return stage_key(trial, "dense", trial.evaluate, trial.workers)


def teacher_key(trial: TrialSpec) -> str | None:
    """The key of the dense model's logits on the repair data; None where repair reads none."""
    plan = trial.repair
    if plan is None or plan.objective == "features" or not plan.distillation.weight:
        return None
    if plan.distillation.reduction == "reference":  # asks a live teacher
        return None
    return stage_key(trial, "teacher", plan.data, plan.objective == "text")


def statistics_of(trial: TrialSpec, tower: Tower, inventory: Inventory) -> Need:
    """Which statistics of a tower are taken: what its method reads, and small Gram matrices.

    What OWL reads where this is nothing, it takes by itself.
    """
    needs = _needs(trial.tower(tower))
    grams = 4 * sum(layer.columns**2 for layer in inventory.tower(tower))
    return "gram" if grams <= GRAM_BYTES else needs


def _needs(wanted: TowerTarget) -> Need:
    """What a tower's method reads, and the one that it refines; imports those of plug-ins alone."""
    names = [name for name in (wanted.method, wanted.initial) if name is not None]
    needs = [NEEDS.get(name) or METHODS[name].from_spec(wanted).needs for name in names]
    return max(needs, key=get_args(Need).index)


def calibration_key(trial: TrialSpec, tower: Tower, inventory: Inventory) -> str | None:
    """The key of a tower's statistics; None where there are none, or none of the dense model."""
    taken = statistics_of(trial, tower, inventory)
    if trial.calibration.activations != "dense" or taken == "nothing":
        return None
    less = () if taken == "gram" else (taken,)
    return stage_key(trial, "calibration", tower, trial.calibration, *less)


def on_the_dense_model(trial: TrialSpec) -> Calibration:
    """The calibration by which layers' shares are decided, whatever the masks will see."""
    return trial.calibration.model_copy(update={"activations": "dense"})


def outliers_key(trial: TrialSpec, tower: Tower, options: Owl) -> str:
    """The key of the share of outliers in each block of a tower."""
    return stage_key(trial, "outliers", tower, on_the_dense_model(trial), options.threshold)


def importance_key(trial: TrialSpec, tower: Tower, options: Ecoflap) -> str:
    """The key of how much the loss depends on each layer of a tower."""
    ref = on_the_dense_model(trial)
    return stage_key(trial, "importance", tower, ref, options.samples, options.epsilon)


def threshold_key(trial: TrialSpec, tower: Tower, versions: tuple[int, ...]) -> str:
    """The key of what each layer loses where layers compete; `tower` is the first of them."""
    return stage_key(trial, "threshold", tower, trial.tower(tower), versions, trial.calibration)


def pruning_order(trial: TrialSpec) -> tuple[Tower, ...]:
    """Which tower is pruned first.

    With `sequential` activations vision is, so that language is calibrated behind what is left of
    it; with `tower` it comes second, so that language sees the dense one.
    """
    return TOWERS if trial.calibration.activations == "sequential" else TOWERS[::-1]


def mask_keys(trial: TrialSpec, versions: Versions) -> dict[Tower, str]:
    """The keys of both towers' masks, in the order in which they are made."""
    keys: dict[Tower, str] = {}
    above = ""
    for tower in pruning_order(trial):
        ref = trial.calibration
        # What was pruned before, where these statistics depend on it.
        depends = above if ref.activations == "sequential" else ""
        above = stage_key(trial, "mask", tower, trial.tower(tower), versions[tower], ref, depends)
        keys[tower] = above
    return keys


def stages_of(
    trial: TrialSpec, versions: Versions, inventory: Inventory
) -> Iterator[tuple[str, str]]:
    """Yields the stages that a trial reads or makes, as (stage, key); its outcome comes last."""
    yield "dense", dense_key(trial)
    for tower in TOWERS:
        calibration = calibration_key(trial, tower, inventory)
        if calibration is not None:
            yield "calibration", calibration
    teacher = teacher_key(trial)
    if teacher is not None:
        yield "teacher", teacher
    for tower in competing(trial):
        wanted = trial.tower(tower)
        if isinstance(wanted.layers, Owl):
            yield "outliers", outliers_key(trial, tower, wanted.layers)
        if isinstance(wanted.layers, Ecoflap):
            yield "importance", importance_key(trial, tower, wanted.layers)
        if has_threshold(trial, tower):
            yield "threshold", threshold_key(trial, tower, versions[tower])
    for tower, key in mask_keys(trial, versions).items():
        yield f"{tower}-mask", key
    yield "outcome", trial.key


def competing(trial: TrialSpec) -> tuple[Tower, ...]:
    """The towers whose losses are decided one by one; the first alone where both lose together."""
    together = trial.vision.group == "all" and trial.vision.target.pattern is None
    return TOWERS[:1] if together else TOWERS


def has_threshold(trial: TrialSpec, tower: Tower) -> bool:
    """Whether layers of a tower compete, so that what each loses is worked out from saliencies."""
    wanted = trial.tower(tower)
    return wanted.group not in ("row", "matrix") and wanted.target.pattern is None
