"""The work that trials share: said before a sweep runs, counted after, listed and removed.

Which stages a trial needs follows from its spec (`ressa.keys`), so that nothing has to be kept
about it: a sweep that is not finished needs those of its baselines, of the trials that it proposed,
and of those that it may propose yet, as far as that can be told.
"""

import contextlib
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from ressa.catalog import METHODS
from ressa.errors import InfeasibleAllocation, RessaError
from ressa.keys import FRESH_OUTCOME, NO_VERSIONS, Versions, stages_of
from ressa.records import TrialSpec
from ressa.search import Proposer
from ressa.sparsity import TOWERS, Inventory
from ressa.spec import count_points, grid_points
from ressa.store import Store, StoredStage, SweepStore
from ressa.sweep.driver import current_spec
from ressa.sweep.plan import SweepPlan, make_plan

OF_ONE_TRIAL = frozenset(
    {"adapters", "outcome", FRESH_OUTCOME, "repair-checkpoint", "repair-deepspeed"}
)
"""Stages that no two trials share; their keys begin with the trial's."""

_MOST_LISTED = 1_000  # points of a space that are all kept for a sampler that learns
_LONG_AGO = datetime.min.replace(tzinfo=UTC)


def versions_of(trial: TrialSpec) -> Versions:
    """Returns the versions of the rules by which a trial prunes; imports torch."""
    wanted = {tower: trial.tower(tower) for tower in TOWERS}
    return {
        tower: METHODS[target.method].from_spec(target).versions for tower, target in wanted.items()
    }


def how_often(trials: Iterable[TrialSpec], inventory: Inventory) -> dict[str, tuple[int, int]]:
    """Says of each kind of stage how many there are, and how often they are asked for.

    Worked out without the methods' versions, so without torch.
    """
    asked = Counter(
        stage
        for trial in trials
        for stage in stages_of(trial, NO_VERSIONS, inventory)
        if stage[0] != "outcome"
    )
    kinds = dict.fromkeys(stage for stage, _ in asked)
    return {
        kind: (
            sum(stage == kind for stage, _ in asked),
            sum(times for (stage, _), times in asked.items() if stage == kind),
        )
        for kind in kinds
    }


def already_made(trials: Iterable[TrialSpec], inventory: Inventory, store: Store) -> dict[str, int]:
    """Counts, by kind, the stages of these trials that are in a store; looks, reads nothing."""
    made = {(stage.stage, stage.key) for stage in store.stages.inventory() if stage.is_whole}
    if not made:
        return {}
    wanted = {
        stage for trial in trials for stage in stages_of(trial, versions_of(trial), inventory)
    }
    return dict(Counter(kind for kind, _ in sorted(wanted & made)))


