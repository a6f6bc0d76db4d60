"""The parts of a run that the training loop works on, and what it means to decide, to stop and to save.

All state of ours is rank-independent JSON: counters and decisions, no buffers. Every rank reads the same state back,
whatever their number. `resume.py` restores it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from versatune_ds.config import RunConfig
from versatune_ds.data.loader import MixtureLoader, StepBatch
from versatune_ds.distributed import World, bytes_from_rank_zero, from_rank_zero
from versatune_ds.domains import DomainSet
from versatune_ds.engine.engine import Engine, StepResult
from versatune_ds.engine.saving import Saving
from versatune_ds.mixture.controller import Controller
from versatune_ds.mixture.decision import Decision
from versatune_ds.mixture.decision_bytes import packed_decision, unpacked_decision
from versatune_ds.mixture.schedule import Schedule
from versatune_ds.mixture.statistics import DomainStatistics, ExampleLosses
from versatune_ds.monitor import Monitor
from versatune_ds.run_folder.atomic import write_json
from versatune_ds.run_folder.folder_lock import FolderLock
from versatune_ds.run_folder.names import EARLY_STOP_FILE
from versatune_ds.training.bad_steps import BadSteps
from versatune_ds.training.best import BestCheckpoint, EarlyStopping, metric_value
from versatune_ds.training.decision_inputs import DecisionInputs
from versatune_ds.training.held_out import HeldOutExamples
from versatune_ds.training.meter import Meter, ServedTokens, TrainLosses
from versatune_ds.training.resume import SAVED_PARTS, STATE_VERSION
from versatune_ds.training.signal_function import OwnSignal
from versatune_ds.training.signals import Agreement, SaveClock, StopSignals
from versatune_ds.training.throughput import Throughput
from versatune_ds.training.update_clock import UpdateClock

logger = logging.getLogger(__name__)


TaskEvaluation = Callable[[Engine], dict[str, float]]
"""Asks the questions of `validation.tasks` and returns metrics, the same on every rank; every rank calls it."""


@dataclass(kw_only=True, slots=True)
class Run:
    """Everything the training loop needs, and the number of steps done. `assemble_run` makes it."""

    config: RunConfig
    world: World
    domain_set: DomainSet
    engine: Engine
    loader: MixtureLoader
    validation: HeldOutExamples
    train_losses: TrainLosses | None
    """Where `mixture.signal` is train, or over-fitting is watched for."""
    own_signal: OwnSignal | None
    """Where `mixture.signal` is a function of the user's own."""
    updates: UpdateClock
    best: BestCheckpoint | None
    """Where `checkpoint.best` is set."""
    early_stopping: EarlyStopping | None
    """Where `train.early_stopping` is set."""
    tasks: TaskEvaluation | None
    """Where `validation.tasks` is set."""
    schedule: Schedule
    controller: Controller | None
    """On rank 0 only."""
    inputs: DecisionInputs | None
    """On rank 0 only: live control and supply."""
    monitor: Monitor
    stop_signals: StopSignals
    save_clock: SaveClock
    saving: Saving
    bad_steps: BadSteps
    meter: Meter
    served: ServedTokens
    throughput: Throughput
    identity: dict[str, Any]
    """What a checkpoint must share with the run that resumes from it: digests of data and tokenizer, world, ZeRO stage,
    ...; resume.py maps them to the names of `resume.allow`."""
    locks: tuple[FolderLock, ...]
    """On rank 0 only: what makes this process the only writer of the run's folder."""
    step: int
    """Optimizer steps done."""
    is_complete: bool
    """Whether the last step is done, or the data has ended."""

    def close(self, *, exit_code: int) -> None:
        """Stop what works in the background, and close the records; every run that was begun ends with it.

        A save that is under way in the background is over by now, unless the run has failed: then it is abandoned.
        """
        self.saving.abandon()
        self.loader.close()
        self.monitor.finish(exit_code=exit_code)

    def release(self) -> None:
        """Release the run's folder to other processes; nothing is written into it afterwards."""
        for lock in self.locks:
            lock.release()

    def record_step(self, step: int, result: StepResult, data: StepBatch) -> None:
        """Record an optimizer step that was just taken."""
        self.bad_steps.record(step=step, is_applied=result.is_applied)
        self.step, self.is_complete = step, step == self.config.train.steps or data.plan.is_last
        self.served.add(data.plan)
        self.meter.add(result, data)
        if self.train_losses is not None:
            self.train_losses.add(result)

    def decide(
        self,
        losses: ExampleLosses | None,
        train_losses: DomainStatistics | None,
        *,
        effective_step: int,
        own: Any = None,
    ) -> Decision:
        """Let rank 0 decide, and return the decision on every rank, the digest of its bytes verified.

        Communication: one broadcast of the decision, or of an error.

        Args:
            losses: Held-out losses; None where the training losses alone decide.
            train_losses: Those since the last update; None where they are not summed, and before training.
            effective_step: Step from which new weights can apply.
            own: What the run's own signal returned on this rank; None where it has none.

        Raises:
            ValueError: On every rank, if the references cannot steer, or a signal's numbers are wrong.
        """
        own_decision: list[Decision] = []

        def decided() -> bytes:
            own_decision.append(self._decide(losses, train_losses, effective_step=effective_step, own=own))
            return packed_decision(own_decision[0])

        packed = bytes_from_rank_zero(decided, self.world)
        return own_decision[0] if own_decision else unpacked_decision(packed)

    def _decide(
        self,
        losses: ExampleLosses | None,
        train_losses: DomainStatistics | None,
        *,
        effective_step: int,
        own: Any,
    ) -> Decision:
        """Return the decision on losses, live control, the data that remains and the measuring clock; rank 0 only."""
        assert self.controller is not None, "rank 0 decides"
        assert self.inputs is not None, "rank 0 decides"
        inputs = self.inputs.at(
            self.step,
            draws_K=np.array(self.loader.state_dict(self.step)["draws"]),
            units_drawn=float(self.served.realised_units_K.sum()),
            interval_stretch=self.updates.needed_stretch(self.step),
        )
        if self.own_signal is not None:
            own_losses = self.own_signal.checked(own)
            return self.controller.decide_from_own(
                own_losses, step=self.step, effective_step=effective_step, inputs=inputs
            )
        if losses is not None:
            if train_losses is not None:
                inputs = inputs.with_train_losses(train_losses, domain_set=self.domain_set)
            return self.controller.decide(losses, step=self.step, effective_step=effective_step, inputs=inputs)
        assert train_losses is not None, "one of the two was measured"
        return self.controller.decide_from_statistics(
            train_losses, step=self.step, effective_step=effective_step, inputs=replace(inputs, signal="train")
        )

    def judge(self, losses: ExampleLosses) -> None:
        """Record whether held-out losses are the best so far, and whether they still fall; at step 0 neither.

        Patience counts only measurements that an update makes. Otherwise a run that gets more steps would have counted
        the one at its former end, which a run of that length from the beginning does not make.

        Communication: where `checkpoint.best` or `train.early_stopping` is set, rank 0's numbers are broadcast.
        """
        stopping = self.early_stopping if self.updates.is_due(self.step) else None
        judges = [judge for judge in (self.best, stopping) if judge is not None]
        if self.step == 0 or not judges:
            return

        def values() -> list[float]:
            assert self.controller is not None, "rank 0 measures against the losses at step 0"
            start_K = self.controller.start_loss_K
            return [metric_value(judge.metric, losses, start_K=start_K, domain_set=self.domain_set) for judge in judges]

        for judge, value in zip(judges, from_rank_zero(values, self.world), strict=True):
            judge.record(self.step, value)

    def end_early_if_over(self) -> None:
        """Complete the run where its held-out losses no longer fall, and record why; on every rank alike."""
        stopping = self.early_stopping
        if self.is_complete or stopping is None or not stopping.is_over:
            return
        self.is_complete, stopping.stopped_after = True, self.step
        reason = f"stopped early after step {self.step} of {self.config.train.steps}: {stopping.reason()}"
        logger.info("%s", reason)
        if self.world.is_rank_zero:
            record = {**stopping.state_dict(), "reason": reason}
            write_json(self.config.run_dir / EARLY_STOP_FILE, record)

    def ask_tasks_if_due(self) -> None:
        """Ask the questions of `validation.tasks` where this step is one of theirs, and record the answers."""
        settings = self.config.validation.tasks
        if self.tasks is None or settings is None:
            return
        is_due = self.step == 0 if settings.every_steps is None else self.step % settings.every_steps == 0
        if self.is_complete or is_due:
            with self.meter.paused(), self.updates.paused():
                metrics = self.tasks(self.engine)
            self.monitor.metrics(self.step, metrics)

    def ask_ranks(self) -> None:
        """Start to exchange, while a step runs, what `agreed` returns after it. Communication: one all-reduce."""
        self.stop_signals.ask_ranks(
            is_save_due=lambda: self.world.is_rank_zero and self.save_clock.is_due(),
            is_writing=lambda: self.saving.is_writing,
        )

    def agreed(self) -> Agreement:
        """Return whether all ranks stop or save after this step; a save in the background proceeds.

        Communication: the end of what `ask_ranks` started; what saving.py exchanges once all ranks have written.
        """
        agreed = self.stop_signals.agreed()
        self.saving.follow(is_writing=agreed.is_writing)
        is_save_step = self.step % (self.config.checkpoint.every or self.config.train.steps) == 0
        is_best = self.best is not None and self.best.is_unsaved
        return replace(agreed, is_save_due=agreed.is_save_due or agreed.is_stopped or is_save_step or is_best)

    def place_as_text(self) -> str:
        """Return what the order of the data depends on; it differs between ranks only if they have diverged."""
        return json.dumps([self.schedule.digest, self.loader.state_dict(self.step)])

    def save(self, *, is_last: bool) -> None:
        """Save the checkpoint of the current step, or start to; see saving.py.

        Communication: one all-reduce of training losses where they are summed; then see saving.py.

        Args:
            is_last: Whether the process ends after it, which then must succeed.

        Raises:
            RuntimeError: If the last one could not be written.
        """
        self.finish_save()
        state = {
            "version": STATE_VERSION,
            "step": self.step,
            "is_complete": self.is_complete,
            "identity": self.identity,
            **{name: self._state_of(name) for name in SAVED_PARTS},
        }
        self.save_clock.restart()
        with self.meter.paused(), self.updates.paused():
            self.saving.save(step=self.step, state=state, is_last=is_last)

    def finish_save(self) -> None:
        """Wait for the save in the background, if one is under way."""
        with self.meter.paused(), self.updates.paused():
            self.saving.finish()

    def _state_of(self, name: str) -> dict[str, Any] | None:
        """Return a part's state for a checkpoint; None where this run, or this rank, has no such part."""
        if name == "loader":
            return self.loader.state_dict(self.step)
        if name == "schedule":
            return self.schedule.state_dict(from_step=self.step + 1)
        part = getattr(self, name)
        return None if part is None else part.state_dict()


def validation_metrics(losses: ExampleLosses, domain_set: DomainSet) -> dict[str, float]:
    """Return `domain/NAME/{loss, loss_stderr}`, and `validation/loss`, the plain mean over the domains measured."""
    means_K, errors_K = losses.mean(), losses.standard_error()
    metrics = {f"domain/{name}/loss": float(mean) for name, mean in zip(domain_set, means_K, strict=True)}
    metrics |= {f"domain/{name}/loss_stderr": float(error) for name, error in zip(domain_set, errors_K, strict=True)}
    return {**metrics, "validation/loss": float(np.nanmean(means_K))}
