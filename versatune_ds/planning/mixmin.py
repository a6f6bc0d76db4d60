"""The planner `mixmin`: the mixture of the single-domain models' predictions predicts the losses of training on it.

    l_j(w) = -mean over held-out tokens of domain j of log sum_i w_i p_i(token)

Each model runs once over the held-out rows; its token losses are cached, so that a killed plan continues, and another
one for the same models starts at once. Losses are calibrated (`mixture/planning/calibration.py`).

Shape legend: **N** mixtures, **K** domains, **E** held-out examples, **M** loss tokens, sorted by example.
"""

from __future__ import annotations

import logging

import numpy as np
from scipy.sparse import csr_array

from versatune_ds.mixture.planning.calibration import CalibratedPredictor
from versatune_ds.mixture.planning.predictor import Planner, PlanTask, Predicted, Predictor
from versatune_ds.mixture.statistics import ExampleLosses

logger = logging.getLogger(__name__)

MOST_TOKENS = 20_000
"""Loss tokens that mixtures are predicted on: a search asks for tens of thousands of mixtures."""
_CHUNK_NUMBERS = 5_000_000
"""Token probabilities in memory at once."""


class MixedProbabilities:
    """The losses of mixtures of predictions, not calibrated.

    Args:
        token_losses_KM: Loss of every loss token under each domain's model, in nats.
        base: Losses of the base model on the same examples.
        token_examples_M: The example of every token; tokens need not be sorted.
        seed: Chooses the examples, where there are more than `most_tokens` loss tokens.
        most_tokens: Most loss tokens that are used.
    """

    is_costly = False
    scale_error = 1.0
    """Root mean square of s_j - 1 over six domains each of the built-in corpus and of real rows."""

    def __init__(
        self,
        token_losses_KM: np.ndarray,
        *,
        base: ExampleLosses,
        token_examples_M: np.ndarray,
        seed: int = 0,
        most_tokens: int = MOST_TOKENS,
    ) -> None:
        chosen_E = _chosen_examples(base, seed=seed, most_tokens=most_tokens)
        self._base = base.select(chosen_E)
        self.base_losses_K = self._base.mean()
        # Tokens of the chosen examples, by example.
        place_E = np.full(len(base.num_loss_tokens_E), -1)
        place_E[chosen_E] = np.arange(len(chosen_E))
        place_M = place_E[token_examples_M]
        order_M = np.argsort(place_M, kind="stable")[np.count_nonzero(place_M < 0) :]
        losses_KM = token_losses_KM[:, order_M].astype(np.float32)
        # log sum_i w_i p_i = -smallest loss + log sum_i w_i exp(smallest loss - loss_i), which does not underflow.
        self._lowest_M = losses_KM.min(axis=0)
        self._ratios_KM = np.exp(self._lowest_M - losses_KM)
        # Sums by example and by domain as products: a search asks for tens of thousands of mixtures.
        tokens_E, domain_ids_E = self._base.num_loss_tokens_E, self._base.domain_ids_E
        ones_M, column_M = np.ones(len(order_M), dtype=np.float32), np.arange(len(order_M))
        self._token_is_of_EM = csr_array((ones_M, (place_M[order_M], column_M)), shape=(len(tokens_E), len(order_M)))
        self._is_of_EK = np.equal.outer(domain_ids_E, np.arange(base.num_domains)).astype(np.float64)
        self._base_residuals_E = self._residuals(self._base.loss_sum_E[None])[0]

    def predict(self, weights_NK: np.ndarray) -> Predicted:
        """Return the losses of N mixtures, and the standard errors of their changes from the base model's."""
        size = max(1, _CHUNK_NUMBERS // max(len(self._lowest_M), 1))
        sums = [self._example_sums(weights_NK[i : i + size]) for i in range(0, len(weights_NK), size)]
        sums_NE = np.concatenate(sums)
        return Predicted(losses_NK=self._means(sums_NE), stderrs_NK=self._change_errors(sums_NE))

    def _example_sums(self, weights_NK: np.ndarray) -> np.ndarray:
        """Return the summed loss of every example in N mixtures [N,E]."""
        smallest = np.finfo(np.float32).tiny
        mixed_NM = np.maximum(weights_NK.astype(np.float32) @ self._ratios_KM, smallest)
        np.log(mixed_NM, out=mixed_NM)
        return (self._token_is_of_EM @ (self._lowest_M - mixed_NM).T).T.astype(np.float64)

    def _means(self, sums_NE: np.ndarray) -> np.ndarray:
        """Return the mean losses [N,K]; NaN for a domain without loss tokens."""
        tokens_K = self._base.num_loss_tokens()
        return (sums_NE @ self._is_of_EK) / np.where(tokens_K > 0, tokens_K, np.nan)

    def _residuals(self, sums_NE: np.ndarray) -> np.ndarray:
        """Return how far each example's sum lies from its domain's mean [N,E]."""
        means_NK = np.nan_to_num(self._means(sums_NE))  # a NaN would spread over all domains in a product
        return sums_NE - means_NK[:, self._base.domain_ids_E] * self._base.num_loss_tokens_E

    def _change_errors(self, sums_NE: np.ndarray) -> np.ndarray:
        """Return `ExampleLosses.change_standard_error` of N mixtures against the base model [N,K]."""
        bearing_K = self._base.sum_by_domain(self._base.num_loss_tokens_E > 0)
        factor_K = np.where(bearing_K > 1, bearing_K / np.maximum(bearing_K - 1, 1), np.nan)
        squares_NK = (self._residuals(sums_NE) - self._base_residuals_E) ** 2 @ self._is_of_EK
        return np.sqrt(factor_K * squares_NK) / np.maximum(self._base.num_loss_tokens(), 1)


def _chosen_examples(base: ExampleLosses, *, seed: int, most_tokens: int) -> np.ndarray:
    """Return the numbers of the examples that mixtures are predicted on, rising: the same share of every domain."""
    num_tokens = int(base.num_loss_tokens_E.sum())
    share = min(1.0, most_tokens / max(num_tokens, 1))
    if share == 1.0:
        return np.arange(len(base.num_loss_tokens_E))
    logger.info("mixmin: %s of %s held-out tokens are used for the search", f"{most_tokens:,}", f"{num_tokens:,}")
    rng = np.random.default_rng(seed)
    chosen = []
    for k in range(base.num_domains):
        examples = np.flatnonzero(base.domain_ids_E == k)
        num = min(len(examples), max(2, round(share * len(examples))))
        chosen.append(rng.choice(examples, size=num, replace=False))
    return np.sort(np.concatenate(chosen))


def _make(task: PlanTask) -> Predictor:
    # torch is loaded here, so that planning without models starts fast.
    from versatune_ds.planning.kept_runs import check_losses, open_kept_runs

    runs = open_kept_runs(task)
    examples_M, base = runs.models.token_examples, runs.models.base
    token_losses = []
    for corner_K, name in zip(np.eye(base.num_domains), task.table.domain_set, strict=True):
        losses_M = runs.cached_token_losses(name, corner_K)
        token_losses.append(losses_M)
        if name in runs.folders:
            check_losses(task, _by_example(losses_M, examples_M, base), name=name)
    probabilities = MixedProbabilities(np.array(token_losses), base=base, token_examples_M=examples_M, seed=task.seed)
    return CalibratedPredictor(probabilities, task)


def _by_example(losses_M: np.ndarray, examples_M: np.ndarray, base: ExampleLosses) -> ExampleLosses:
    return ExampleLosses(
        loss_sum_E=np.bincount(examples_M, weights=losses_M, minlength=len(base.num_loss_tokens_E)),
        num_loss_tokens_E=base.num_loss_tokens_E,
        domain_ids_E=base.domain_ids_E,
        num_domains=base.num_domains,
    )


MIXMIN = Planner(
    name="mixmin",
    make=_make,
    needs="models",
    explain="the losses of a run on a mixture as those of the single-domain models' token probabilities, mixed",
    source="MixMin, arXiv 2502.10510",
    differences=(
        "The paper finds the mixture by exponentiated gradient; here the search of all planners takes its place, and "
        "finds the same one where there are no bounds. Losses are calibrated with the runs on single domains and "
        "on a mixture, and what a longer run adds is taken from the planner transfer."
    ),
)
