"""The board is drawn by a thread of its own while trials begin and end."""

import io
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from ressa.records import Progress
from ressa.sparsity import Target
from ressa.spec import spec_from_mapping
from ressa.sweep.board import Board

TOWER = SimpleNamespace(target=Target.parse("0.5"), is_shared=False)


def test_a_trial_may_end_while_the_board_is_drawn() -> None:
    content = {"ressa": 1, "model": "pocket-blip2", "budget": [0.5]}
    content["space"] = {"vision_sparsity": {"choices": ["0.3"]}}
    screen = Console(file=io.StringIO(), force_terminal=True)
    board = Board(spec_from_mapping(content).spec, screen)

    class Attempt:
        """When it is drawn the other one ends."""

        reason, spec = None, SimpleNamespace(tower=lambda name: TOWER, vision=TOWER, repair=None)

        def __init__(self, trial: str) -> None:
            self._trial, self.ends = trial, False

        @property
        def trial(self) -> str:
            if self.ends:
                board.ended(second, {"state": "cancelled"})
                self.ends = False
            return self._trial

    first: Any = Attempt("t000")
    second: Any = Attempt("t001")
    for attempt in (first, second):
        board.began(attempt)
        board.moved(attempt, Progress(stage="prune"))
    first.ends = True
    screen.print(board._render())
    screen.print(board._render())
    assert "t001" in screen.file.getvalue()
    assert "1 running" in screen.file.getvalue()
