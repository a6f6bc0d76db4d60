"""Draw sequences and label them, round after round, until the intervals of the shares are narrow enough.

After each round the widest interval is compared with `detect.interval` (`precision.py`); the log says how many
sequences and how much time are still needed.

Shape legend: **K** domains, **N** sequences.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence

import numpy as np

from versatune_ds.config import DetectConfig
from versatune_ds.domains import DomainSet
from versatune_ds.knowledge.detection import Detection
from versatune_ds.knowledge.estimate import Estimate, estimate, unknown_estimate
from versatune_ds.knowledge.generate import SequenceGenerator
from versatune_ds.knowledge.labeller import FITTED_LABELLERS, Labeller
from versatune_ds.knowledge.precision import precision_of
from versatune_ds.knowledge.sequences import DrawnSequence, SequenceStore
from versatune_ds.launch.process_pool import ProcessPool
from versatune_ds.progress import duration

logger = logging.getLogger(__name__)

_LOG_SECONDS = 5.0
_DRAWS_OF_A_ROUND = 200
"""Bootstrap draws of the rounds before the last."""


def run_rounds(
    found: Detection, settings: DetectConfig, *, labeller: Labeller, pool: ProcessPool[SequenceGenerator]
) -> None:
    """Draw and label round after round, until the intervals are narrow enough or the last round is done."""
    store = SequenceStore(found.folder / "sequences.jsonl")
    labels_NK = np.zeros((0, len(found.domain_set)))
    is_shifted = settings.prior_shift and settings.labeller in FITTED_LABELLERS

    def estimated(num_tokens_N: np.ndarray, **changes: int) -> Estimate:
        if settings.labeller in FITTED_LABELLERS and not labels_NK.any():
            return unknown_estimate(len(found.domain_set))
        return estimate(labels_NK, num_tokens_N, prior_shift=is_shifted, seed=settings.sampling.seed, **changes)

    _log_limit(settings)
    for number in range(1, settings.rounds + 1):
        end = -(-settings.num_sequences * number // settings.rounds)
        rate = _draw_up_to(end, store=store, settings=settings, pool=pool)
        found.sequences = store.first(end)
        # Label what is new, and estimate the shares from all labels so far.
        labels_NK = np.concatenate([labels_NK, _labels(found.sequences[len(labels_NK) :], labeller, found.domain_set)])
        num_tokens_N = np.array([sequence.num_tokens for sequence in found.sequences], dtype=np.float64)
        found.estimate = estimated(num_tokens_N, num_draws=_DRAWS_OF_A_ROUND)
        found.rounds.append(found.shares.shares_K)
        # Compare the intervals with the wanted one, and the shares with those of the round before.
        found.precision = precision_of(
            found.shares, domain_set=found.domain_set, num_sequences=end, wanted=settings.interval
        )
        change = float(np.max(np.abs(np.diff(found.rounds[-2:], axis=0)))) if number > 1 else math.inf
        found.is_converged = found.precision.is_enough or (settings.tol is not None and change < settings.tol)
        _log_round(found, change=change, budget=settings.num_sequences, sequences_per_second=rate)
        if found.is_converged:
            break
    if not found.is_converged:
        _warn_that_budget_is_used(found, settings)
    found.labels_NK = labels_NK
    found.estimate = estimated(num_tokens_N)
    found.rounds[-1] = found.shares.shares_K


def _log_limit(settings: DetectConfig) -> None:
    """Log when drawing ends, the most sequences that may be, and the key that sets fewer."""
    most, per_round = settings.num_sequences, -(-settings.num_sequences // settings.rounds)
    ends = "" if settings.interval is None else f"until every interval is +-{settings.interval:g} or narrower, "
    logger.info(
        "drawing sequences in rounds of %s %sat most %s; for fewer, and wider intervals, set detect.num_sequences",
        f"{per_round:,}",
        ends,
        f"{most:,}",
    )


def _warn_that_budget_is_used(found: Detection, settings: DetectConfig) -> None:
    """Warn that all sequences are drawn and an interval is still wider than wanted."""
    precision = found.precision
    assert precision is not None, "the last round made it"
    if (needed := precision.num_needed()) is not None:
        logger.warning(
            "detect.num_sequences: used up: after %s sequences the interval of %s is +-%.3f without the labeller's "
            "errors and what has no label, detect.interval is %g; about %s sequences would reach it",
            f"{precision.num_sequences:,}",
            precision.domain,
            precision.widest,
            settings.interval,
            f"{needed:,}",
        )
    elif settings.tol is not None:
        logger.warning("detect.num_sequences: used up, and the last round still changed a share by detect.tol or more")


def _draw_up_to(
    end: int, *, store: SequenceStore, settings: DetectConfig, pool: ProcessPool[SequenceGenerator]
) -> float | None:
    """Draw the missing batches of the first `end` sequences, log the progress, and return sequences a second.

    Processes get batch numbers and return sequences; only this process writes. So there is one file with one writer,
    and nothing to put together when a process, or all of them, are killed.
    """
    per_batch = settings.sampling.sequences_per_batch
    num_batches = -(-end // per_batch)
    missing = [batch for batch in range(num_batches) if batch not in store]
    started = logged = time.monotonic()
    for num_done, (batch, sequences) in enumerate(pool.map(SequenceGenerator.draw, missing), start=1):
        store.add(batch, sequences)
        now = time.monotonic()
        if now - logged > _LOG_SECONDS or num_done == len(missing):
            logged = now
            left = (now - started) / num_done * (len(missing) - num_done)
            logger.info(
                "drew %s of %s sequences  %.1f a second  %s left in this round",
                f"{min(end, (num_batches - len(missing) + num_done) * per_batch):,}",
                f"{end:,}",
                num_done * per_batch / max(now - started, 1e-9),
                duration(left),
            )
    return len(missing) * per_batch / max(time.monotonic() - started, 1e-9) if missing else None


def _labels(sequences: Sequence[DrawnSequence], labeller: Labeller, domain_set: DomainSet) -> np.ndarray:
    """Return the labels [N, K] of sequences; an empty one has none."""
    labels_NK = np.zeros((len(sequences), len(domain_set)))
    labelled = [i for i, sequence in enumerate(sequences) if not sequence.is_empty]
    if labelled:
        labels_NK[labelled] = labeller.label([sequences[i].text for i in labelled])
    return labels_NK


def _log_round(found: Detection, *, change: float, budget: int, sequences_per_second: float | None) -> None:
    """Log the shares so far, how exact they are, and how long drawing will still take."""
    assert found.precision is not None, "the round made it"
    shares = "  ".join(f"{name} {share:.3f}" for name, share in found.domain_set.to_dict(found.rounds[-1]).items())
    changed = f", largest change {change:.4f}" if math.isfinite(change) else ""
    logger.info(
        "round %d: %s sequences%s; %s\n  %s",
        len(found.rounds),
        f"{len(found.sequences):,}",
        changed,
        found.precision.describe(budget=budget, sequences_per_second=sequences_per_second),
        shares,
    )
