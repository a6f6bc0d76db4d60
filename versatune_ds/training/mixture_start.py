"""Say where a recipe's mixture starts: how much data each domain has, and the weights that follow.

The one idea: training, inspect, simulate and replay ask here, so that all of them start from the same weights.

Shape legend: **K** domains.
"""

from __future__ import annotations

import numpy as np

from versatune_ds.config import RunConfig
from versatune_ds.data.order.sampler import WeightUnit
from versatune_ds.data.prepare.domains import PreparedData
from versatune_ds.mixture.offline.outlook import Supply
from versatune_ds.mixture.settings import guarded_start
from versatune_ds.mixture.start import starting_weights


def domain_sizes(data: PreparedData, *, unit: WeightUnit) -> np.ndarray:
    """Return the size of one pass over each domain's training data, float64 [K], in the unit of the weights."""
    if unit == "examples":
        return np.array([shards.num_examples for shards in data.train], dtype=np.float64)
    columns = [shards.lengths if unit == "tokens" else shards.loss_lengths for shards in data.train]
    return np.array([int(column.sum(dtype=np.int64)) for column in columns], dtype=np.float64)


def recipe_weights(config: RunConfig, data: PreparedData) -> np.ndarray:
    """Return the weights with which a recipe begins, float64 [K]: those it names, none below the safeguards' floor.

    Raises:
        ValueError: As `named_weights` does.
    """
    return guarded_start(config.mixture, named_weights(config, data), domain_set=data.domain_set)


def named_weights(config: RunConfig, data: PreparedData) -> np.ndarray:
    """Return the weights of step 0 as a recipe names them, float64 [K].

    Raises:
        ValueError: If the prior is no distribution over the domains, a file is missing, or the target is unknown.
    """
    sizes_K = domain_sizes(data, unit=config.mixture.weight_unit)
    return starting_weights(config.mixture, domain_set=data.domain_set, sizes_K=sizes_K)


def recipe_supply(config: RunConfig, data: PreparedData) -> Supply:
    """Return how much data a recipe has and how fast it is drawn.

    Approximate: rows are taken as full, and for other units than tokens an average token of all the data is drawn.
    """
    sizes_K = domain_sizes(data, unit=config.mixture.weight_unit)
    units_per_token = sizes_K.sum() / max(domain_sizes(data, unit="tokens").sum(), 1.0)
    return Supply(
        sizes_K=sizes_K,
        units_per_step=config.train.rows_per_batch * config.data.row_tokens * units_per_token,
        max_epochs=config.data.max_epochs_per_domain,
    )
