"""Updates of the mixture that take effect after the run's end, because the last steps were planned already.

A decision after step N holds from step N + prefetch + 1 on. Example: 40 steps, an update every 38: the decision after
step 38 holds from step 41 on, and no batch is drawn with it.
"""

from __future__ import annotations

import logging

from versatune_ds.config import MixtureConfig, RunConfig
from versatune_ds.data.loader import PREFETCH
from versatune_ds.mixture.decision import Decision
from versatune_ds.text_table import counted

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


def updates_in_words(settings: MixtureConfig, *, num_steps: int, is_most: bool) -> str:
    """Return the policy and how many updates a run has; `is_most` where measuring may take place less often."""
    num_updates = (num_steps - 1) // settings.update_every
    found = f"{settings.policy}, {'at most ' if is_most else ''}{counted(num_updates, 'update')} in {num_steps} steps"
    return found + late_words(num_steps=num_steps, update_every=settings.update_every)


def way_to_update(settings: MixtureConfig, *, num_steps: int) -> str | None:
    """Return what to do about a run in which no update changes a batch; None where one does, or none is meant to."""
    num_updates = (num_steps - 1) // settings.update_every
    num_updates -= num_late_updates(num_steps=num_steps, update_every=settings.update_every)
    if num_updates or not settings.rule.moves:
        return None
    moves_once = settings.rule.decides_before_training and not settings.paper
    otherwise = "the weights move once, before training" if moves_once else "no weight ever moves"
    return f"lower mixture.update_every ({settings.update_every}) or train longer, or {otherwise}"


def log_updates(config: RunConfig) -> None:
    """Log how often a run is updated where its recipe leaves that to its length, and warn where it never is."""
    settings, num_steps = config.mixture, config.train.steps
    assert num_steps is not None, "epochs are resolved first"
    is_adapted = settings.update_every != MixtureConfig.model_fields["update_every"].default
    if is_adapted and "update_every" not in settings.model_fields_set and settings.rule.moves:
        logger.info("mixture.update_every: %d, for a run of %d steps", settings.update_every, num_steps)
    todo = way_to_update(settings, num_steps=num_steps)
    if todo is not None:
        found = updates_in_words(settings, num_steps=num_steps, is_most=False)
        logger.warning("mixture.update_every: %s; %s", found, todo)


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
