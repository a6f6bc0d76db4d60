"""The training loop: data -> step -> losses by domain -> decision -> schedule -> data.

A decision made after step s takes effect at step s + prefetch + 1, the first one whose data is not planned yet. So no
planned batch is ever discarded, and the order of the data is a function of the seed and the decisions alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from versatune_ds.distributed import check_same_on_all_ranks
from versatune_ds.mixture.decision import Decision
from versatune_ds.mixture.statistics import ExampleLosses
from versatune_ds.progress import start_phase
from versatune_ds.training.length.late_updates import log_if_late
from versatune_ds.training.meter import log_step
from versatune_ds.training.run import Run, validation_metrics

logger = logging.getLogger(__name__)


def measure_before_training(run: Run) -> None:
    """Measure the losses before training, unless the run resumed from a checkpoint.

    Raises:
        ValueError: On every rank, if the references cannot steer from these losses.
    """
    if run.step == 0:
        with start_phase("first validation"):
            measure_and_decide(run)
            run.ask_tasks_if_due()


def train(run: Run, *, should_stop: Callable[[Decision], bool] | None = None, save_at_end: bool = True) -> bool:
    """Train from the run's step to its last one, to the end of the data, or to a signal.

    Args:
        run: The run, at any step.
        should_stop: Called after every decision, on every rank with the same decision; returns whether to end the run.
        save_at_end: Whether the state after the last step is saved as a checkpoint.

    Returns:
        Whether the run is complete; False if a signal stopped it, its state saved.
    """
    run.end_early_if_over()  # of an extended run, or one with less patience now: it may be over already
    for step in range(run.step + 1, run.step + 1 + run.loader.prefetch):
        plan_data(run, step=step)
    run.updates.begin_steps(run.step)
    while not run.is_complete:
        # Data and optimizer step; meanwhile the loader plans ahead, and the ranks exchange who was signalled.
        step = run.step + 1
        plan_data(run, step=step + run.loader.prefetch)
        data = run.loader.take(step)
        run.ask_ranks()
        result = run.engine.train_step(data.micro_batches, step=step, is_refused=run.bad_steps.refusal)
        run.record_step(step, result, data)
        run.monitor.step(step)
        is_logged = run.is_complete or step % run.config.monitor.log_every == 0
        if is_logged:
            log_step(run, data.plan)

        # Measure, and decide the mixture of later steps.
        decision = measure_and_decide(run) if run.updates.is_due(step) else None
        if decision is not None and should_stop is not None and should_stop(decision):
            run.is_complete = True
        run.end_early_if_over()
        if run.is_complete and not is_logged:
            log_step(run, data.plan)  # a run that ends early ends with its last step's figures too
        has_held_out_losses = decision is not None and run.config.mixture.signal != "train"
        if run.is_complete and not has_held_out_losses:
            measure_losses(run)  # a run ends with held-out losses, whatever signal steered it
        run.ask_tasks_if_due()

        # Save, and stop where a signal asks for it: all ranks agree on both.
        agreed = run.agreed()
        if agreed.is_stopped and not run.is_complete and not is_logged:
            log_step(run, data.plan)
        is_end_saved = run.is_complete and save_at_end
        is_save_due = agreed.is_save_due and not run.is_complete
        if is_end_saved or is_save_due:
            run.save(is_last=agreed.is_stopped or run.is_complete)
        if agreed.is_stopped and not run.is_complete:
            logger.info("stopped after step %d, state saved; start it again to resume", step)
            return False
    run.finish_save()  # where nothing was saved at the end
    return True


def plan_data(run: Run, *, step: int) -> None:
    """Have the loader plan a step with the weights that the schedule has for it; nothing beyond the last step."""
    if step <= run.config.train.steps:
        run.loader.plan(step, run.schedule.weights_at(step))


def measure_losses(run: Run) -> ExampleLosses:
    """Return and record the losses of the fixed held-out examples, the same on every rank."""
    with run.meter.paused():
        losses = run.validation.measure(run.engine)
    run.monitor.metrics(run.step, validation_metrics(losses, run.domain_set))
    run.judge(losses)
    return losses


def measure_own(run: Run, losses: ExampleLosses | None) -> Any:
    """Return what a signal of the user's own returns on this rank; None where the run has none."""
    if run.own_signal is None or losses is None:
        return None
    with run.meter.paused():
        return run.own_signal.call(run.engine, losses, step=run.step)


def measure_and_decide(run: Run) -> Decision:
    """Measure held-out losses (or sum training ones), let rank 0 decide, apply the decision on every rank, return it.

    Communication, in this order on every rank: the sum of the training losses, the measurement's own, that of a signal
    of the user's own, the decision's broadcast, one check that all ranks have the same schedule and the same position
    in the data.
    """
    with run.updates.measuring():
        train_losses = run.train_losses.take() if run.train_losses and run.step else None
        is_by_training = train_losses is not None and run.config.mixture.signal == "train"
        losses = None if is_by_training else measure_losses(run)
        own = measure_own(run, losses)
    decision = run.decide(losses, train_losses, own=own, effective_step=run.step + run.loader.prefetch + 1)
    run.schedule.append(decision.effective_step, decision.weights_K(run.domain_set))
    run.updates.follow(decision)
    if run.world.is_rank_zero:
        log_if_late(decision, num_steps=run.config.train.steps)
    check_same_on_all_ranks(run.place_as_text(), run.world, what=f"schedule and data after step {run.step}")
    run.monitor.decision(decision.to_dict())
    return decision