def work_rows(sweep: SweepStore) -> list[dict[str, Any]]:
    """Says of each kind of stage how many a sweep's trials made, and how often they found one."""
    trials = sweep.trials(["stages_computed", "stages_reused"])
    counts = {
        how: Counter(
            name.split("/")[0]
            for names in trials[f"stages_{how}"]
            if names is not None
            for name in names
        )
        for how in ("computed", "reused")
    }
    kinds = sorted({*counts["computed"], *counts["reused"]})
    return [
        {"stage": kind, "made": counts["computed"][kind], "found": counts["reused"][kind]}
        for kind in kinds
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """A stage, who used it and who needs it."""

    stored: StoredStage
    last_use: datetime
    """When the newest trial that read it ended, or it was written."""
    used_by: tuple[str, ...] = ()
    """Sweeps of whose trials one names it."""
    needed_by: tuple[str, ...] = ()
    """Sweeps that are not finished and may read it yet."""

    def row(self) -> dict[str, Any]:
        """Returns it as a row of `ressa stages ls`."""
        return {
            "stage": self.stored.stage,
            "key": self.stored.key,
            "mib": self.stored.size / 2**20,
            "last_use": self.last_use,
            "used_by": " ".join(self.used_by) or None,
            "needed_by": " ".join(self.needed_by) or None,
            "whole": self.stored.is_whole,
        }


@dataclass
class Needs:
    """What the sweeps of a store that are not finished need."""

    names: dict[str, set[str]] = field(default_factory=dict)
    """Stage, as "stage/key" → sweeps."""
    of_trials: dict[str, set[str]] = field(default_factory=dict)
    """Key of a trial that is not finished → sweeps."""
    unclear: dict[str, str] = field(default_factory=dict)
    """Sweeps whose needs cannot be worked out → why; everything is kept for them."""

    def of(self, stage: StoredStage) -> tuple[str, ...]:
        """Returns the sweeps that need a stage."""
        own = self.of_trials.get(stage.key.split("-")[0], set())
        own = own if stage.stage in OF_ONE_TRIAL else set()
        return tuple(sorted({*self.names.get(stage.name, ()), *own, *self.unclear}))


def needs_of(store: Store) -> Needs:
    """Works out what must stay in a store."""
    needs = Needs()
    for name in store.sweeps():
        sweep = store.sweep(name)
        if sweep.status().state == "finished":
            continue
        finished = set(sweep.trials(["key"])["key"])
        try:
            plan = make_plan(current_spec(sweep))
            for trial in known_trials(sweep, plan):
                if trial.key not in finished:
                    needs.of_trials.setdefault(trial.key, set()).add(name)
                    for step in trial.rungs:
                        needs.names.setdefault(f"rung/{trial.rung_key(step)}", set()).add(name)
                # Also of those that are finished: trials that are proposed yet may share them.
                for stage, key in stages_of(trial, versions_of(trial), plan.inventory):
                    if stage not in OF_ONE_TRIAL:
                        needs.names.setdefault(f"{stage}/{key}", set()).add(name)
        except RessaError as error:  # its model or method is not here any more
            needs.unclear[name] = str(error)
    return needs


def known_trials(sweep: SweepStore, plan: SweepPlan) -> Iterable[TrialSpec]:
    """Lists a sweep's baselines, what it proposed, and what it may propose yet, each once."""
    found = {trial.key: trial for trial in map(plan.baseline, plan.baselines)}
    proposals = sweep.proposals()
    for text in proposals.loc[proposals["number"].notna(), "point"]:
        with contextlib.suppress(InfeasibleAllocation):  # by other rules
            trial = plan.trial(json.loads(text))
            found[trial.key] = trial
    if plan.spec.search.is_fixed:
        found |= _in_turn(plan)
    elif count_points(plan.spec) <= _MOST_LISTED:
        points = grid_points(plan.spec, plan.inventory)[0]
        found |= {trial.key: trial for trial in map(plan.trial, points)}
    return found.values()


def _in_turn(plan: SweepPlan) -> dict[str, TrialSpec]:
    """The trials of a sampler that looks at no result, as many as are asked for."""
    proposer, found = Proposer(plan.spec, plan.key_of), dict[str, TrialSpec]()
    baselines = {plan.baseline(name).key for name in plan.baselines}
    for number in itertools.count():
        proposal = proposer.propose(number, ())
        if proposal is None or len(found.keys() - baselines) == plan.spec.search.trials:
            break
        trial = plan.trial(proposal.point)
        found[trial.key] = trial
    return found


def uses_of(store: Store, needs: Needs) -> list[Use]:
    """Lists the stages of a store with who used and who needs each."""
    used: dict[str, set[str]] = {}
    of_trial: dict[str, set[str]] = {}
    last: dict[str, datetime] = {}
    for name in store.sweeps():
        trials = store.sweep(name).trials(["key", "finished", "stages_computed", "stages_reused"])
        for key in trials["key"]:
            of_trial.setdefault(key, set()).add(name)
        columns = [trials[f"stages_{how}"] for how in ("computed", "reused")]
        for finished, *lists in zip(trials["finished"], *columns, strict=True):
            for stage in (stage for names in lists if names is not None for stage in names):
                used.setdefault(stage, set()).add(name)
                last[stage] = max(finished.to_pydatetime(), last.get(stage, _LONG_AGO))
    return [
        Use(
            stored=stored,
            last_use=max(stored.written, last.get(stored.name, _LONG_AGO)),
            used_by=tuple(sorted(used.get(stored.name, set()) | _own(stored, of_trial))),
            needed_by=needs.of(stored),
        )
        for stored in store.stages.inventory()
    ]


def _own(stage: StoredStage, of_trial: Mapping[str, set[str]]) -> set[str]:
    """Sweeps with the trial that a stage belongs to, of one that no two trials share."""
    trial = stage.key.split("-")[0]
    return of_trial.get(trial, set()) if stage.stage in OF_ONE_TRIAL else set()


def kinds_of(uses: Iterable[Use], *, edge: datetime) -> list[dict[str, Any]]:
    """Returns stages as a row for each kind: how many, how large, who holds them, which may go.

    Args:
        uses: the stages.
        edge: those that nobody needs and that were last used before it are free.
    """
    found: dict[str, list[Use]] = {}
    for use in uses:
        found.setdefault(use.stored.stage, []).append(use)
    return [
        {
            "stage": kind,
            "count": len(own),
            "mib": sum(use.stored.size for use in own) / 2**20,
            "last_use": max(use.last_use for use in own),
            "needed": sum(bool(use.needed_by) for use in own),
            "recent": sum(not use.needed_by and use.last_use > edge for use in own),
            "free": sum(not use.needed_by and use.last_use <= edge for use in own),
            "needed_by": " ".join(sorted({name for use in own for name in use.needed_by})) or None,
        }
        for kind, own in sorted(found.items())
    ]


@dataclass(frozen=True, slots=True)
class Collected:
    """What `collect` did with the stages of a store."""

    removed: list[Use]
    """What was, or would be, removed."""
    kept: list[Use]
    unclear: Mapping[str, str]
    """Why the needs of some sweeps cannot be worked out, by the sweep; all is kept for them."""


def collect(store: Store, *, older_than: timedelta, dry_run: bool = False) -> Collected:
    """Removes the stages that no unfinished sweep needs and nobody used for a while.

    Safe beside running drivers. A trial is proposed in the store before it looks for a stage. So a
    stage is hidden first; then the sweeps are looked at again; and only if still none needs it are
    its files removed. A driver that came meanwhile is seen by then, or finds no stage and makes it.

    Args:
        older_than: how long ago the last use, or the writing of one that was left half done, must
            be.
        dry_run: removes nothing.
    """
    edge = datetime.now(UTC) - older_than
    needs = needs_of(store)
    found = uses_of(store, needs)
    chosen = [use for use in found if not use.needed_by and use.last_use <= edge]
    kept = [use for use in found if use.needed_by or use.last_use > edge]
    if dry_run or not chosen:
        return Collected(chosen, kept, needs.unclear)
    hidden = {
        use.stored.name: store.stages.hide(use.stored.stage, use.stored.key) for use in chosen
    }
    needs = needs_of(store)
    removed = []
    for use in chosen:
        stage, key, manifest = use.stored.stage, use.stored.key, hidden[use.stored.name]
        needed_by = needs.of(use.stored)
        if not needed_by:
            store.stages.remove(stage, key)
            removed.append(use)
            continue
        kept.append(replace(use, needed_by=needed_by))
        if manifest is not None:
            store.stages.show(stage, key, manifest)
    return Collected(removed, kept, needs.unclear)
