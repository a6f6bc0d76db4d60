"""Turn a length in `train.epochs` into one in steps, once the data are known.

Everything after the data are prepared reads `train.steps` alone: the config that `with_steps` returns has no epochs,
and records in `train.steps_from` where its steps come from. So a run that resumes keeps its number of steps, even
where `resume.allow` lets its data change.
"""

from __future__ import annotations

import logging
import math

import numpy as np

from versatune_ds.config import RunConfig, TrainConfig
from versatune_ds.config.load import parse_section
from versatune_ds.data.prepare.domains import PreparedData
from versatune_ds.domains import DomainSet
from versatune_ds.mixture.offline.outlook import Supply
from versatune_ds.training.mixture_start import recipe_supply, recipe_weights
from versatune_ds.training.prepared_data import prepare_recipe

logger = logging.getLogger(__name__)

_ROUNDING = 1e-9
"""Relative error of a division that must not add a step: 3 passes of 10 steps are 30 steps, not 31."""


def steps_of_epochs(
    train: TrainConfig, *, supply: Supply, weights_K: np.ndarray | None, domain_set: DomainSet
) -> tuple[int, str]:
    """Return the steps that a length in epochs is, rounded up, and what one epoch is in words.

    Approximate: rows count as full. The words are for the log, such as `one is 96.4 steps of all data`.

    Example: domains of 300 and 100 tokens, 40 tokens a step. One epoch of all is 400 / 40 = 10 steps. With a starting
    weight of .5, one of the smallest is 100 / (.5 * 40) = 5 steps.

    Args:
        train: A train section with epochs.
        supply: How much data there is.
        weights_K: Weights of step 0; only read where `epochs_of` is smallest.
        domain_set: The domains.

    Raises:
        ValueError: If the smallest domain has no weight at step 0, so that no number of steps is a pass over it.
    """
    assert train.epochs is not None, "there is something to resolve"
    if train.epochs_of == "all":
        steps_per_epoch, what = supply.sizes_K.sum() / supply.units_per_step, "all data"
    else:
        assert weights_K is not None, "needed for the smallest domain"
        k = int(np.argmin(supply.sizes_K))
        name, weight = domain_set.names[k], float(weights_K[k])
        if weight <= 0:
            raise ValueError(
                f"train.epochs_of: smallest: the smallest domain, {name}, has weight 0 at step 0 and is never read; "
                "give it weight (mixture.prior), or use train.epochs_of=all"
            )
        steps_per_epoch = supply.sizes_K[k] / (weight * supply.units_per_step)
        what = f"the smallest domain, {name}, at its starting weight {weight:.3f}"
    num_steps = max(1, math.ceil(train.epochs * float(steps_per_epoch) * (1 - _ROUNDING)))
    return num_steps, f"one is {steps_per_epoch:,.1f} steps over {what}"


def with_steps(config: RunConfig, data: PreparedData, *, recorded: TrainConfig | None = None) -> RunConfig:
    """Return a config whose length is in steps: unchanged, or with its epochs of these data as steps, which is logged.

    Args:
        config: A recipe.
        data: Its prepared data.
        recorded: The train section of the run that resumes; if it began with the same epochs, it keeps its steps.

    Raises:
        ValueError: If the epochs cannot be counted, or if warm-up and decay do not fit into the steps.
    """
    train = config.train
    if train.epochs is None:
        return config
    needs_weights = train.epochs_of == "smallest"
    weights_K = recipe_weights(config, data) if needs_weights else None
    supply = recipe_supply(config, data)
    steps, words = steps_of_epochs(train, supply=supply, weights_K=weights_K, domain_set=data.domain_set)
    if recorded is not None and recorded.steps_from == train.length_in_epochs:
        now = f"; of the data as they are now they would be {steps:,}" if recorded.steps != steps else ""
        logger.info("train.epochs: %s = %s steps, as the run began%s", train.length_in_epochs, recorded.steps, now)
        steps = recorded.steps
    else:
        logger.info("train.epochs: %s = %s steps (%s)", train.length_in_epochs, steps, words)
    return config.with_train(with_length(train, steps=steps))


def with_prepared_length(config: RunConfig) -> RunConfig:
    """Return the same for a command that does not need the data otherwise: they are prepared only to count epochs."""
    return config if config.train.epochs is None else with_steps(config, prepare_recipe(config))


def with_length(train: TrainConfig, *, steps: int) -> TrainConfig:
    """Return the section with steps in the place of epochs, checked again: warm-up and decay must fit into them."""
    values = train.model_dump(mode="json", exclude_unset=True)
    length = {"steps": steps, "epochs": None, "epochs_of": "all", "steps_from": train.length_in_epochs}
    return parse_section({**values, **length}, TrainConfig)
