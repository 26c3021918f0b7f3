"""How far a sweep is, derived from its rows and its lease: nothing else is asked."""

import json
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, get_args

from ressa.store.lease import Holder, holder
from ressa.store.schema import EVENTS_ORDER
from ressa.store.store import SweepStore

if TYPE_CHECKING:
    import pyarrow

Ended = Literal["finished", "interrupted", "stopped", "cancelled", "hopeless"]
"""How a driver ended, as its last event says; `hopeless`: too many trials failed."""

_NOT_RUN = ("queued", "running", "reused")
_ENDS = get_args(Ended)
_LIFE = ("started", "resumed", "grown", *_ENDS)
_ATTEMPT = ["trial", "attempt"]
_READ = [*_ATTEMPT, "role", "state", "metric", "committed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepStatus:
    """What `ressa ls` and `ressa status` say of one sweep."""

    name: str
    state: Literal["new", "running", "unknown"] | Ended
    """`unknown`: its driver is on another machine, or stands still, and was not watched."""
    planned: int | None
    """Trials that the newest driver announced, baselines included: `planned` of its event."""
    counts: dict[str, int] = field(default_factory=dict)
    """Trials per state; `queued` and `running` are among them."""
    queued: tuple[str, ...] = ()
    running: tuple[str, ...] = ()
    waiting: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Of those that run, which have no place on the nodes yet: what they need, what nodes have."""
    metric: str | None = None
    """The objective; of several, the first."""
    holder: Holder | None = None
    why: str | None = None
    """Why it is finished before all planned trials ran, if it is."""
    started: datetime | None = None
    updated: datetime | None = None

    @property
    def done(self) -> int:
        """Trials that ran to an end, whichever: what is reused did not run."""
        return sum(n for state, n in self.counts.items() if state not in _NOT_RUN)


def sweep_status(sweep: SweepStore) -> SweepStatus:
    """Returns how far a sweep is. A trial runs if the living driver's events say it began."""
    import pyarrow as pa
    import pyarrow.compute as pc

    # First: of a driver that has ended now, its last words are there when they are read.
    current = holder(sweep)
    events = sweep.read("events", columns=[*_ATTEMPT, "epoch", "kind", "detail", "committed"])
    attempts = sweep.read("trials", columns=_READ, all_attempts=True)
    trials = attempts
    if pc.count_distinct(attempts["trial"]).as_py() < len(attempts):
        trials = sweep.read("trials", columns=_READ)
    proposed = sweep.read("proposals", columns=_ATTEMPT, in_order=False)
    driven = current is not None and current.state in ("live", "unknown")

    begun = pc.field("kind") == "trial_started"
    begun &= pc.field("epoch") == (current.epoch if current else -1)
    running = _without(events.filter(begun), attempts) if driven else set()
    queued = _without(proposed, attempts) - running

    unfinished = pa.array([*running, *queued], pa.string())
    over = trials.filter(~pc.field("trial").isin(unfinished))
    counts = Counter(over["state"].to_pylist())
    counts |= {"queued": len(queued), "running": len(running)}
    life = events.filter(pc.field("kind").isin(_LIFE)).sort_by(EVENTS_ORDER).to_pylist()
    times = [pc.max(table["committed"]).as_py() for table in (events, trials)]
    return SweepStatus(
        name=sweep.name,
        state=_state(life, current),
        planned=_planned(life),
        counts={state: n for state, n in counts.items() if n},
        queued=tuple(sorted(queued)),
        running=tuple(sorted(running)),
        waiting=_waiting(events, running, current.epoch if current else -1),
        metric=next(iter(trials["metric"].drop_null().to_pylist()), None),
        holder=current,
        why=_why(life),
        started=life[0]["committed"] if life else None,
        updated=max((time for time in times if time), default=None),
    )


def _waiting(events: "pyarrow.Table", running: set[str], epoch: int) -> dict[str, dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.compute as pc

    about = pc.field("kind").isin(["trial_started", "trial_waits", "trial_placed"])
    about &= (pc.field("epoch") == epoch) & pc.field("trial").isin(
        pa.array([*running], pa.string())
    )
    last: dict[str, dict[str, Any]] = {}
    for event in events.filter(about).sort_by(EVENTS_ORDER).to_pylist():
        last[event["trial"]] = event
    return {
        trial: json.loads(event["detail"])
        for trial, event in sorted(last.items())
        if event["kind"] == "trial_waits"
    }


def _without(table: "pyarrow.Table", attempts: "pyarrow.Table") -> set[str]:
    """Returns the trials whose newest attempt is not among the others."""
    wanted, others = table.select(_ATTEMPT), attempts.select(_ATTEMPT)
    # Of one that was tried again after its driver had died, only the newest attempt will end.
    newest = wanted.group_by("trial").aggregate([("attempt", "max")]).rename_columns(_ATTEMPT)
    left = newest.join(others, keys=_ATTEMPT, join_type="left anti")
    return set(left["trial"].to_pylist())


def _state(
    life: list[dict[str, Any]], current: Holder | None
) -> Literal["new", "running", "unknown"] | Ended:
    if current is not None and current.state == "live":
        return "running"
    ended: Ended | None = life[-1]["kind"] if life and life[-1]["kind"] in _ENDS else None
    if ended == "finished":
        return ended
    if current is not None and current.state == "unknown":
        return "unknown"
    return ended or ("interrupted" if life or current is not None else "new")


def _why(life: list[dict[str, Any]]) -> str | None:
    """What the last event says of its end."""
    detail = json.loads(life[-1]["detail"] or "{}") if life else {}
    decided = detail.get("decided")
    if decided is None:
        return None
    lines = ", ".join(f"{line} ({share:.0%})" for line, share in decided["sure"].items())
    return f"search.stop_when: its lines are decided by the first {decided['results']}: {lines}"


def _planned(life: list[dict[str, Any]]) -> int | None:
    for event in reversed(life):
        detail = json.loads(event["detail"] or "{}")
        if "planned" in detail:
            return int(detail["planned"])
    return None
