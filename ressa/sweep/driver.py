"""Drives one sweep to its end: the store, the lease, Ray, and what is said when it stops early."""

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ressa.errors import ConflictError, NotFoundError, SpecError, TooManyFailures
from ressa.spec import StopWhen, SweepSpec, load_spec
from ressa.store import Ended, Lease, Store, SweepStore, acquire, holder, open_store
from ressa.sweep import joined_ray, local_ray
from ressa.sweep.location import at_its_place
from ressa.sweep.places import Place, check_fits
from ressa.sweep.plan import SweepPlan, commits_of, make_plan

if TYPE_CHECKING:
    import pandas

    from ressa.sweep.ledger import Ledger, Redo

_LONGEST_WRITE_SECONDS = 3600.0
_NAMED = 5  # differences between two specs
_LONGEST_VALUE = 60  # characters of one

GROWING = (
    "search.trials",
    "search.parallel",
    "search.stop_when",
    "resources.workers",
    "resources.cpus_per_worker",
    "resources.gpus_per_worker",
    "resources.memory_gib",
    "resources.accelerator",
    "resources.placement",
    "resources.deterministic",
    "retry.attempts",
    "retry.on",
    "limits.failed_trials",
    "limits.trial_hours",
    "verdict.margin",
    "verdict.confidence",
)
"""Fields in which a stored sweep may differ from the file that asks for more of it."""


class Interrupted(KeyboardInterrupt):
    """The user ended the sweep, which can go on later: Ctrl-C, SIGTERM, or asked from elsewhere."""


def run(
    spec: SweepSpec | str | os.PathLike[str], *, sets: Sequence[str] = ()
) -> "pandas.DataFrame":
    """Runs a sweep to its end, with progress on stderr, and returns its trials.

    Args:
        spec: a resolved spec, or the path of a sweep file.
        sets: changes to a sweep file's fields, such as "repair.steps=50".

    Returns:
        One row a trial, baselines first; columns are those of the store's `trials` table.

    Raises:
        SpecError: the file has faults. Otherwise as `start`.
    """
    from ressa.console import SafeConsole
    from ressa.sweep.board import Board

    resolved = (
        spec if isinstance(spec, SweepSpec) else at_its_place(load_spec(Path(spec), sets).spec)
    )
    with Board(resolved, SafeConsole(stderr=True)) as board:
        return start(resolved, board).trials()


def start(
    spec: SweepSpec, watcher: Any, *, fresh: bool = False, address: str | None = None
) -> SweepStore:
    """Runs a sweep, or goes on with the stored one of the same name and spec.

    Args:
        spec: the resolved sweep.
        watcher: is told how it goes.
        fresh: lets each trial make all of its stages itself, and takes none from the store. It
            changes how long a sweep takes, never what it finds.
        address: host and port of a Ray to join; None starts one of our own on this machine.

    Raises:
        ConflictError: the name is taken by another spec, or a live driver works on the sweep.
        SpecError: a trial can never be placed, or the data are not what the spec says.
        StoreError: the store cannot be written to.
        ClusterError: Ray did not start, or cannot be joined, or this process uses one already.
        TooManyFailures: `limits.failed_trials` trials have failed.
        Interrupted: the user stopped it.
    """
    _check_here(spec, address)
    plan = make_plan(spec)
    grown = _pin(spec, plan)
    there = _stored(spec)
    if there is not None:
        known = continued(there, spec)
        if commits_of(known) == commits_of(plan.spec):
            plan = SweepPlan(known, plan.inventory, plan.fingerprint)
        else:
            plan = make_plan(known)  # of the commits that it began with, not today's
        grown = growth(there.spec(), plan.spec) | _pin(known, plan)
        if _is_over(there, plan, watcher):
            return there
    plan.check_model()
    _ = plan.data  # reads the data sets: faults show before anything is written
    store = open_store(spec.store, create=True)
    # Where it lies is not part of it: a store may be moved.
    text = spec.model_copy(update={"store": "."}).to_yaml()
    sweep = store.create_sweep(spec.name, text) if there is None else there
    _drive(plan, sweep, watcher, grown=grown, address=address, fresh=fresh)
    return sweep


