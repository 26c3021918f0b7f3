"""What a sweep will do, worked out before anything runs: trials, baselines and their data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache, cached_property
from itertools import combinations
from typing import Any

from ressa.data import open_data, open_task, pictures_of
from ressa.errors import SpecError
from ressa.models.identity import checked_folder, fingerprint, is_on_hub, pinned
from ressa.records import TaskData, TrialSpec, content_key, use_of
from ressa.sparsity import TOWERS, Inventory, Tower, tower_zeros
from ressa.spec import (
    ALL_TASKS,
    Calibration,
    DataRef,
    DataSource,
    Effective,
    ModelRef,
    Objective,
    SweepSpec,
    apply_point,
    baseline,
    check_inventory,
    draws,
)


@dataclass(frozen=True)
class SweepPlan:
    """A resolved spec together with its model's layers."""

    spec: SweepSpec
    inventory: Inventory
    fingerprint: str
    """Hash of the model's files."""
    reads_data: bool = True
    """False leaves data sets in files alone: trials are then told apart by their names alone."""

    @property
    def baselines(self) -> tuple[str, ...]:
        """Names of the baseline trials, in the order in which they run."""
        return tuple(name.replace("_", "-") for name in self.spec.baselines)

    @property
    def objective(self) -> tuple[str, str, str]:
        """Task, split and metric that the search maximises: of several objectives, the first."""
        return self.measured(self.spec.objectives[0])

    def measured(self, objective: Objective) -> tuple[str, str, str]:
        """Task, split and metric of an objective that is a score."""
        splits = [r.split for r in self.spec.evaluate if objective.task in (r.task, ALL_TASKS)]
        return objective.task, splits[0], objective.metric

    def trial(self, point: Mapping[str, str]) -> TrialSpec:
        """Returns the trial that a point comes to.

        Raises:
            InfeasibleAllocation: the point cannot meet its budget.
        """
        trial = self._trial(apply_point(self.spec, self.inventory, point))
        stopping = self.spec.early_stopping
        if stopping is None:
            return trial
        return replace(trial, rungs=stopping.rungs, rung_samples=stopping.samples)

    def key_of(self, point: Mapping[str, str]) -> str:
        """Returns the key of the trial that a point comes to; raises like `trial`."""
        return self.trial(point).key

    def baseline(self, name: str) -> TrialSpec:
        """Returns the trial of a baseline: nothing pruned, and repaired alike if it says so."""
        return self._trial(baseline(self.spec, name.replace("-", "_")))

    def _trial(self, effective: Effective) -> TrialSpec:
        return TrialSpec(
            model=self.spec.model,
            fingerprint=self.fingerprint,
            vision=effective.vision,
            language=effective.language,
            calibration=effective.calibration,
            repair=effective.repair,
            evaluate=self.spec.evaluate,
            data=self._task_data(effective),
            workers=self.spec.resources.workers,
            cpus_per_worker=self.spec.resources.cpus_per_worker,
        )

    def _task_data(self, effective: Effective) -> tuple[TaskData, ...]:
        """Describes the data sets in files that a trial uses, and what it takes from each."""
        repair = [effective.repair.data] if effective.repair else []
        uses: list[Calibration | DataRef] = [effective.calibration, *repair, *self.spec.evaluate]
        found = []
        for name, source in self.spec.data.items():
            own = {use_of(use): use for use in uses if use.task == name}
            if not own:
                continue
            contents = {text: self._fingerprint_of(name, source, use) for text, use in own.items()}
            if name in self._matching_models:
                contents["model"] = self._matching_models[name]
            found.append(TaskData(name=name, source=source, contents=tuple(contents.items())))
        return tuple(found)

    @cached_property
    def _matching_models(self) -> dict[str, str]:
        """The fingerprints of data sets' matching models."""
        if not self.reads_data:
            return {}
        return {name: fingerprint(ref) for name, ref in _matching_models(self.spec).items()}

    def _fingerprint_of(self, name: str, source: DataSource, use: Calibration | DataRef) -> str:
        if not self.reads_data:
            return "unread"
        task = open_data(name, source)
        found: str = task.fingerprint(use.split, use.samples, use.seed)
        return found

    def zeros(self, trial: TrialSpec, tower: Tower) -> int | None:
        """Counts the weights that a tower is to lose; None where both lose their share together."""
        wanted = trial.tower(tower)
        if wanted.is_shared:
            return None
        return tower_zeros(self.inventory.tower(tower), wanted.target)

    def all_zeros(self, trial: TrialSpec) -> int:
        """Counts the weights that both towers are to lose."""
        if trial.vision.is_shared:
            return tower_zeros(self.inventory.layers, trial.vision.target)
        return sum(self.zeros(trial, tower) or 0 for tower in TOWERS)

    def budget_of(self, point: Mapping[str, str]) -> Fraction | None:
        """Returns the budget of a point's line, if the sweep has budgets."""
        return (
            Fraction(point["budget"])
            if "budget" in point
            else (Fraction(self.spec.budget[0]) if self.spec.budget else None)
        )

    @cached_property
    def contents(self) -> dict[str, str]:
        """What all trials rest on: hashes of the model's files, and of what is drawn from data.

        They are equal wherever copies of these lie, and whenever they were made.
        """
        found = {f"model {self.spec.model.id}": fingerprint(self.spec.model, of_copies=True)}
        uses = [use for _, use in draws(self.spec)]
        for name, source in self.spec.data.items():
            hashes = [self._fingerprint_of(name, source, use) for use in uses if use.task == name]
            found[f"data.{name}"] = content_key(*hashes, self._matching_models.get(name))
        return found

    def check_model(self) -> None:
        """Looks whether trials can load the model, which layers alone do not say.

        Raises:
            SpecError: weights or processor are missing, damaged or of another kind.
        """
        if self.spec.model.catalog is None:
            from ressa.models.loading import refuse_unloadable

            refuse_unloadable(self.spec.model)

    @cached_property
    def data(self) -> list[dict[str, Any]]:
        """Rows of the `data` table: which examples each purpose uses, in any trial.

        Raises:
            SpecError: two purposes share an image, or a split has too few examples.
        """
        sources = self.spec.data
        rows: list[dict[str, Any]] = []
        faults: dict[str, list[str]] = {}  # what is wrong: for which purposes
        for purpose, ref in draws(self.spec):
            try:
                rows.append(_data_row(purpose, ref, sources.get(ref.task)))
            except SpecError as error:
                faults.setdefault(str(error), []).append(purpose)
        if faults:
            said = [f"{', '.join(dict.fromkeys(of))}: {what}" for what, of in faults.items()]
            raise SpecError("\n".join(said), said)
        seen = [(row, pictures_of(row["image_ids"], sources.get(row["task"]))) for row in rows]
        for (one, images), (other, others) in combinations(seen, 2):
            if one["purpose"] == other["purpose"]:
                continue
            shared = images & others
            if shared:
                raise SpecError(
                    f"{one['purpose']} ({one['task']}) and {other['purpose']} ({other['task']}) "
                    f"share {len(shared)} images, such as {min(shared)}; purposes must be disjoint "
                    "by image. Choose another split, or other slices in data.splits."
                )
        return rows


