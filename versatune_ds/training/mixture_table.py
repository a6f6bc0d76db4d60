"""Show, before training, what the mixture will draw and how often it will repeat itself.

Shape legend: **K** domains.
"""

from __future__ import annotations

import numpy as np

from versatune_ds.config import RunConfig
from versatune_ds.data.order.supply import epochs_at_end
from versatune_ds.data.prepare.domains import PreparedData
from versatune_ds.text_table import text_table
from versatune_ds.training.mixture_start import domain_sizes, recipe_supply


def mixture_table(config: RunConfig, data: PreparedData, weights_K: np.ndarray) -> str:
    """Return one line a domain: starting weight, examples, tokens, and the passes over it by the end of the run.

    The forecast holds for these weights; the controller moves them. A domain that would pass
    `data.max_epochs_per_domain` is marked: its share goes to the others from then on.
    """
    num_examples_K = domain_sizes(data, unit="examples")
    num_tokens_K = domain_sizes(data, unit="tokens")
    epochs_K = forecast_epochs(config, data, weights_K)
    limit = config.data.max_epochs_per_domain
    rows = []
    for i, name in enumerate(data.domain_set):
        mark = f"ends at {limit:g}" if limit is not None and epochs_K[i] > limit else ""
        sizes = (f"{num_examples_K[i]:,.0f}", f"{num_tokens_K[i]:,.0f}")
        rows.append((name, f"{weights_K[i]:.3f}", *sizes, f"{epochs_K[i]:.2f}", mark))
    return text_table(("domain", "weight", "examples", "tokens", "epochs", ""), rows)


def forecast_epochs(config: RunConfig, data: PreparedData, weights_K: np.ndarray) -> np.ndarray:
    """Return the passes over each domain by the end of the run if the weights stay, float64 [K]. Approximate."""
    size_K = domain_sizes(data, unit="examples")
    supply = recipe_supply(config, data)
    return epochs_at_end(
        weights_K,
        num_units=supply.units_per_step * config.train.steps,
        mean_cost_K=supply.sizes_K / np.maximum(size_K, 1),
        size_K=size_K,
    )
