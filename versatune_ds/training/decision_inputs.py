"""Collect what enters a decision besides losses: live control, remaining data, the cost of measuring.

All of it is written into the decision. So a killed run that resumes takes the inputs of the steps it repeats from its
own record, and reads the control file after them: it decides as it did before.

Shape legend: **K** domains.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from versatune_ds.config import RunConfig
from versatune_ds.data.prepare.domains import PreparedData
from versatune_ds.domains import DomainSet
from versatune_ds.mixture.inputs import Inputs, read_control_or_keep, supply_caps
from versatune_ds.mixture.policies import Policy
from versatune_ds.run_folder.json_lines import json_lines
from versatune_ds.run_folder.names import CONTROL_FILE, DECISIONS_FILE
from versatune_ds.training.mixture_start import domain_sizes

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SupplyLimits:
    """How much data every domain may serve in the entire run.

    Attributes:
        num_examples_K: int64, examples of each domain.
        units_per_pass_K: float64, units (of `mixture.weight_unit`) of one pass over each domain.
        max_epochs: Passes a domain may make.
        num_steps: Optimizer steps of the run.
    """

    num_examples_K: np.ndarray
    units_per_pass_K: np.ndarray
    max_epochs: float
    num_steps: int

    def caps(self, *, step: int, draws_K: np.ndarray, units_drawn: float) -> np.ndarray | None:
        """Return the largest weight [K] each domain can have to the end of the run, None before the first step.

        Approximate: every example counts as an average one of its domain, every step draws as much as those before,
        and steps already planned count as still to come.

        Example: 100 examples of 10 tokens, 2 epochs, 150 drawn: 500 tokens remain. Steps 1 to 10 of 20 drew 4000,
        so 4000 more will be drawn: the domain can serve 500 / 4000 = 0.125 of them.

        Args:
            step: Optimizer steps done.
            draws_K: int64, examples of each domain drawn in them.
            units_drawn: Units of all domains drawn in them.
        """
        if step == 0:
            return None
        passes_left_K = self.max_epochs - draws_K / np.maximum(self.num_examples_K, 1)
        units_left = units_drawn / step * (self.num_steps - step)
        return supply_caps(passes_left_K * self.units_per_pass_K, units_left=units_left)


class DecisionInputs:
    """Read the control file and count the data at each decision; rank 0 only.

    Args:
        limits: How much data the run may use; None where it may repeat data freely or no weight ever moves.
    """

    def __init__(self, run_dir: Path, *, domain_set: DomainSet, policy: Policy, limits: SupplyLimits | None) -> None:
        self._run_dir = run_dir
        self._domain_set = domain_set
        self._policy = policy
        self._limits = limits
        self._active = Inputs()
        self._recorded: dict[int, Inputs] = {}

    def at(self, step: int, *, draws_K: np.ndarray, units_drawn: float, interval_stretch: int = 1) -> Inputs:
        """Return the inputs of the decision after a step; if the control file has mistakes, the previous one is used.

        `draws_K` and `units_drawn` are as in `SupplyLimits.caps`. The clock asks for `interval_stretch`; a repeated
        decision keeps its recorded one.
        """
        recorded = self._recorded.get(step)
        if recorded is not None:
            logger.info("after step %d: inputs as decided before the run was interrupted", step)
            return self._with_control_logged(recorded)
        control_file = self._run_dir / CONTROL_FILE
        read = read_control_or_keep(control_file, kept=self._active, domain_set=self._domain_set)
        control = self._with_control_logged(read)
        inputs = replace(control, interval_stretch=interval_stretch)
        if self._limits is None:
            return inputs
        caps_K = self._limits.caps(step=step, draws_K=draws_K, units_drawn=units_drawn)
        return inputs.with_supply_caps(caps_K, domain_set=self._domain_set)

    def _with_control_logged(self, inputs: Inputs) -> Inputs:
        """Return inputs and store their control; a change of it is logged."""
        control = inputs.control()
        if control != self._active:
            logger.info("live control: %s", json.dumps(control.to_dict()) if control.to_dict() else "none any more")
            if unread := control.unread_rates(self._policy):
                logger.warning("live control: policy %s does not read %s", self._policy.name, ", ".join(unread))
        self._active = control
        return inputs

    def resume_after(self, step: int) -> None:
        """Restore from the run's record the control that was active at a step, and the inputs of later decisions.

        Call it before the record is cut back to that step. A record that is missing or corrupt restores nothing.
        """
        decided = _recorded_inputs(self._run_dir / DECISIONS_FILE)
        before = [inputs for decided_at_step, inputs in decided.items() if decided_at_step <= step]
        self._active = before[-1].control() if before else Inputs()
        self._recorded = {at_step: inputs for at_step, inputs in decided.items() if at_step > step}


def decision_inputs(config: RunConfig, data: PreparedData) -> DecisionInputs:
    """Return the source of a run's inputs. Supply limits a policy that moves the weights, never a fixed mixture."""
    limits, max_epochs = None, config.data.max_epochs_per_domain
    is_as_given = config.mixture.paper or config.mixture.rule.is_fixed
    if max_epochs is not None and not is_as_given:
        limits = SupplyLimits(
            num_examples_K=domain_sizes(data, unit="examples"),
            units_per_pass_K=domain_sizes(data, unit=config.mixture.weight_unit),
            max_epochs=max_epochs,
            num_steps=config.train.steps,
        )
    return DecisionInputs(config.run_dir, domain_set=data.domain_set, policy=config.mixture.rule, limits=limits)


def _recorded_inputs(path: Path) -> dict[int, Inputs]:
    """Return {step: inputs} of the decisions in a file, up to a line that a kill left unfinished."""
    decided: dict[int, Inputs] = {}
    for line in json_lines(path):
        try:
            decision = line.value or {}
            decided[decision["decided_at_step"]] = Inputs.from_dict(decision["inputs"])
        except (ValueError, KeyError, TypeError):
            break
    return decided
