"""Try a recipe's mixture section without training: on synthetic learners, or on recorded losses.

Domains, sizes and draw rate are those of the recipe's prepared data, and the controller is the one of training. Only
the losses are not learned.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from versatune_ds.config import RunConfig, load_config
from versatune_ds.config.load import Recipe
from versatune_ds.config.unread_settings import unread_settings
from versatune_ds.data.prepare.domains import PreparedData
from versatune_ds.domains import DomainSet
from versatune_ds.mixture.explain import simulation_text, sweep_text
from versatune_ds.mixture.offline.recorded_losses import read_losses
from versatune_ds.mixture.offline.simulate import Simulation, simulate, simulate_losses, sweep_overrides
from versatune_ds.training.length.run_length import with_steps
from versatune_ds.training.mixture_start import domain_sizes, recipe_supply
from versatune_ds.training.prepared_data import prepare_recipe
from versatune_ds.training.saved_model import load_recipe

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Learner:
    """Where the losses of a simulation come from.

    Attributes:
        losses_file: Recorded losses, as JSON lines or a decisions.jsonl; None means a synthetic learner.
        num_steps: Steps a synthetic learner trains; None takes the recipe's.
        seed: Which synthetic learner.
        noise: Relative standard error of a measured change.
    """

    losses_file: Path | None = None
    num_steps: int | None = None
    seed: int = 0
    noise: float = 0.0

    def __post_init__(self) -> None:
        """Check the values; raise ValueError with the option."""
        if self.num_steps is not None and (self.num_steps < 1 or self.losses_file is not None):
            raise ValueError(f"--steps {self.num_steps}: expected 1 or more, and no --losses, which has its own steps")
        if self.seed < 0 or self.noise < 0:
            raise ValueError(f"--seed {self.seed}, --noise {self.noise}: expected neither below 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """The simulations of one or several settings, by a label of what differs."""

    domain_set: DomainSet
    simulations: dict[str, Simulation]

    @property
    def text(self) -> str:
        """Return one simulation in full, or several as one line each."""
        if len(self.simulations) > 1:
            return sweep_text(self.simulations, domain_set=self.domain_set)
        return simulation_text(self.only, domain_set=self.domain_set)

    @property
    def only(self) -> Simulation:
        """Return the simulation, where there is one setting."""
        (simulation,) = self.simulations.values()
        return simulation


def simulate_recipe(
    recipe: Recipe, overrides: Sequence[str] = (), *, learner: Learner, sweeps: Sequence[str] = ()
) -> Trial:
    """Simulate a recipe under one setting, or under every combination of a sweep.

    Args:
        recipe: YAML file, its content, or a config.
        overrides: `key=value` texts.
        learner: Where the losses come from.
        sweeps: Texts `mixture.key=value,value,...`.

    Raises:
        ValueError: If the recipe, its data, a losses file (with its line) or a swept key is wrong.
    """
    # Another key than one of the mixture would need other data or steps.
    for sweep in sweeps:
        if not sweep.startswith("mixture."):
            raise ValueError(f"--sweep {sweep}: expected a key of mixture, for example mixture.sigma=0.1,0.3,1")
    configs = {" ".join(swept): load_config(recipe, [*overrides, *swept]) for swept in sweep_overrides(sweeps)}
    for line in dict.fromkeys(line for config in configs.values() for line in unread_settings(config)):
        logger.warning("%s", line)
    data = prepare_recipe(load_recipe(recipe, overrides))
    simulations = {label: _simulate(config, data, learner=learner) for label, config in configs.items()}
    return Trial(domain_set=data.domain_set, simulations=simulations)


def _simulate(config: RunConfig, data: PreparedData, *, learner: Learner) -> Simulation:
    sizes_K = domain_sizes(data, unit=config.mixture.weight_unit)
    supply = recipe_supply(config, data)
    if learner.losses_file is not None:
        records = read_losses(learner.losses_file, domain_set=data.domain_set)
        return simulate_losses(config.mixture, records, domain_set=data.domain_set, sizes_K=sizes_K, supply=supply)
    return simulate(
        config.mixture,
        domain_set=data.domain_set,
        num_steps=learner.num_steps or with_steps(config, data).train.steps,
        sizes_K=sizes_K,
        supply=supply,
        seed=learner.seed,
        noise=learner.noise,
    )
