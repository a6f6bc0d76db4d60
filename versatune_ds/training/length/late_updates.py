"""Updates of the mixture that take effect after the run's end, because the last steps were planned already.

A decision after step N holds from step N + prefetch + 1 on. Example: 40 steps, an update every 38: the decision after
step 38 holds from step 41 on, and no batch is drawn with it.
"""

from __future__ import annotations

import logging

from versatune_ds.data.loader import PREFETCH
from versatune_ds.mixture.decision import Decision

logger = logging.getLogger(__name__)


def num_late_updates(*, num_steps: int, update_every: int) -> int:
    """Return how many updates before a run's last step come too late to change a batch."""
    num_updates = (num_steps - 1) // update_every
    num_in_time = max(num_steps - PREFETCH - 1, 0) // update_every
    return num_updates - num_in_time


def late_words(*, num_steps: int, update_every: int) -> str:
    """Return what to add to the number of a run's updates; empty where none comes too late."""
    num_late = num_late_updates(num_steps=num_steps, update_every=update_every)
    if not num_late:
        return ""
    subject = "the last one takes" if num_late == 1 else f"the last {num_late} take"
    return f"; {subject} effect after the run's end: new weights hold {PREFETCH + 1} steps after they are decided"


def log_if_late(decision: Decision, *, num_steps: int) -> None:
    """Log that a decision changes no batch; those after the last step itself are measurements of the end alone."""
    moves = decision.weights_before != decision.weights_after
    if moves and decision.decided_at_step < num_steps < decision.effective_step:
        logger.info("%s", late_sentence(decision, num_steps=num_steps))


def late_sentence(decision: Decision, *, num_steps: int) -> str:
    """Return that a decision takes effect after the run's end; empty where it does not."""
    if decision.effective_step <= num_steps:
        return ""
    return (
        f"The update after step {decision.decided_at_step} would take effect at step {decision.effective_step}, and "
        f"the run has {num_steps}: it changes no batch, unless the run is extended."
    )
