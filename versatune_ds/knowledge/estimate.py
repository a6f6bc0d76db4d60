"""Turn labels into shares: how much of what the model writes belongs to each domain, with intervals.

No sequence is dropped. A label is a probability for every domain, and what is missing to 1 (an answer that could not be
read, an empty sequence, "none of these") is mass that could belong to any domain: it widens every interval by as much.

Prior shift. A classifier fitted with equal shares estimates p(j|x) for equal shares; where domains overlap, the mean of
such labels leans towards equal. The shares under which labels and mean agree are found by EM: label each sequence with
the shares so far, p_ij proportional to pi_j p(j|x_i), take the mean as the next shares. At its end P_j = mean_i p_ij as
docs/method.md section 1 has it, with labels that are calibrated for the shares themselves.

Source: VersaTune (arXiv 2411.11266), knowledge detection; docs/method.md section 1. EM: Saerens, Latinne, Decaestecker
2002, equations 2.11-2.12. Differences from the paper: soft labels are moved to the detected shares, which
`detect.prior_shift` switches off; unread answers stay in; intervals; shares of tokens beside those of sequences.

No share is zero. A share is the posterior mean under Jeffreys' prior, half a sequence a domain (Dirichlet 1/2): with n
sequences (n s_j + 1/2) / (n + K / 2). A domain that none of 64 sequences belongs to has 0.5 / 67 = 0.0075 of six, and a
share moves by no more than K / (2 n + K): 0.3 % of 1,024.

A domain that no sequence belongs to has share 0 in every bootstrap draw, which does not show how rare it is. So no
interval ends below the Clopper-Pearson bound for 0 of n, 1 - 0.025^(1/n), about 3.7 / n; and none begins above
0.025^(1/n), the bound for n of n. n is Kish's effective number of sequences, (sum w)^2 / sum w^2, where w is what a
sequence counts: its labelled mass, times its tokens where shares are of tokens.

Not covered by these intervals: errors of the labeller itself. They show how the shares would scatter if as many
sequences were drawn again; `reliability/source_error.py` adds the labeller's errors.

Shape legend: **K** domains, **N** sequences, **R** bootstrap draws.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from versatune_ds.domains import DomainSet

_EM_STEPS = 200
_EM_TOLERANCE = 1e-7
_DRAWS_AT_A_TIME = 50
_PRIOR_COUNT = 0.5
"""Sequences that every domain is given beforehand: Jeffreys' prior."""
_TAIL = 0.025
"""What is outside a 95 % interval on either side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """The domains' shares with 95 % intervals, all float64 [K]."""

    shares_K: np.ndarray
    lower_K: np.ndarray
    upper_K: np.ndarray
    unparsed: float = 0.0
    """Share of what was counted that has no domain; every interval is as much wider."""

    @property
    def half_widths_K(self) -> np.ndarray:
        """Return half the width of every interval."""
        return (self.upper_K - self.lower_K) / 2

    def intervals(self, names: DomainSet) -> dict[str, list[float]]:
        """Return {domain: [lower, upper]}."""
        pairs = zip(names, self.lower_K.tolist(), self.upper_K.tolist(), strict=True)
        return {name: [low, high] for name, low, high in pairs}


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Shares by sequences and by tokens, with what could not be labelled."""

    sequences: Shares
    tokens: Shares
    unparsed_rate: float
    """Share of the sequences that has no domain."""
    confidence: float
    """Mean probability of the likeliest domain, over what was labelled."""


def shares_of(labels_NK: np.ndarray, size_N: np.ndarray, *, prior_shift: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the domains' shares of the sequences and of their sizes, as they were counted: without the prior.

    Args:
        labels_NK: Probabilities [N, K]; a row sums to 1, or to less by what is unparsed.
        size_N: Tokens of every sequence.
        prior_shift: Whether the labels assume equal shares and are moved to those found.

    Returns:
        Two float64 arrays [K], each summing to 1.

    Raises:
        RuntimeError: If no sequence has a label.
    """
    counts = np.ones((1, len(labels_NK)))
    by_sequence_RK, by_size_RK = shares_of_draws(labels_NK, size_N, counts, prior_shift=prior_shift)
    return by_sequence_RK[0], by_size_RK[0]


def estimate(
    labels_NK: np.ndarray, num_tokens_N: np.ndarray, *, prior_shift: bool, seed: int, num_draws: int = 1000
) -> Estimate:
    """Return the shares, none of them zero, with their intervals.

    The shares are posterior means, the intervals come from a bootstrap of `num_draws`; for the rest see `shares_of`.
    """
    by_sequence_K, by_token_K = shares_of(labels_NK, num_tokens_N, prior_shift=prior_shift)
    # Bootstrap, some draws at a time for memory: counts_RN[r, n] is how often draw r has sequence n.
    rng = np.random.default_rng(seed)
    draws: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    num_sequences, mass_N = len(labels_NK), labels_NK.sum(axis=1)
    for start in range(0, num_draws, _DRAWS_AT_A_TIME):
        num = min(_DRAWS_AT_A_TIME, num_draws - start)
        counts_RN = rng.multinomial(num_sequences, np.full(num_sequences, 1 / num_sequences), size=num)
        counts_RN = counts_RN[counts_RN @ mass_N > 0]  # with few sequences, a draw may have none that is labelled
        found = shares_of_draws(
            labels_NK, num_tokens_N, counts_RN.astype(np.float64), prior_shift=prior_shift, start_K=by_sequence_K
        )
        for kept, shares_RK in zip(draws, found, strict=True):
            kept.append(shares_RK)
    return Estimate(
        sequences=_with_bounds(by_sequence_K, np.concatenate(draws[0]), mass_N=mass_N, size_N=np.ones(num_sequences)),
        tokens=_with_bounds(by_token_K, np.concatenate(draws[1]), mass_N=mass_N, size_N=num_tokens_N),
        unparsed_rate=_unparsed(float(mass_N.mean())),
        confidence=float(labels_NK.max(axis=1).sum() / mass_N.sum()),
    )


