"""Close the circle: data -> step -> losses by domain -> decision -> schedule -> data.

The one idea: the way back is a value. A decision made after step s names the step at which it takes effect, s +
prefetch + 1, the first one whose data is not planned yet. So no planned batch is ever taken back, and the order of the
data is a function of the seed and the decisions alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from versatune_ds.distributed import check_same_on_all_ranks
from versatune_ds.mixture.decision import Decision
from versatune_ds.mixture.statistics import ExampleLosses
from versatune_ds.training.evaluate import measure_validation
from versatune_ds.training.progress import log_step
from versatune_ds.training.run import Run, validation_metrics

logger = logging.getLogger(__name__)


def begin(run: Run) -> None:
    """Measure the losses before training, unless the run goes on from a checkpoint.

    Raises:
        ValueError: On every rank, if the references cannot steer from these losses.
    """
    if run.step == 0:
        measure_and_decide(run)


def train(run: Run, *, is_enough: Callable[[Decision], bool] | None = None, saves_end: bool = True) -> bool:
    """Train from the run's step to its last one, to the end of the data, or to a signal.

    Args:
        run: The run, at any step.
        is_enough: Asked after every decision, on every rank with the same decision: whether the run ends here.
        saves_end: Whether the state after the last step is saved as a checkpoint.

    Returns:
        Whether the run is complete; False if a signal stopped it, its state saved.
    """
    settings, last_step = run.config, run.config.train.steps
    for step in range(run.step + 1, run.step + 1 + run.loader.prefetch):
        plan_data(run, step=step)
    while not run.is_complete:
        step = run.step + 1
        plan_data(run, step=step + run.loader.prefetch)
        data = run.loader.take(step)
        result = run.engine.train_step(data.micro_batches, step=step, is_refused=run.bad_steps.refusal)
        run.bad_steps.take(step=step, is_applied=result.is_applied)
        run.step, run.is_complete = step, step == last_step or data.plan.is_last
        run.served.add(data.plan)
        run.meter.add(result, data)
        if run.is_complete or step % settings.monitor.log_every == 0:
            log_step(run, data.plan)
        if step % settings.mixture.update_every == 0:
            decision = measure_and_decide(run)
            run.is_complete = run.is_complete or (is_enough is not None and is_enough(decision))
        elif run.is_complete:
            run.monitor.metrics(step, validation_metrics(measure_losses(run), run.domain_set))
        agreed, is_save_step = run.agreed(), step % (settings.checkpoint.every or last_step) == 0
        is_due = agreed.is_stopped or agreed.is_save_due or is_save_step
        if saves_end if run.is_complete else is_due:
            run.save(is_last=agreed.is_stopped or run.is_complete)
        if agreed.is_stopped and not run.is_complete:
            logger.info("stopped by a signal after step %d, all saved; start it again to go on", step)
            return False
    return True


def plan_data(run: Run, *, step: int) -> None:
    """Let the loader plan a step with the weights the schedule holds for it; nothing beyond the last step."""
    if step <= run.config.train.steps:
        run.loader.plan(step, run.schedule.weights_at(step))


def measure_losses(run: Run) -> ExampleLosses:
    """Return the losses of the fixed validation examples under the current weights, the same on every rank."""
    with run.meter.paused():
        return measure_validation(run.engine, run.validation, num_domains=len(run.domain_set))


def measure_and_decide(run: Run) -> Decision:
    """Measure the losses by domain, let rank 0 decide, apply the decision on every rank, and return it.

    Communication, in this order on every rank: the validation's own, the decision's broadcast, one check that all
    ranks hold the same schedule and stand at the same draw.
    """
    losses = measure_losses(run)
    decision = run.decide(losses, effective_step=run.step + run.loader.prefetch + 1)
    run.schedule.append(decision.effective_step, decision.weights_K(run.domain_set))
    check_same_on_all_ranks(run.place_as_text(), run.world, what=f"schedule and data after step {run.step}")
    run.monitor.metrics(run.step, validation_metrics(losses, run.domain_set))
    run.monitor.decision(decision.to_dict())
    return decision
