"""A synthetic learner whose losses respond to the mixture, to try settings in a second.

Each domain has a knowledge n, and its loss is a power law of n. Training on a domain adds to n (and a little to the
other domains' n); what is not trained fades. It is a caricature with the right signs: returns diminish, domains help
each other, neglect is forgotten. None of its numbers is a prediction.

Unit of n: tokens of the entire run, so a run adds 1 in total.

Shape legend: **K** domains.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LearningCurves:
    """A learner: l_j(n) = floor_j + scale_j * n_j ** -exponent_j."""

    floor_K: np.ndarray
    """Loss that no training removes, nats per loss token."""
    scale_K: np.ndarray
    """Loss above the floor at n = 1."""
    exponent_K: np.ndarray
    """How fast it falls."""
    start_K: np.ndarray
    """Knowledge at step 0, that of the base model."""
    transfer_KK: np.ndarray
    """Row i, column j: knowledge of j that one unit of training on i brings; 1 on the diagonal."""
    fading: float
    """Rate at which knowledge fades per unit of training on everything else."""

    def loss(self, knowledge_K: np.ndarray) -> np.ndarray:
        """Return the losses [K] of a state of knowledge [K], nats per loss token."""
        return self.floor_K + self.scale_K * knowledge_K**-self.exponent_K

    def trained(self, knowledge_K: np.ndarray, *, weights_K: np.ndarray, share_of_run: float) -> np.ndarray:
        """Return the knowledge [K] after a share of the run (1 = all of it) spent with fixed weights.

        n' = n * exp(-fading * share * (1 - min(s, 1))) + share * s,  s_j = sum_i P_i transfer_ij.
        """
        practice_K = weights_K @ self.transfer_KK
        faded_K = knowledge_K * np.exp(-self.fading * share_of_run * (1.0 - np.minimum(practice_K, 1.0)))
        return faded_K + share_of_run * practice_K

    def reference_losses(self, *, share_of_run: float) -> np.ndarray:
        """Return the losses [K] that training on each domain alone reaches."""
        alone = []
        for domain_id, only_K in enumerate(np.eye(len(self.start_K))):
            trained_K = self.trained(self.start_K, weights_K=only_K, share_of_run=share_of_run)
            alone.append(self.loss(trained_K)[domain_id])
        return np.array(alone)


def synthetic_curves(known_K: np.ndarray, *, seed: int = 0, reference_K: np.ndarray | None = None) -> LearningCurves:
    """Return a learner whose base model knows the domains roughly in proportion to the prior.

    Args:
        known_K: The prior, taken as the mixture that the base model was trained on.
        seed: Another seed gives other domains.
        reference_K: Reference losses [K]; the floors are set a little below them so that they mean something here.
    """
    num_domains = len(known_K)
    rng = np.random.default_rng([seed, num_domains])
    exponent_K = rng.uniform(0.1, 0.35, num_domains)
    start_K = 0.3 * known_K + 0.03 / num_domains
    floor_K = rng.uniform(0.8, 1.6, num_domains) if reference_K is None else 0.8 * reference_K
    start_loss_K = rng.uniform(2.0, 3.0, num_domains) if reference_K is None else 1.35 * reference_K
    transfer_KK = rng.uniform(0.0, 0.15, (num_domains, num_domains))
    np.fill_diagonal(transfer_KK, 1.0)
    return LearningCurves(
        floor_K=floor_K,
        scale_K=(start_loss_K - floor_K) * start_K**exponent_K,
        exponent_K=exponent_K,
        start_K=start_K,
        transfer_KK=transfer_KK,
        fading=1.5,
    )
