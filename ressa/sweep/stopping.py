"""Early stopping: successive halving over repair steps, as a function of the store.

Trial n ends at a rung when it is below the best 1/η of what the trials 0 … n−W of its budget had
there. Those have ended when trial n is proposed, so neither the order of finishing nor a kill can
change who stops.
"""

from collections.abc import Callable
from typing import Any

from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler


class StopAtRungs(FIFOScheduler):
    """Ends a trial of Tune when the ledger says so; in all else first come, first served.

    Args:
        stops: is given a Tune trial's name and its newest result.
    """

    def __init__(self, stops: Callable[[str, dict[str, Any]], bool]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._stops = stops

    def on_trial_result(
        self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]
    ) -> str:
        """Answers each report of a trial."""
        stop = self._stops(trial.trial_id, result)
        return TrialScheduler.STOP if stop else TrialScheduler.CONTINUE

    def __getstate__(self) -> dict[str, Any]:
        """Is pickled empty: what it knows is in the store."""
        return {}
