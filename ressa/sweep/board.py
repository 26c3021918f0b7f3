"""What people see while a sweep runs: a live board on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import pandas
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ressa.landscape.allocations import RACING, bests
from ressa.landscape.render import percent
from ressa.records import Progress
from ressa.sparsity import TOWERS, Target
from ressa.spec import SweepSpec
from ressa.sweep.ledger import Again, Attempt

_REFRESHES_PER_SECOND = 2
_LISTED = 20


class Board:
    """Follows one sweep; a `with` block around the run shows it, on stderr.

    Args:
        spec: the sweep.
        console: where to write; words go to stderr, data never come from here.
        started: is called when the driver goes about what is left to do.
    """

    has_started = False

    def __init__(
        self, spec: SweepSpec, console: Console, started: Callable[[], None] = lambda: None
    ) -> None:
        self._spec, self._console, self._on_start = spec, console, started
        self._planned = 0
        self._best = ""
        self._finished: dict[str, Mapping[str, Any]] = {}
        self._running: dict[str, tuple[Attempt, Progress, float]] = {}
        self._seconds: list[float] = []
        self._live = (
            Live(
                console=console,
                get_renderable=self._render,
                refresh_per_second=_REFRESHES_PER_SECOND,
                transient=True,
            )
            if console.is_terminal
            else None
        )

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.stop()

    def planned(
        self,
        trials: int,
        finished: Mapping[str, Mapping[str, Any]],
        first: Sequence[Again],
    ) -> None:
        """Is told how many trials there are to be, which are there, and which run again first."""
        ran = {trial: row for trial, row in finished.items() if row["state"] != "reused"}
        self._planned, self._finished = trials, ran
        self._note_best()
        already = f", {len(ran)} finished before" if ran else ""
        noun = "trial" if trials == 1 else "trials"
        self._say(f"[bold]{self._spec.name}[/bold]  {trials} {noun}{already}")
        again = [one for one in first if one.reason]  # baselines that never ran are no news
        for one in again[:_LISTED]:
            self._say(f"{one.trial:14}  {escape(str(one.reason))}")
        if len(again) > _LISTED:
            self._say(f"… and {len(again) - _LISTED} more to run before anything new")

    def started(self) -> None:
        """Is told that something is left to do, and that the driver goes about it."""
        self.has_started = True
        self._on_start()

    def began(self, attempt: Attempt) -> None:
        """Is told that an attempt started."""
        self._finished.pop(attempt.trial, None)  # of a trial that failed and is tried again
        self._running[attempt.trial] = (attempt, Progress(stage="start"), time.monotonic())
        if attempt.reason:
            words = f"begins attempt {attempt.attempt + 1} ({escape(attempt.reason)})"
            self._say(f"{attempt.trial:14}  {words}")

    def moved(self, attempt: Attempt, progress: Progress) -> None:
        """Is told where a trial is."""
        _, _, since = self._running[attempt.trial]
        self._running[attempt.trial] = (attempt, progress, since)

    def ended(self, attempt: Attempt, row: Mapping[str, Any]) -> None:
        """Is told how an attempt ended."""
        _, _, since = self._running.pop(attempt.trial)
        self._finished[attempt.trial] = row
        self._note_best()
        seconds = time.monotonic() - since
        if (attempt.spec.repair is None) == (self._spec.repair.method == "none"):
            self._seconds.append(seconds)  # the dense baseline is no measure for the others
        self._say(f"{_targets(attempt)}  {_result(row)}  {seconds:5.1f} s")

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True)

    def _render(self) -> RenderableType:
        done = len(self._finished)
        head = Table.grid(padding=(0, 1))
        head.add_row(
            ProgressBar(total=max(self._planned, 1), completed=done, width=24),
            f"{done}/{self._planned} trials",
            f"{len(self._running)} running",
            self._best,
            self._time_left(),
        )
        trials = Table.grid(padding=(0, 2))
        for attempt, progress, since in self._now():
            step = f"{progress.step}/{progress.steps}" if progress.steps else ""
            seconds = f"{time.monotonic() - since:.0f} s"
            trials.add_row("", _targets(attempt), progress.stage, step, Text(seconds, style="dim"))
        return Group(head, trials)

    def _now(self) -> list[tuple[Attempt, Progress, float]]:
        """What runs: a copy, since the thread that draws the bar would trip over a change."""
        return list(self._running.values())

    def _note_best(self) -> None:
        """Works out what the bar says of the best: of several lines or objectives nothing."""
        if self._live is None:
            return
        rows = [{"trial": trial, **row} for trial, row in self._finished.items()]
        only = bests(pandas.DataFrame(rows, columns=RACING)).only
        self._best = f"best {_percent(only.score)} ({only.trial})" if only else ""

    def _time_left(self) -> str:
        if not self._seconds or not self._planned:
            return ""
        left = self._planned - len(self._finished)
        mean = sum(self._seconds) / len(self._seconds)
        now = time.monotonic()
        spent = sum(min(mean, now - since) for _, _, since in self._now())
        seconds = (mean * left - spent) / min(self._spec.search.parallel, max(left, 1))
        return f"about {seconds // 60:.0f} min {seconds % 60:02.0f} s left" if left else ""


def _targets(attempt: Attempt) -> str:
    vision, language = (_shown(attempt.spec.tower(tower).target) for tower in TOWERS)
    if attempt.spec.vision.is_shared:
        return f"{attempt.trial:14}  vision and language {vision:6}"
    return f"{attempt.trial:14}  vision {vision:6}  language {language:6}"


def _shown(target: Target) -> str:
    """A pattern as it is, a fraction with as many digits as are worth reading."""
    return str(target) if target.pattern else f"{float(target.sparsity):.4g}"


def _result(row: Mapping[str, Any]) -> str:
    if row["state"] == "stopped":
        return f"stopped at step {row['stopped_step']}, pruned {_percent(row['score_pruned'])}"
    if row["state"] == "cancelled":
        return "[yellow]cancelled[/yellow]"
    if row["state"] != "succeeded":
        return f"[red]{row['state']}[/red] at {row['failure_stage']}: {escape(str(row['error']))}"
    if row.get("score_repaired") is None:
        return f"score {_percent(row['score'])}"
    return f"pruned {_percent(row['score_pruned'])} → repaired {_percent(row['score_repaired'])}"


def _percent(score: float) -> str:
    return f"{percent(score)} %"