def unknown_estimate(num_domains: int) -> Estimate:
    """Return what is known when no sequence has a label: the prior alone, equal shares that may each be 0 or 1."""
    shares = Shares(
        shares_K=np.full(num_domains, 1.0 / num_domains),
        lower_K=np.zeros(num_domains),
        upper_K=np.ones(num_domains),
        unparsed=1.0,
    )
    return Estimate(sequences=shares, tokens=shares, unparsed_rate=1.0, confidence=0.0)


def _unparsed(mass: float) -> float:
    """Return 1 - mass, at least 0: a mean of masses of 1 may round to more than 1."""
    return max(0.0, 1.0 - mass)


def _with_bounds(shares_K: np.ndarray, draws_RK: np.ndarray, *, mass_N: np.ndarray, size_N: np.ndarray) -> Shares:
    """Return posterior shares with the middle 95 % of the draws, at least as wide as for a domain in none or in all.

    What is unparsed could be any domain's: the intervals are widened by all of it.
    """
    lower_K, upper_K = np.quantile(draws_RK, (_TAIL, 1.0 - _TAIL), axis=0)
    num_effective = effective_number(mass_N * size_N)
    of_all = _TAIL ** (1.0 / num_effective)
    shares_K = posterior_mean(shares_K, num_sequences=num_effective)
    lower_K, upper_K = np.minimum(lower_K, of_all), np.maximum(upper_K, 1.0 - of_all)
    unparsed = _unparsed(float(mass_N @ size_N / size_N.sum()))
    return Shares(
        shares_K=shares_K,
        lower_K=np.minimum(lower_K, shares_K) * (1.0 - unparsed),
        upper_K=np.minimum(np.maximum(upper_K, shares_K) * (1.0 - unparsed) + unparsed, 1.0),
        unparsed=unparsed,
    )


def posterior_mean(shares_K: np.ndarray, *, num_sequences: float) -> np.ndarray:
    """Return shares counted in `num_sequences` sequences as posterior means under Jeffreys' prior, float64 [K].

    Example: shares 1 and 0 of 9 sequences are 9.5 / 10 and 0.5 / 10.
    """
    return (num_sequences * shares_K + _PRIOR_COUNT) / (num_sequences + _PRIOR_COUNT * len(shares_K))


def effective_number(weight_N: np.ndarray) -> float:
    """Return how many equally weighted draws scatter as much as these: (sum w)^2 / sum w^2, from 1 to N.

    Example: weights 1, 1 and 2 count as 16 / 6 = 2.67 draws.
    """
    return float(weight_N.sum() ** 2 / np.sum(weight_N**2))


def shares_of_draws(
    labels_NK: np.ndarray,
    size_N: np.ndarray,
    counts_RN: np.ndarray,
    *,
    prior_shift: bool,
    start_K: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return shares by sequence and by size, [R, K] each, of draws that have sequence n `counts_RN[r, n]` times."""
    mass_N = labels_NK.sum(axis=1)
    if not np.all(counts_RN @ mass_N > 0):
        raise RuntimeError("no sequence has a label: every one is empty or its answer could not be read")
    if not prior_shift:
        return _normalised(counts_RN @ labels_NK), _normalised((counts_RN * size_N) @ labels_NK)
    # EM: label each sequence with the shares so far, take the mean as the next shares, until they stay the same.
    num_domains = labels_NK.shape[1]
    first_K = np.full(num_domains, 1 / num_domains) if start_K is None else start_K
    shares_RK = np.tile(first_K, (len(counts_RN), 1))
    for _ in range(_EM_STEPS):
        # p_rnk = shares_rk labels_nk / sum_k, so the sum over n of counts times p is shares times one matrix product.
        scale_RN = mass_N / np.maximum(shares_RK @ labels_NK.T, np.finfo(np.float64).tiny)
        updated_RK = _normalised(shares_RK * ((counts_RN * scale_RN) @ labels_NK))
        is_done = np.max(np.abs(updated_RK - shares_RK)) < _EM_TOLERANCE
        shares_RK = updated_RK
        if is_done:
            break
    scale_RN = mass_N / np.maximum(shares_RK @ labels_NK.T, np.finfo(np.float64).tiny)
    return shares_RK, _normalised(shares_RK * ((counts_RN * size_N * scale_RN) @ labels_NK))


def _normalised(values_RK: np.ndarray) -> np.ndarray:
    return values_RK / values_RK.sum(axis=1, keepdims=True)
