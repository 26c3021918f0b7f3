"""Stops or cancels a sweep from another shell or machine: all that is needed is its store."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ressa.store import Holder, SweepStore, Wish, ask, holder
from ressa.store.lease import PATIENCE_SECONDS, Pulse

_GLANCE_SECONDS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What became of a wish."""

    kind: Literal["idle", "heard", "ended", "silent"]
    """No driver works on the sweep; it has seen the wish; it has ended; it shows no life."""
    driver: Holder | None
    """The driver that was asked, or the last one."""


def steer(
    sweep: SweepStore,
    wish: Wish,
    *,
    wait: bool,
    asked: Callable[[Holder], None],
    patience_seconds: float = PATIENCE_SECONDS,
) -> Answer:
    """Asks the sweep's driver to stop or cancel, and waits until it has seen that.

    Args:
        sweep: which one.
        wish: "stop" lets running trials finish, "cancel" ends them.
        wait: also for the driver's end, as long as it lives.
        asked: is told once whom the wish went to.
        patience_seconds: after which a driver that says nothing counts as silent.
    """
    driver = holder(sweep)
    if driver is None or driver.state in ("dead", "released"):
        return Answer(kind="idle", driver=driver)
    ask(sweep, wish, driver.epoch)
    asked(driver)
    deadline, pulse = time.monotonic() + patience_seconds, Pulse(patience_seconds)
    while True:
        now = holder(sweep)
        assert now is not None
        if now.epoch != driver.epoch or now.state in ("dead", "released"):
            return Answer(kind="ended", driver=now)
        if now.heard in (wish, "cancel"):
            if not wait:
                return Answer(kind="heard", driver=now)
            if pulse.is_silent(now):
                return Answer(kind="silent", driver=now)
        elif time.monotonic() > deadline:
            return Answer(kind="silent", driver=now)
        time.sleep(_GLANCE_SECONDS)
