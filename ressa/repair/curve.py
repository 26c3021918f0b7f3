"""A repair's curve: its steps, the learning rate of each, and when it has come off the rails."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from ressa.errors import RepairError
from ressa.spec import Repair

TEN = 10
FACTOR, MARGIN = 3.0, 1.0
"""A loss has run away when it is for ten steps above FACTOR times the best ten's, plus MARGIN."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairStep:
    """One point of a repair's curve; losses are means over the global batch's answer tokens.

    Where features are learnt, the loss is their relative squared error, a mean over questions.
    """

    step: int
    """Counted from 1."""
    loss: float
    ce: float | None
    """Cross-entropy with the answers, in nats per token; None where features are learnt."""
    kl: float | None
    """T² times the divergence from the teacher, in nats per token; None without a teacher."""
    learning_rate: float
    gradient_norm: float | None
    """L2 norm over all adapters, before clipping; None where fp16 skipped the update."""
    examples_per_second: float
    peak_memory_gib: float
    """The most in use on any worker: of a GPU in this step, of a CPU's process so far."""
    micro_batch: int
    """Questions a worker held at once."""


def learning_rate(repair: Repair, step: int) -> float:
    """The rate that step `step`, counted from 0, is taken with.

    It rises linearly and reaches the full rate with step `warmup_steps`; then it stays (constant)
    or falls along half a cosine that would reach zero one step after the last (cosine).
    """
    if step < repair.warmup_steps:
        return repair.learning_rate * (step + 1) / (repair.warmup_steps + 1)
    if repair.schedule == "constant":
        return repair.learning_rate
    done = (step - repair.warmup_steps) / (repair.steps - repair.warmup_steps)
    return repair.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def check_divergence(curve: Sequence[RepairStep], repair: Repair) -> None:
    """Ends a repair that will not come back.

    Raises:
        RepairError: the last step's loss or gradient is not finite; or the loss has been, for ten
            steps in a row, above three times what it was at best, plus 1 nat. At best is the least
            median of steps 1 to 10, 11 to 20 and so on before those. Failure "numeric".
    """
    last = curve[-1]
    norm = last.gradient_norm
    if not (math.isfinite(last.loss) and (norm is None or math.isfinite(norm))):
        found = f"loss {last.loss:.4g}, gradient norm {math.nan if norm is None else norm:.4g}"
    else:
        losses = [step.loss for step in curve]
        before, late = losses[:-TEN], losses[-TEN:]
        tens = [median(before[at : at + TEN]) for at in range(0, len(before) - TEN + 1, TEN)]
        bound = FACTOR * min(tens, default=math.inf) + MARGIN
        if min(late) <= bound:
            return
        found = f"loss {last.loss:.4g}, for {TEN} steps above {bound:.4g}"
    raise RepairError(
        f"diverged at step {last.step} of {repair.steps}: {found} at learning rate "
        f"{last.learning_rate:.4g}. Lower the learning rate or clip",
        "numeric",
    )
