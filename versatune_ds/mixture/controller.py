"""The controller, which decides the mixture on rank 0: measurement in, decision out.

It is bookkeeping around pure functions: it stores losses, calls the policy, applies the safeguards and records
everything a decision depends on. Training, simulation and replay all go through `decide_measured`.

Source: docs/method.md sections 8 and 10.

Shape legend: **K** domains.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from versatune_ds.config import MixtureConfig
from versatune_ds.domains import DomainSet
from versatune_ds.mixture.decision import Decision
from versatune_ds.mixture.followed_plan import FollowedPlan
from versatune_ds.mixture.inputs import Inputs
from versatune_ds.mixture.measurement import Measurement, Remembered, measurement_of_statistics
from versatune_ds.mixture.overfitting import OverfitWatch, over_fitting_ended, over_fitting_texts
from versatune_ds.mixture.own_signal import OwnLosses
from versatune_ds.mixture.policies import Policy
from versatune_ds.mixture.policies.acted import ALARM, Acted
from versatune_ds.mixture.policies.signals import Signals, from_list, to_list
from versatune_ds.mixture.reference import References, check_against_start
from versatune_ds.mixture.settings import policy_settings, safeguard_settings
from versatune_ds.mixture.signals import History, signals_from
from versatune_ds.mixture.stand_in_references import reached_line
from versatune_ds.mixture.statistics import DomainStatistics, ExampleLosses
from versatune_ds.mixture.update import (
    BASELINE_REASON,
    Move,
    Occasion,
    Rules,
    kept_signals,
    move_weights,
    reason_to_skip,
    write_decision,
)
from versatune_ds.mixture.weights import as_weights

logger = logging.getLogger(__name__)

_VERSION = 1
_NO_INPUTS = Inputs()


class Controller:
    """Decide, and store what later decisions depend on: weights, losses so far, references fixed at the start."""

    def __init__(
        self,
        *,
        domain_set: DomainSet,
        settings: MixtureConfig,
        weights_K: np.ndarray,
        references: References | None = None,
        policy: Policy | None = None,
        plan: FollowedPlan | None = None,
    ) -> None:
        """Start from the weights of step 0.

        Args:
            domain_set: Domains of the run.
            settings: The recipe's mixture section.
            weights_K: Starting weights [K], as `starting_weights` returns them.
            references: As `load_references` returns them; None for policies that need none.
            policy: The rule; by default that of `settings.policy`.
            plan: The plan to follow, as `plan_to_follow` returns it; None for none.

        Raises:
            ValueError: If the policy needs references and there are none, or a setting names an unknown domain.
        """
        self._domain_set = domain_set
        self._settings = settings
        self._plan = plan
        self._references = References() if references is None else references
        self._policy = settings.rule if policy is None else policy
        has_references = self._references.losses_K is not None or self._references.start_fraction is not None
        if self._policy.needs_references and not has_references:
            raise ValueError(
                f"mixture.reference: policy {settings.policy!r} needs reference losses; see load_references"
            )
        self._start_from(as_weights(weights_K, "starting weights"))
        self._weights_K = self._start_weights_K
        self._history = History.empty(len(domain_set))
        self._remembered = Remembered()
        self._overfit = OverfitWatch.empty(len(domain_set))
        self._next_update = 0
        self._last_moved_step = 0

    def _start_from(self, start_weights_K: np.ndarray) -> None:
        """Resolve the settings that depend on the starting weights."""
        self._start_weights_K = start_weights_K
        self._rules = Rules(
            policy=self._policy,
            settings=policy_settings(
                self._settings, domain_set=self._domain_set, start_weights_K=start_weights_K, rule=self._policy
            ),
            safeguards=safeguard_settings(self._settings, start_weights_K=start_weights_K, rule=self._policy),
            domain_set=self._domain_set,
            plan=self._plan,
        )

    @property
    def weights_K(self) -> np.ndarray:
        """Return the weights decided last, float64 [K]; they apply from that decision's effective step."""
        return self._weights_K.copy()

    @property
    def start_loss_K(self) -> np.ndarray:
        """Return the first loss of each domain, that of the base model, float64 [K]; NaN before it."""
        return self._history.start_K

    def decide(self, losses: ExampleLosses, *, step: int, effective_step: int, inputs: Inputs = _NO_INPUTS) -> Decision:
        """Return the decision on validation losses, and store it.

        Args:
            losses: Losses of the same examples every time, summed over all ranks.
            step: Optimizer steps done. The first call at step 0 is the baseline: only policies that
                decide before training move then.
            effective_step: Step from which new weights can apply.
            inputs: Live control and supply caps.

        Raises:
            ValueError: If the references cannot steer (only at the first measurement; see `reference_check`).
        """
        if self._remembered.previous is not None and not losses.is_same_examples(self._remembered.previous):
            logger.warning("validation examples changed before step %d: changes are no longer paired", step)
        measurement = self._remembered.measure(losses)
        decision = self.decide_measured(measurement, step=step, effective_step=effective_step, inputs=inputs)
        if reason_to_skip(measurement, domain_set=self._domain_set) is None:
            self._remembered = self._remembered.after(losses)
        return decision

    def decide_from_statistics(
        self, statistics: DomainStatistics, *, step: int, effective_step: int, inputs: Inputs = _NO_INPUTS
    ) -> Decision:
        """Return the decision on training losses by domain (free, but biased by what was drawn), and store it."""
        measurement = measurement_of_statistics(statistics, previous_stderr_K=self._history.signals.loss_stderr_K)
        return self.decide_measured(measurement, step=step, effective_step=effective_step, inputs=inputs)

    def decide_from_own(
        self, losses: OwnLosses, *, step: int, effective_step: int, inputs: Inputs = _NO_INPUTS
    ) -> Decision:
        """Return the decision on what a signal of the user's own returned, and store it; its name enters the inputs."""
        return self.decide_measured(
            losses.measurement(previous_stderr_K=self._history.signals.loss_stderr_K),
            step=step,
            effective_step=effective_step,
            inputs=replace(inputs, signal=losses.name),
        )

    def decide_measured(
        self,
        measurement: Measurement,
        *,
        step: int,
        effective_step: int,
        inputs: Inputs = _NO_INPUTS,
        is_baseline: bool | None = None,
    ) -> Decision:
        """Return the decision on a measurement, and store it; training, simulation and replay all call this.

        `is_baseline` is whether this is the measurement before training; by default, the first one at step 0 is. The
        other arguments are those of `decide`.
        """
        if is_baseline is None:
            is_baseline = self._next_update == 0 and step == 0
        update = 0 if is_baseline else max(self._next_update, 1)
        occasion = Occasion(update=update, step=step, effective_step=effective_step, inputs=inputs)
        skipped = reason_to_skip(measurement, domain_set=self._domain_set)
        before_K = self._weights_K
        if skipped:
            # No weight changes, and neither its losses nor its elapsed steps are recorded.
            logger.warning("step %d: %s", step, skipped)
            move = Move(weights_K=before_K, acted=(Acted("skipped", (), "skipped"),), reason=skipped)
        else:
            move = self._moved(measurement, occasion=occasion)
        self._weights_K, self._next_update = move.weights_K, update + 1
        return write_decision(
            move,
            before_K=before_K,
            measurement=measurement,
            signals=self._history.signals,
            occasion=occasion,
            domain_set=self._domain_set,
        )

    def _moved(self, measurement: Measurement, *, occasion: Occasion) -> Move:
        """Record a measurement and return its update."""
        # What the policy sees; a domain that was not measured keeps its previous signals.
        history = self._started(measurement)
        signals, unbounded = (
            signals_from(
                measurement,
                history=history,
                reference_loss_K=self._references.at_start(history.start_K),
                weights_K=self._weights_K,
                update=occasion.update,
                z=z,
                step=occasion.step,
                plan=self._plan,
            )
            for z in (self._rules.safeguards.z, 0.0)
        )
        self._log_reached(signals, start_K=history.start_K, step=occasion.step)
        kept = kept_signals(measurement, previous=self._history.signals, domain_set=self._domain_set)
        ended = self._watch_overfitting(signals, measurement=measurement, occasion=occasion)
        # The rules of the paper move from one measurement to the next, so the one before training moves nothing. For
        # policies that use it, it covers one interval.
        move = Move(weights_K=self._weights_K, acted=kept, reason=BASELINE_REASON)
        is_baseline = occasion.update == 0
        elapsed_steps = occasion.step - self._last_moved_step
        if is_baseline:
            interval_steps = self._rules.settings.interval_steps if self._policy.decides_before_training else None
            elapsed_steps = 0 if interval_steps is None else interval_steps
        if not is_baseline or elapsed_steps > 0:
            move = move_weights(
                self._weights_K,
                signals=signals,
                unbounded=unbounded,
                occasion=occasion,
                elapsed_steps=elapsed_steps,
                rules=self._rules,
                overfit=self._overfit,
            )
            move = replace(move, acted=(*kept, *ended, *move.acted))
        for acted in move.acted:
            if acted.kind == ALARM:
                logger.warning("step %d: %s", occasion.step, acted.text)
        self._history, self._last_moved_step = history.after(signals), occasion.step
        return move

    def _log_reached(self, signals: Signals, *, start_K: np.ndarray, step: int) -> None:
        """Log which domains have reached their stand-in reference."""
        losses = {"before_K": self._history.signals.loss_K, "loss_K": signals.loss_K, "start_K": start_K}
        line = reached_line(self._references, **losses, domain_set=self._domain_set)
        if line is not None and self._policy.needs_references:
            logger.warning("step %d: %s", step, line)

    def _watch_overfitting(
        self, signals: Signals, *, measurement: Measurement, occasion: Occasion
    ) -> tuple[Acted, ...]:
        """Record what an update says about over-fitting; log the domains that begin, return those that ended."""
        safeguards, before = self._rules.safeguards, self._overfit
        if safeguards.overfit == "off":
            return ()
        self._overfit = before.after(
            signals,
            is_measured_K=measurement.is_present(),
            inputs=occasion.inputs,
            domain_set=self._domain_set,
            z=safeguards.z,
        )
        way_out = "" if safeguards.overfit == "reduce" else "; mixture.safeguards.overfit=reduce lowers its weight"
        for name, text in over_fitting_texts(self._overfit, domain_set=self._domain_set).items():
            if not before.is_over_fitting_K[self._domain_set.id_of(name)]:
                logger.warning("step %d: %s over-fits (%s)%s", occasion.step, name, text, way_out)
        return over_fitting_ended(before, self._overfit, domain_set=self._domain_set)

    def _started(self, measurement: Measurement) -> History:
        """Return the history with the first losses of a measurement; check the references against the very first."""
        is_first = self._history.signals.update < 0
        history = self._history.started(measurement)
        if is_first and self._policy.needs_references:
            is_refused = self._settings.reference_check == "refuse"
            for warning in check_against_start(
                self._references, start_K=history.start_K, domain_set=self._domain_set, is_refused=is_refused
            ):
                logger.warning("%s", warning)
        return history

    def state_dict(self) -> dict[str, Any]:
        """Return JSON-able state; decisions after a load are those of the uninterrupted run, bit for bit."""
        return {
            "version": _VERSION,
            "domains": list(self._domain_set),
            "start_weights_K": to_list(self._start_weights_K),
            "weights_K": to_list(self._weights_K),
            "next_update": self._next_update,
            "last_moved_step": self._last_moved_step,
            "history": self._history.state_dict(),
            "remembered": self._remembered.state_dict(),
            "overfit": self._overfit.state_dict(),
        } | ({} if self._plan is None else {"plan": self._plan.state_dict()})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a saved state; the saved starting weights and plan replace this controller's.

        A plan that is no longer followed stays out, and a longer run stretches it.

        Raises:
            RuntimeError: If the version or the domains differ.
        """
        if state.get("version") != _VERSION:
            raise RuntimeError(f"controller: saved by version {state.get('version')}, this is version {_VERSION}")
        if tuple(state["domains"]) != self._domain_set.names:
            raise RuntimeError(
                f"controller: saved for domains {state['domains']}, this run has {self._domain_set.names}"
            )
        if self._plan is not None and state.get("plan") is not None:
            self._plan = FollowedPlan.from_state_dict(state["plan"], num_steps=self._plan.num_steps)
        self._start_from(from_list(state["start_weights_K"]))
        self._weights_K = from_list(state["weights_K"])
        self._next_update = state["next_update"]
        self._last_moved_step = state["last_moved_step"]
        self._history = History.from_state_dict(state["history"])
        self._remembered = Remembered.from_state_dict(state["remembered"])
        self._overfit = OverfitWatch.from_state_dict(state.get("overfit"), num_domains=len(self._domain_set))
