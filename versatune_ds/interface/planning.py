"""Before training, from Python: prepare data, try the mixture without a model, plan it."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from versatune_ds.config.load import Recipe, load_config_with_policy
from versatune_ds.interface import frames
from versatune_ds.log import shown_log
from versatune_ds.mixture.decision import Decision
from versatune_ds.mixture.explain import decision_at
from versatune_ds.mixture.planning.goal import PURPOSES, Purpose
from versatune_ds.mixture.planning.plan_file import Plan
from versatune_ds.mixture.policies import Policy
from versatune_ds.report.series import RunSeries
from versatune_ds.training.saved_model import load_recipe

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class Simulation:
    """What the controller decided on losses that were not learned. Losses are in nats per loss token."""

    text: str
    """The table that `versatune simulate` prints."""
    warnings: tuple[str, ...]
    """What is likely to go wrong in a run with these settings."""
    _decisions: tuple[Decision, ...]
    _series: RunSeries

    def __repr__(self) -> str:
        return f"Simulation({len(self._decisions)} decisions, {', '.join(self._series.domain_names)})"

    @property
    def domain_names(self) -> tuple[str, ...]:
        """Return the domains in the order of the recipe."""
        return self._series.domain_names

    @property
    def weights(self) -> pd.DataFrame:
        """Return the weights by the first step they apply to, as `Run.weights`."""
        return frames.weights_frame(self._series)

    @property
    def decisions(self) -> pd.DataFrame:
        """Return one row a decision, as `Run.decisions`."""
        return frames.decisions_frame(self._series.decisions)

    @property
    def domains(self) -> pd.DataFrame:
        """Return one row a decision and domain, as `Run.domains`."""
        return frames.domains_frame(self._series.decisions)

    def decision(self, step: int | None = None) -> Decision:
        """Return the last decision made at or before a step; the newest one by default.

        Raises:
            ValueError: If the step lies before the first decision.
        """
        return self._decisions[-1] if step is None else decision_at(self._decisions, step)


def prepare(config: Recipe, *, overrides: Sequence[str] = (), quiet: bool = False) -> pd.DataFrame:
    """Tokenise a recipe's data, or find what was tokenised before, and return the counts.

    Args:
        config: Recipe as a YAML file, a nested mapping, or a `RunConfig`.
        overrides: Texts `key=value` with dotted keys.
        quiet: Whether only warnings are shown.

    Returns:
        One row a domain and split (`train`, `valid`), which are the index. Columns: numbers of files, rows (read, bad,
        without loss, long, duplicate, also in train), examples and tokens (all, with loss, longest, cut).

    Raises:
        ValueError: For a mistake in the recipe, a file or its rows.
    """
    import pandas as pd

    with shown_log(level=_level(quiet)):
        resolved = load_recipe(config, overrides)
        from versatune_ds.training.prepared_data import prepare_recipe  # imports torch

        counts = prepare_recipe(resolved).counts
    frame = pd.DataFrame([dataclasses.asdict(split) for split in counts]).drop(columns="remarks")
    return frame.set_index(["domain", "split"])


def simulate(
    config: Recipe,
    *,
    overrides: Sequence[str] = (),
    policy: Policy | None = None,
    losses: str | Path | None = None,
    steps: int | None = None,
    noise: float = 0.0,
    seed: int = 0,
    quiet: bool = False,
) -> Simulation:
    """Run the controller of training without a model: on a synthetic learner, or on recorded losses.

    Args:
        config: Recipe as a YAML file, a nested mapping, or a `RunConfig`; its data are prepared for their sizes.
        overrides: Texts `key=value` with dotted keys.
        policy: Rule that decides the weights, in the place of `mixture.policy`.
        losses: File of recorded losses, such as a run's decisions.jsonl; by default a synthetic learner.
        steps: Optimizer steps of the synthetic run; by default `train.steps`.
        noise: Relative standard error of a measured change, such as 0.004.
        seed: Seed of the synthetic learner.
        quiet: Whether only warnings are shown.

    Raises:
        ValueError: For a mistake in the recipe, its data or the file of losses.
    """
    with shown_log(level=_level(quiet)):
        resolved = load_config_with_policy(config, overrides, policy)
        from versatune_ds.preflight.simulate_recipe import Learner, simulate_recipe  # imports torch

        learner = Learner(
            losses_file=None if losses is None else Path(losses).expanduser(), num_steps=steps, seed=seed, noise=noise
        )
        trial = simulate_recipe(resolved, learner=learner)
    decisions = trial.only.decisions
    series = RunSeries(
        run_dir=resolved.run_dir,
        domain_names=trial.domain_set.names,
        metrics=(),
        decisions=tuple(decision.to_dict() for decision in decisions),
    )
    return Simulation(trial.text, trial.only.warnings, decisions, series)


def plan(
    config: Recipe,
    *,
    overrides: Sequence[str] = (),
    purpose: Purpose = "balanced",
    bounds: Mapping[str, float] | None = None,
    bound_all: float | None = None,
    planner: str | None = None,
    steps: int | None = None,
    transfer: str | Path | None = None,
    output: str | Path | None = None,
    quiet: bool = False,
) -> Plan:
    """Plan the mixture before training from a transfer.json, and write it as plan.json with a picture beside it.

    `versatune reference` measures transfer.json. Nothing is trained here.

    Args:
        config: Recipe as a YAML file, a nested mapping, or a `RunConfig`.
        overrides: Texts `key=value` with dotted keys.
        purpose: `mean`: the lowest mean loss. `balanced`: the same, where no domain rises by more than the worst one
            does on equal shares. `target`: the largest gain of `mixture.target`, the others within their bounds.
        bounds: Largest rise of a domain's loss as a share of the base model's, by domain, such as `{"law": 0.02}`.
        bound_all: The same for all other domains; by default none for mean, the largest rise on equal shares for
            balanced, 0.02 for target.
        planner: How losses are predicted, `transfer` by default.
        steps: Optimizer steps of the planned run; by default `train.steps`.
        transfer: transfer.json to read; by default where `versatune reference` writes it.
        output: plan.json to write; by default NAME-plan.json in the folder of the runs.
        quiet: Whether only warnings are shown.

    Raises:
        ValueError: For a mistake in the recipe, an argument or transfer.json.
    """
    from versatune_ds.planning.plan_command import PlanOptions, plan_recipe
    from versatune_ds.planning.planners import DEFAULT

    if purpose not in PURPOSES:
        raise ValueError(f"purpose={purpose!r}: expected {', '.join(PURPOSES)}")
    options = PlanOptions(
        purpose=purpose,
        bounds=tuple(f"{name}={bound}" for name, bound in (bounds or {}).items()),
        bound_all=bound_all,
        planner=planner or DEFAULT,
        num_steps=steps,
        transfer=None if transfer is None else Path(transfer).expanduser(),
        output=None if output is None else Path(output).expanduser(),
    )
    # Libraries of planners that run models print.
    with shown_log(level=_level(quiet)), contextlib.redirect_stdout(sys.stderr):
        planned, _ = plan_recipe(config, overrides, options=options)
    return planned


def _level(quiet: bool) -> int:
    return logging.WARNING if quiet else logging.INFO