def _stored(spec: SweepSpec) -> SweepStore | None:
    """The stored sweep of that name, if there is one."""
    try:
        store = open_store(spec.store)
    except NotFoundError:
        return None
    return store.sweep(spec.name) if store.has_sweep(spec.name) else None


def resume(
    store: Store,
    name: str,
    watcher: Any,
    *,
    redo: "Redo | None" = None,
    address: str | None = None,
) -> SweepStore:
    """Goes on with a stored sweep; finished trials are not run again.

    Args:
        redo: trials that failed or were lost to be tried again as well.
        address: of a Ray to join, as for `start`.

    Raises:
        NotFoundError: there is no such sweep or trial. Otherwise as `start`.
    """
    sweep = store.sweep(name)
    spec = current_spec(sweep)
    _check_here(spec, address)
    plan = make_plan(spec)
    if _is_over(sweep, plan, watcher, redo):
        return sweep
    plan.check_model()
    _drive(plan, sweep, watcher, grown=_pin(spec, plan), address=address, redo=redo)
    return sweep


def _pin(spec: SweepSpec, plan: SweepPlan) -> dict[str, Any]:
    """The commits of hub models that were asked for by none, kept for when it goes on."""
    return dict(commits_of(plan.spec).items() - commits_of(spec).items())


def foretell(store: Store, name: str, watcher: Any, *, redo: "Redo | None") -> None:
    """Tells the watcher what `resume` would do, and does nothing."""
    from ressa.sweep.ledger import Ledger

    sweep = store.sweep(name)
    _tell(Ledger(sweep, make_plan(current_spec(sweep)), epoch=0, redo=redo), watcher)


def _is_over(sweep: SweepStore, plan: SweepPlan, watcher: Any, redo: "Redo | None" = None) -> bool:
    """Whether a sweep has finished and nothing is left to do; tells the watcher if so.

    Looks at rows alone: no lease is taken, no data set is read, nothing is written.
    """
    if sweep.status().state != "finished":
        return False
    from ressa.sweep.ledger import Ledger

    ledger = Ledger(sweep, plan, epoch=0, redo=redo)
    if ledger.is_complete:
        _tell(ledger, watcher)
    return ledger.is_complete


def _tell(ledger: "Ledger", watcher: Any) -> None:
    watcher.planned(ledger.planned, dict(ledger.results), tuple(ledger.left_over))


@local_ray.environment_kept()
def _drive(
    plan: SweepPlan,
    sweep: SweepStore,
    watcher: Any,
    *,
    grown: dict[str, Any],
    address: str | None,
    redo: "Redo | None" = None,
    fresh: bool = False,
) -> None:
    data = plan.data
    _check_contents(sweep, plan)
    (local_ray if address is None else joined_ray).prepare()
    from ressa.sweep.ledger import Ledger
    from ressa.sweep.tuner import Cancelled, run_trials

    lease = acquire(sweep)
    try:
        _tidy(sweep)
        ledger = Ledger(sweep, plan, epoch=lease.epoch, redo=redo)
        _tell(ledger, watcher)
        if ledger.is_complete:
            if sweep.status().state != "finished":  # a driver died before it could say so
                _end("finished", sweep, ledger, lease)
            return
        if ledger.is_hopeless:
            raise _too_many_failures(ledger, sweep, plan.spec)
        before = "resumed" if len(sweep.events()) else "started"
        told = {"planned": ledger.planned, "contents": plan.contents}
        sweep.event(before, told, epoch=lease.epoch)
        if grown:
            sweep.event("grown", grown, epoch=lease.epoch)
        sweep.commit("data", data, epoch=lease.epoch)
        watcher.started()
        ended: Ended = "interrupted"
        with (
            _stopped_by_signals() as listen,
            _ray(address, threads=plan.spec.resources.cpus_per_worker) as session,
        ):
            try:
                listen()
                if not joined_ray.grows():
                    check_fits(plan.spec.resources, joined_ray.places())
                run_trials(plan, sweep.store, ledger, lease, watcher, session, fresh=fresh)
                ended = _ending(ledger, lease)
            except Cancelled:
                ended = "cancelled"
            finally:  # before Ray is shut down, which takes seconds
                _end(ended, sweep, ledger, lease)
        if ended == "cancelled":
            raise Interrupted("cancelled, as `ressa cancel` asked")
        if ended == "stopped":
            raise Interrupted("stopped, as `ressa stop` asked")
        if ended == "hopeless":
            raise _too_many_failures(ledger, sweep, plan.spec)
    finally:
        lease.release()


