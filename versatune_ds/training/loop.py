"""Close the circle: data -> step -> losses by domain -> decision -> schedule -> data.

The one idea: the way back is a value. A decision made after step s names the step at which it takes effect, s +
prefetch + 1, the first one whose data is not planned yet. So no planned batch is ever taken back, and the order of the
data is a function of the seed and the decisions alone.
"""

from __future__ import annotations

import logging

from versatune_ds.distributed import broadcast_text, check_same_on_all_ranks
from versatune_ds.mixture.controller import Decision
from versatune_ds.training.evaluate import measure_validation
from versatune_ds.training.progress import log_decision, log_step
from versatune_ds.training.run import Run

logger = logging.getLogger(__name__)


def train(run: Run) -> bool:
    """Train from the run's step to its last one, or to a signal.

    Returns:
        Whether the run is complete; False if a signal stopped it, its state saved.
    """
    settings = run.config
    last_step = settings.train.steps
    if run.step == 0:
        measure_and_decide(run, step=0)
    for step in range(run.step + 1, run.step + 1 + run.loader.prefetch):
        plan_data(run, step=step)
    for step in range(run.step + 1, last_step + 1):
        plan_data(run, step=step + run.loader.prefetch)
        data = run.loader.take(step)
        result = run.engine.train_step(data.micro_batches, step=step)
        run.step = step
        run.meter.add(result, data)
        if step % settings.monitor.log_every == 0 or step == last_step:
            log_step(run, data)
        if step % settings.mixture.update_every == 0:
            measure_and_decide(run, step=step)
        is_stopped = run.signals.agreed()
        if is_stopped or step == last_step or step % (settings.checkpoint.every or last_step) == 0:
            run.save()
        if is_stopped and step < last_step:
            logger.warning("stopped by a signal after step %d; the run goes on from there", step)
            return False
    if last_step % settings.mixture.update_every:
        run.monitor.validation(last_step, measure_validation(run.engine, run.validation))
    return True


def plan_data(run: Run, *, step: int) -> None:
    """Let the loader plan a step with the weights the schedule holds for it; nothing beyond the last step."""
    if step <= run.config.train.steps:
        run.loader.plan(step, run.schedule.weights_at(step))


def measure_and_decide(run: Run, *, step: int) -> None:
    """Measure the losses by domain, let rank 0 decide, and apply the decision on every rank.

    Communication, in this order on every rank: the validation's own, one broadcast of the decision, one check that
    all ranks hold the same schedule.
    """
    losses = measure_validation(run.engine, run.validation)
    text = None
    if run.controller is not None:
        text = run.controller.decide(losses, step=step, effective_step=step + run.loader.prefetch + 1).to_json()
    decision = Decision.from_json(broadcast_text(text, run.world))
    decision.verify()
    run.schedule.apply(decision)
    check_same_on_all_ranks(run.schedule.digest(), run.world, what=f"schedule after step {step}")
    run.record_decision(decision)
    log_decision(run, decision)
