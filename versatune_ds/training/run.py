"""Hold the parts of a run: what the loop works on, and what it means to save, restore and record it.

The one idea: all state that is ours is rank-independent JSON: counters and decisions, no buffers. It is read back the
same on every rank, whatever their number.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from versatune_ds.config import RunConfig
from versatune_ds.data.loader import MixtureLoader, StepBatch
from versatune_ds.distributed import World, broadcast_text, run_on_rank_zero
from versatune_ds.domains import DomainSet
from versatune_ds.engine.checkpoint import SaveError, load_checkpoint, save_checkpoint
from versatune_ds.engine.engine import Engine, StepResult
from versatune_ds.engine.other_world_size import load_converted
from versatune_ds.mixture.controller import Controller
from versatune_ds.mixture.decision import Decision
from versatune_ds.mixture.inputs import Inputs
from versatune_ds.mixture.schedule import Schedule
from versatune_ds.mixture.statistics import DomainStatistics, ExampleLosses
from versatune_ds.monitor import Monitor
from versatune_ds.run_folder.checkpoint_files import complete_checkpoints
from versatune_ds.run_folder.folder_lock import FolderLock
from versatune_ds.training.bad_steps import BadSteps
from versatune_ds.training.decision_inputs import DecisionInputs
from versatune_ds.training.held_out import HeldOutExamples
from versatune_ds.training.meter import Meter
from versatune_ds.training.resume import STATE_VERSION, ResumePoint, log_resume, restart_changed
from versatune_ds.training.served_tokens import ServedTokens
from versatune_ds.training.signals import Agreement, SaveClock, StopSignals
from versatune_ds.training.throughput import Throughput
from versatune_ds.training.train_losses import TrainLosses
from versatune_ds.training.update_clock import UpdateClock

logger = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True)
class Run:
    """Everything the training loop needs, and the number of steps done."""

    config: RunConfig
    world: World
    domain_set: DomainSet
    engine: Engine
    loader: MixtureLoader
    validation: HeldOutExamples
    train_losses: TrainLosses | None
    """Where `mixture.signal` is train."""
    updates: UpdateClock
    schedule: Schedule
    controller: Controller | None
    """On rank 0 only."""
    inputs: DecisionInputs | None
    """On rank 0 only: live control and supply."""
    monitor: Monitor
    stop_signals: StopSignals
    save_clock: SaveClock
    bad_steps: BadSteps
    meter: Meter
    served: ServedTokens
    throughput: Throughput
    identity: dict[str, Any]
    """What a checkpoint must share with the run that resumes it: digests of data and tokenizer, world, ZeRO stage, ...;
    the names `resume.allow` knows them by are in resume.py."""
    step: int = 0
    """Optimizer steps done."""
    is_complete: bool = False
    """Whether the last step is done, or the data has ended."""
    locks: tuple[FolderLock, ...] = ()
    """On rank 0 only: what makes it the run's one writer."""

    def release(self) -> None:
        """Let another process have the run's folder: nothing is written into it any more."""
        for lock in self.locks:
            lock.release()

    def take(self, step: int, result: StepResult, data: StepBatch) -> None:
        """Take in what an optimizer step left; the run stands after it."""
        self.bad_steps.take(step=step, is_applied=result.is_applied)
        self.step, self.is_complete = step, step == self.config.train.steps or data.plan.is_last
        self.served.add(data.plan)
        self.meter.add(result, data)
        if self.train_losses is not None:
            self.train_losses.add(result)

    def decide(self, losses: ExampleLosses | DomainStatistics, *, effective_step: int) -> Decision:
        """Let rank 0 decide, and return the decision on every rank, its digest checked.

        Communication: one broadcast of an error text (usually empty), one of the decision.

        Raises:
            ValueError: On every rank, if the references cannot steer.
        """
        made: list[str] = []
        run_on_rank_zero(lambda: made.append(self._decide(losses, effective_step=effective_step).to_json()), self.world)
        decision = Decision.from_json(broadcast_text(made[0] if made else None, self.world))
        decision.verify()
        return decision

    def _decide(self, losses: ExampleLosses | DomainStatistics, *, effective_step: int) -> Decision:
        """Return rank 0's decision on losses and on what else enters it."""
        assert self.controller is not None, "rank 0 decides"
        inputs = self._inputs()
        if isinstance(losses, ExampleLosses):
            return self.controller.decide(losses, step=self.step, effective_step=effective_step, inputs=inputs)
        return self.controller.decide_from_statistics(
            losses, step=self.step, effective_step=effective_step, inputs=replace(inputs, signal="train")
        )

    def _inputs(self) -> Inputs:
        """Return live control, what is left of the data, and when to measure next; rank 0 only."""
        assert self.inputs is not None, "rank 0 has them"
        return self.inputs.at(
            self.step,
            draws_K=np.array(self.loader.state_dict(self.step)["draws"]),
            units_drawn=float(self.served.realised_units_K.sum()),
            interval_stretch=self.updates.needed_stretch(self.step),
        )

    def agreed(self) -> Agreement:
        """Return whether all ranks stop or save after this step. Communication: one all-reduce of two flags."""
        is_save_due = self.world.is_rank_zero and self.save_clock.is_due()
        agreed = self.stop_signals.agreed(is_save_due=is_save_due)
        is_save_step = self.step % (self.config.checkpoint.every or self.config.train.steps) == 0
        return replace(agreed, is_save_due=agreed.is_save_due or agreed.is_stopped or is_save_step)

    def place_as_text(self) -> str:
        """Return what the order of the data depends on; the same on every rank, or they have diverged."""
        return json.dumps([self.schedule.state_dict(), self.loader.state_dict(self.step)])

    def save(self, *, is_last: bool) -> None:
        """Save everything as the checkpoint of the current step; drop the oldest.

        Communication: one all-reduce of training losses where they are the signal; then see checkpoint.py.

        Args:
            is_last: Whether the process ends after it. One that cannot be written then ends the run with an error;
                before that it is said, training goes on, and the next one is tried at its time.

        Raises:
            RuntimeError: If the last one could not be written.
        """
        state = {
            "version": STATE_VERSION,
            "step": self.step,
            "is_complete": self.is_complete,
            "identity": self.identity,
            "loader": self.loader.state_dict(self.step),
            "schedule": self.schedule.state_dict(),
            "served": self.served.state_dict(),
            "bad_steps": self.bad_steps.state_dict(),
            "controller": self.controller.state_dict() if self.controller else None,
            "validation": self.validation.state_dict(),
            "train_losses": self.train_losses.state_dict() if self.train_losses else None,
            "updates": self.updates.state_dict(),
        }
        self.save_clock.restart()
        try:
            with self.meter.paused(), self.updates.paused():
                folder = save_checkpoint(
                    self.engine.deepspeed_engine,
                    run_dir=self.config.run_dir,
                    step=self.step,
                    state=state,
                    keep=self.config.checkpoint.keep,
                    world=self.world,
                )
        except SaveError as error:
            stands = next((path.name for path in complete_checkpoints(self.config.run_dir)), "none")
            failed = f"step {self.step} could not be saved ({error}); the newest whole checkpoint is {stands}"
            if is_last:
                raise RuntimeError(f"{failed}. Make room and start again to go on from it") from error
            logger.error("%s. Training goes on, and the next save is tried at its time", failed)
            return
        logger.info("saved %s", folder)

    def restore(self, point: ResumePoint) -> None:
        """Go on from a checkpoint. Communication: DeepSpeed's own, and a conversion's on another number of ranks."""
        state = point.state
        log_resume(point)
        current = self.loader.state_dict(0)
        place = restart_changed(state["loader"], current, changed_domains=point.changed_domains)
        self.loader.load_state_dict(place)
        self.schedule.load_state_dict(state["schedule"])
        self.served.load_state_dict(state["served"])
        self.bad_steps.load_state_dict(state["bad_steps"])
        if self.controller is not None:
            self.controller.load_state_dict(state["controller"])
        self._restore_signals(state)
        if point.needs_conversion:
            load_converted(self.engine.deepspeed_engine, point.folder, world=self.world)
        else:
            load_checkpoint(self.engine.deepspeed_engine, point.folder)
        self.step, self.is_complete = state["step"], state["is_complete"]
        if self.is_complete:
            logger.info("%s is complete; --fresh starts over", self.config.run_dir)

    def _restore_signals(self, state: Mapping[str, Any]) -> None:
        """Take over what is measured, and when; a checkpoint of an earlier version or of another signal lacks it."""
        parts = {"validation": self.validation, "train_losses": self.train_losses, "updates": self.updates}
        for key, part in parts.items():
            if part is not None and state.get(key) is not None:
                part.load_state_dict(state[key])


def validation_metrics(losses: ExampleLosses, domain_set: DomainSet) -> dict[str, float]:
    """Return `domain/NAME/{loss, loss_stderr}`, and `validation/loss`, the plain mean over the domains measured."""
    means_K, errors_K = losses.mean(), losses.standard_error()
    metrics = {f"domain/{name}/loss": float(mean) for name, mean in zip(domain_set, means_K, strict=True)}
    metrics |= {f"domain/{name}/loss_stderr": float(error) for name, error in zip(domain_set, errors_K, strict=True)}
    return {**metrics, "validation/loss": float(np.nanmean(means_K))}