def _check_contents(sweep: SweepStore, plan: SweepPlan) -> None:
    """Refuses to mix trials of two models or data sets of one name.

    Raises:
        ConflictError: files have changed since the sweep's first driver began.
    """
    events = sweep.events()
    for detail in events.loc[events["kind"] == "started", "detail"]:
        then = json.loads(detail).get("contents", {})
        changed = [name for name in then if plan.contents.get(name, then[name]) != then[name]]
        if changed:
            raise ConflictError(
                f"the files of {', '.join(changed)} have changed since sweep {sweep.name!r} began, "
                "and its table would mix results of both. Put the old files back, or give this one "
                f"another name: ressa run FILE --set name={sweep.name}-2"
            )


def _end(ended: Ended, sweep: SweepStore, ledger: "Ledger", lease: Lease) -> None:
    """Stores how a driver ended, unless another one has taken the sweep over."""
    if lease.lost:
        return
    decision = ledger.decision if ended == "finished" else None
    sweep.event(ended, decision.to_row() if decision else None, epoch=lease.epoch)


def _tidy(sweep: SweepStore) -> None:
    """Removes what killed writers left of stages; newly written, if nobody else can be at it."""
    store = sweep.store
    if store.folder is None:
        return  # a bucket has no such leftovers, and to look at every sweep there takes long
    others = (holder(store.sweep(name)) for name in store.sweeps() if name != sweep.name)
    busy = any(one is not None and one.state in ("live", "unknown") for one in others)
    store.objects.remove_unfinished("stages", older_than_seconds=_LONGEST_WRITE_SECONDS * busy)


def _ending(ledger: "Ledger", lease: Lease) -> Ended:
    """Why no more trials were started."""
    if ledger.is_complete:
        return "finished"
    if ledger.is_hopeless:
        return "hopeless"
    return "stopped" if lease.asked else "finished"  # an exhausted space has fewer than planned


def _too_many_failures(ledger: "Ledger", sweep: SweepStore, spec: SweepSpec) -> TooManyFailures:
    """What a hopeless sweep ends with: how it stands, what the last failure was, what to do."""
    last = ledger.results[ledger.failed[-1]]
    return TooManyFailures(
        f"{len(ledger.failed)} trials have failed, and limits.failed_trials is "
        f"{spec.limits.failed_trials}: the sweep ends with {len(ledger.results)} of "
        f"{ledger.planned} trials. {ledger.failed[-1]} {last['state']} at {last['failure_stage']} "
        f"({last['failure_class']}): {last['error']}\n`ressa status {sweep.name}` lists them; when "
        f"the cause is gone, `ressa resume {sweep.name} --failed` redoes them, and a larger limit "
        "in the sweep file lets `ressa run` go on."
    )


def current_spec(sweep: SweepStore) -> SweepSpec:
    """Returns a sweep's spec with what it has grown by since."""
    return specs_of(sweep)[-1]


def specs_of(sweep: SweepStore) -> list[SweepSpec]:
    """Returns the spec that a sweep began with, and what it had become each time that it grew."""
    specs = [sweep.spec()]
    events = sweep.events()
    for detail in events.loc[events["kind"] == "grown", "detail"]:
        specs.append(_grow(specs[-1], json.loads(detail)))
    return specs


