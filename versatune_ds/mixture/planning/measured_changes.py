"""What the runs of a transfer table say in logarithms, and how far a mixture lies from those that were trained.

Shape legend: **K** domains, **N** mixtures, **M** mixed runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from versatune_ds.mixture.planning.transfer_table import MeasuredRun, TransferTable

_SMALLEST_SHARE = 1e-4
"""Below it a domain counts as absent."""
_SMALLEST_LOSS = 0.01
"""Of the base model's: an error drawn may not take a loss to zero."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OwnRun:
    """The run on one domain alone, as far as it concerns that domain."""

    tokens_per_epoch: int
    lowest: int
    """Index of the measurement with the lowest loss; the last one where the loss does not rise again beyond noise."""
    lowest_tokens: float
    """Tokens trained on by then."""
    end_tokens: float
    """Tokens trained on in all."""

    @property
    def is_over_fitted(self) -> bool:
        """Return whether the loss rose again, by more than two standard errors."""
        return self.lowest_tokens < self.end_tokens

    @classmethod
    def of(cls, table: TransferTable, k: int) -> OwnRun | None:
        """Return a domain's own run; None where it has none."""
        source = table.sources.get(table.domain_set.names[k])
        if source is None:
            return None
        change_S, last = source.changes_SK[:, k], len(source.steps_S) - 1
        lowest = int(np.nanargmin(change_S)) if np.any(np.isfinite(change_S)) else last
        rise, noise = change_S[last] - change_S[lowest], 2.0 * source.change_stderrs_SK[last, k]
        if lowest == 0 or not rise > np.nan_to_num(noise):
            lowest = last  # it never fell, or what rose may be chance
        return cls(
            tokens_per_epoch=source.tokens_per_epoch,
            lowest=lowest,
            lowest_tokens=float(max(source.tokens_S[lowest], 1)),
            end_tokens=float(max(source.tokens_S[last], 1)),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LogChanges:
    """Log changes of the losses, as measured or with a draw of their errors added."""

    single_KK: np.ndarray
    """log(l_ij / base_j) at the end of each run: rows are the domain trained on."""
    lowest_K: np.ndarray
    """The same of each domain in its own run, where its loss was lowest."""
    mixed_MK: np.ndarray
    """log(l_mj / base_j) at the end of each mixed run."""


def log_changes(table: TransferTable, own: Sequence[OwnRun | None], *, rng: np.random.Generator | None) -> LogChanges:
    """Return the log changes of all runs; with a generator, as another draw of held-out examples might give them."""
    K = len(table.domain_set)
    single_KK = np.where(table.is_measured(), np.zeros((K, K)), np.nan)
    lowest_K = np.diagonal(single_KK).copy()
    for name, run in table.sources.items():
        k = table.domain_set.id_of(name)
        single_KK[k] = _log_change_at(run, -1, table, rng=rng)
        lowest_K[k] = single_KK[k, k]
        if (own_run := own[k]) is not None and own_run.is_over_fitted:
            lowest_K[k] = _log_change_at(run, own_run.lowest, table, rng=rng)[k]
    mixed = [_log_change_at(run, -1, table, rng=rng) for run in table.mixed]
    return LogChanges(single_KK=single_KK, lowest_K=lowest_K, mixed_MK=np.array(mixed).reshape(-1, K))


def _log_change_at(run: MeasuredRun, s: int, table: TransferTable, *, rng: np.random.Generator | None) -> np.ndarray:
    """Return log(l / base) [K] at a measurement of a run."""
    change_K = run.changes_SK[s]
    if rng is not None:
        change_K = change_K + rng.standard_normal(len(change_K)) * np.nan_to_num(run.change_stderrs_SK[s])
    return np.log(np.maximum(1.0 + change_K / table.base_losses_K, _SMALLEST_LOSS))


def distance_to_nearest(weights_NK: np.ndarray, trained_MK: np.ndarray) -> np.ndarray:
    """Return |log(share / share)| of every domain against the nearest of some trained mixtures, [N,K].

    The nearest one has the smallest mean over domains. A share of less than 1e-4 counts as 1e-4.

    Example: (.5, .5) against (.25, .75): (log 2, log 1.5).
    """
    log_NK, log_MK = (np.log(np.maximum(each, _SMALLEST_SHARE)) for each in (weights_NK, trained_MK))
    away_MNK = np.abs(log_NK - log_MK[:, None, :])
    nearest_N = away_MNK.mean(axis=2).argmin(axis=0)
    return away_MNK[nearest_N, np.arange(len(weights_NK))]