def _data_row(
    purpose: str, ref: Calibration | DataRef, source: DataSource | None
) -> dict[str, Any]:
    draw = (ref.split, ref.samples, ref.seed)
    left_out: Sequence[Any] = ()
    if source is None:
        examples = open_task(ref.task).examples(*draw)
    else:
        examples, left_out = open_data(ref.task, source).draw(*draw)
    return {
        "purpose": purpose,
        "task": ref.task,
        "split": ref.split,
        "samples": len(examples),
        "seed": ref.seed,
        "image_ids": list(dict.fromkeys(example.image_id for example in examples)),
        "example_ids": [example.id for example in examples],
        "left_out": len(left_out),
        "left_out_ids": [f"{item.id}: {item.reason}" for item in left_out],
    }


def make_plan(spec: SweepSpec, *, reads_data: bool = True) -> SweepPlan:
    """Looks up the model's layers and files: from the catalog, or by loading its configuration.

    Args:
        spec: the resolved sweep.
        reads_data: see `SweepPlan`.

    Raises:
        SpecError: the model cannot be found, or a trial cannot be what the spec asks.
    """
    spec = _with_commits(spec, reads_data=reads_data)
    inventory = inventory_of(spec.model)
    if spec.model.image_size is not None and spec.model.catalog is not None:
        from ressa.models import load_inventory

        load_inventory(spec.model)  # whether it can look at such pictures the catalog does not say
    problems = list(check_inventory(spec, inventory))
    if problems:
        lines = list(map(str, problems))
        raise SpecError("\n".join(lines), lines)
    return SweepPlan(spec, inventory, fingerprint(spec.model), reads_data)


def _with_commits(spec: SweepSpec, *, reads_data: bool) -> SweepSpec:
    """Names today's commit of each hub model, for all trials and whenever the sweep goes on."""
    model = pinned(spec.model)[0] if is_on_hub(spec.model) else spec.model
    data = dict(spec.data)
    for name, ref in _matching_models(spec).items() if reads_data else ():
        if is_on_hub(ref):
            commit = pinned(ref, weights=True)[0].revision
            data[name] = data[name].model_copy(update={"model_revision": commit})
    return spec.model_copy(update={"model": model, "data": data})


def _matching_models(spec: SweepSpec) -> dict[str, ModelRef]:
    """The matching models of data sets of retrieval."""
    return {
        name: ModelRef(id=source.model, revision=source.model_revision)
        for name, source in spec.data.items()
        if source.model is not None
    }


def commits_of(spec: SweepSpec) -> dict[str, str | None]:
    """The fields that say at which commit a model of the hub is taken."""
    found = {"model.revision": spec.model.revision}
    found |= {f"data.{name}.model_revision": one.model_revision for name, one in spec.data.items()}
    return found


@cache
def inventory_of(model: ModelRef) -> Inventory:
    """Lists a model's layers: from the catalog at once, otherwise from its configuration.

    Raises:
        SpecError: there is no such model.
    """
    if model.catalog is not None:
        return model.catalog.inventory()
    checked_folder(model.id)  # before torch and transformers are imported
    from ressa.models import load_inventory

    return load_inventory(model)