def continued(sweep: SweepStore, asked: SweepSpec) -> SweepSpec:
    """Returns the spec to go on with when a file names a stored sweep.

    Raises:
        ConflictError: the file asks for something else than the stored sweep.
        SpecError: it asks for more parallel trials than the stored window allows.
    """
    stored = current_spec(sweep)
    if sweep.spec().identity != asked.identity:
        raise ConflictError(
            f"sweep {sweep.name!r} in {sweep.store.location} was made from another spec; "
            f"{_differences(stored, asked)}. Give this one another name, such as --set "
            f"name={sweep.name}-2, or go on with the stored one: ressa resume {sweep.name} "
            f"--store {sweep.store.location}"
        )
    window = stored.search.window
    if asked.search.window not in (window, 2 * asked.search.parallel):
        raise SpecError(
            f"search.window: the sweep began with {window}, got {asked.search.window}; which "
            "results a proposal sees never changes. Leave the window out, or give a new name."
        )
    if asked.search.parallel > window and not stored.search.asynchronous:
        raise SpecError(
            f"search.parallel: at most {window}, got {asked.search.parallel}: the "
            "sweep began with that window, and which results a proposal sees never changes."
        )
    return _grow(stored, growing(asked))


def growing(spec: SweepSpec) -> dict[str, Any]:
    """Returns the values of the fields in which a stored sweep may grow."""
    return {field: _value(spec, field) for field in GROWING}


def growth(stored: SweepSpec, grown: SweepSpec) -> dict[str, Any]:
    """Returns the growing fields in which two specs differ, with their new values."""
    return {
        field: _value(grown, field)
        for field in GROWING
        if _value(grown, field) != _value(stored, field)
    }


def _value(spec: SweepSpec, field: str) -> Any:
    section, name = field.split(".")
    value = getattr(getattr(spec, section), name)
    return value.model_dump() if isinstance(value, StopWhen) else value


def _grow(spec: SweepSpec, detail: dict[str, Any]) -> SweepSpec:
    content = spec.model_dump()
    for field, value in detail.items():
        section, _, rest = field.partition(".")
        *data, name = rest.rsplit(".", 1)  # of a data set, whose own name may have dots
        (content[section][data[0]] if data else content[section])[name] = value
    return SweepSpec.model_validate(content)


def _differences(stored: SweepSpec, asked: SweepSpec) -> str:
    one, other = (dict(_leaves(spec.model_dump(mode="json"))) for spec in (stored, asked))
    fields = [field for field in one | other if one.get(field) != other.get(field)]
    said = [
        f"{field} ({_brief(one.get(field))} there, {_brief(other.get(field))} here)"
        for field in fields
        if field not in ("store", "question", *GROWING)
    ]
    more = f" and {len(said) - _NAMED} more" if len(said) > _NAMED else ""
    return f"they differ in {', '.join(said[:_NAMED])}{more}"


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"


def _leaves(content: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every field of nested values with its dotted path; a list is one value."""
    if not isinstance(content, dict) or not content:
        yield path, content
        return
    for name, value in content.items():
        yield from _leaves(value, f"{path}.{name}" if path else name)


def available_cpus() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_here(spec: SweepSpec, address: str | None) -> None:
    """Refuses what can be seen not to work before anything is read.

    That is a trial that wants more cores than this machine has, or a Ray that does not answer or
    is in the way.
    """
    local_ray.check_unused()
    if address is not None:
        joined_ray.check_reachable(address)
    else:
        resources = spec.resources.model_copy(
            update={"gpus_per_worker": 0.0, "accelerator": None, "memory_gib": 0.0}
        )
        here = Place(name="this machine", has={"CPU": float(available_cpus())})
        check_fits(resources, [here])


def _ray(
    address: str | None, *, threads: int
) -> contextlib.AbstractContextManager[local_ray.Session]:
    if address is None:
        return local_ray.local_ray(cpus=available_cpus(), threads=threads)
    return joined_ray.joined_ray(address, threads=threads)


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[Callable[[], None]]:
    """Makes SIGINT and SIGTERM end a sweep the same way: cleanly, once.

    Yields what sets the handlers; it is called again once Ray is up, because Ray sets its own.
    """
    numbers = (signal.SIGINT, signal.SIGTERM)

    def stop(number: int, frame: Any) -> None:
        # A second signal while Ray shuts down must not leave its processes behind.
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        raise Interrupted

    def listen() -> None:
        if threading.current_thread() is threading.main_thread():
            for number in numbers:
                signal.signal(number, stop)

    before = {number: signal.getsignal(number) for number in numbers}
    listen()
    try:
        # What Ray says belongs to words, not to data.
        with contextlib.redirect_stdout(sys.stderr):
            yield listen
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)
