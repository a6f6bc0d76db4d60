"""Draw the fixed mixtures that show how much any mixture could gain: `static` of a comparison."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from versatune_ds.mixture.weights import project_to_bounds

SEED = 18
"""Of the draws: the same in every comparison, so that results of different policies meet the same mixtures."""
_DIGITS = 6


def static_label(number: int) -> str:
    """Return the label of a mixture, counted from 1: static01."""
    return f"static{number:02d}"


def draw_mixtures(
    names: Sequence[str], *, num: int, concentrations: Sequence[float], floor: float, cap: float
) -> dict[str, dict[str, float]]:
    """Return label to weights, drawn from Dirichlet distributions.

    Each mixture has its own seed, so that the first ones stay the same when more are asked for.

    Args:
        names: Domains.
        num: How many.
        concentrations: Taken in turn; 1 draws from the whole simplex evenly, more draws nearer to uniform.
        floor: Smallest weight, as in a plan.
        cap: Largest weight.
    """
    num_domains = len(names)
    lower_K, upper_K = np.full(num_domains, floor), np.full(num_domains, cap)
    mixtures = {}
    for n in range(num):
        rng = np.random.default_rng([SEED, n])
        drawn_K = rng.dirichlet(np.full(num_domains, concentrations[n % len(concentrations)]))
        weights_K = np.round(project_to_bounds(drawn_K, lower_K=lower_K, upper_K=upper_K), _DIGITS)
        weights_K[np.argmax(weights_K)] += 1.0 - weights_K.sum()
        mixtures[static_label(n + 1)] = dict(zip(names, np.round(weights_K, _DIGITS).tolist(), strict=True))
    return mixtures
