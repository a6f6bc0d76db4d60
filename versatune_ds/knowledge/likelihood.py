"""Measure how well a base model predicts each domain: the second method of detection, beside generation.

A model that knows a domain needs fewer bits for its rows. Some texts are easy for every model, so the bits are
compared with those of a byte n-gram model, fitted on the same number of bytes of every domain (`byte_ngram.py`): it
knows the language and the domains' spelling, and nothing that takes longer memory. Nothing is sampled, no text is
labelled, and the measurement takes one forward pass over a few hundred rows.

How savings become weights: docs/method.md section 1.

Not covered: how often a model *writes* about a domain. A model that knows two domains equally well may write about one
only; then the two methods differ, and both are right.

Shape legend: **E** held-out rows, **K** domains, **R** bootstrap draws.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from versatune_ds.config import RunConfig
from versatune_ds.data.encoding.tokenizer import pad_token_id
from versatune_ds.data.manifest import digest_of_texts
from versatune_ds.data.validation_loader import ValidationLoader
from versatune_ds.distributed import World
from versatune_ds.domains import DomainSet
from versatune_ds.engine.sharded_model import load_model
from versatune_ds.knowledge.base_model import find_base_model
from versatune_ds.knowledge.byte_ngram import ngram_bits
from versatune_ds.knowledge.estimate import Shares
from versatune_ds.knowledge.likelihood_rows import LikelihoodRows, likelihood_rows
from versatune_ds.knowledge.likelihood_store import NatsStore, rows_digest
from versatune_ds.launch.process_pool import device_of
from versatune_ds.launch.sharded_pool import open_pool
from versatune_ds.mixture.statistics import ExampleLosses
from versatune_ds.model.domain_model import DomainModel
from versatune_ds.progress import with_progress
from versatune_ds.run_folder.file_lock import locked
from versatune_ds.training.held_out import losses_without_engine
from versatune_ds.training.prepared_data import cache_folder, load_or_train_tokenizer
from versatune_ds.training.worker import set_threads

logger = logging.getLogger(__name__)

EXPONENT = 2
"""Power of the relative saving that becomes a weight; chosen on base models with known mixtures."""

LEAST_SAVING = 0.1
"""Part of the mean saving that every domain counts as having saved, so that no weight is zero."""

_LOSSES_VERSION = "1"  # raise it when the same rows and settings would give other losses
_LN_2 = math.log(2)
_NUM_DRAWS = 1000
_TAIL = 0.025
"""What is outside a 95 % interval on either side."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Likelihood:
    """How well a model predicts each domain, beside the baseline."""

    domain_set: DomainSet
    model: ExampleLosses
    """Nats of every row; where another measurement counts tokens, this counts bytes."""
    baseline: ExampleLosses
    """The same for the n-gram model."""
    shares: Shares
    """The weights that follow, with 95 % intervals from a bootstrap over rows."""

    def to_dict(self) -> dict[str, Any]:
        """Return what prior.json records under `methods.likelihood`."""
        names = self.domain_set
        columns = {
            "bits_per_byte": self.model.mean() / _LN_2,
            "bits_per_byte_error": self.model.standard_error() / _LN_2,
            "baseline_bits_per_byte": self.baseline.mean() / _LN_2,
            "saved_bits_per_byte": (self.baseline.mean() - self.model.mean()) / _LN_2,
            "saved_bits_per_byte_error": self.model.change_standard_error(self.baseline) / _LN_2,
        }
        return {
            "weights": names.to_dict(self.shares.shares_K),
            "intervals": self.shares.intervals(names),
            **{key: names.to_dict(np.round(values_K, 5)) for key, values_K in columns.items()},
            "num_rows": names.to_dict(self.model.num_examples()),
            "num_bytes": names.to_dict(self.model.num_loss_tokens()),
            "exponent": EXPONENT,
        }


def detect_likelihood(config: RunConfig, *, tokenizer: Any, num_processes: int, is_sharded: bool = False) -> Likelihood:
    """Measure what a recipe's base model saves over the baseline on held-out rows of every domain.

    What is measured is stored in the cache under a digest of model and rows, so a killed measurement resumes.

    Args:
        config: The recipe; its model must be a saved one.
        tokenizer: The model's.
        num_processes: Processes that measure, each with its own copy of the model.
        is_sharded: Whether each has a part of the model's weights instead.

    Raises:
        TooFewRowsError: If a domain has fewer than two held-out rows with text.
        ValueError: If the model or its tokenizer cannot be loaded.
        RuntimeError: If the model's losses are not finite.
    """
    rows = likelihood_rows(config, tokenizer=tokenizer)
    cache_dir = cache_folder(config)
    model = find_base_model(config.model, cache_dir=cache_dir)
    name = f"likelihood-{_digest(config, model_digest=model.digest, rows=rows)[:16]}"
    with locked(cache_dir / "locks" / name, what="this model's likelihoods of the held-out rows"):
        store = NatsStore(cache_dir / f"{name}.jsonl")
        _measure_missing(rows, config, store=store, num_processes=num_processes, is_sharded=is_sharded)
    num_rows = sum(part.num_examples for part in rows.held_out)
    return likelihood_of(rows, nats_E=store.nats(num_rows=num_rows), seed=config.run.seed)


def _measure_missing(
    rows: LikelihoodRows, config: RunConfig, *, store: NatsStore, num_processes: int, is_sharded: bool
) -> None:
    """Measure the micro-batches that are not stored yet; only this process writes, so there is one file."""
    num_batches = _loader(config, rows, batch=0, num_batches=1, pad_id=0).num_micro_batches
    missing = [batch for batch in range(num_batches) if batch not in store]
    if missing:
        num_rows = sum(part.num_examples for part in rows.held_out)
        logger.info("likelihood: %d held-out rows; fewer with detect.likelihood_rows", num_rows)
    kept = rows if num_processes == 1 else None
    load = partial(_open, config, kept, is_sharded=is_sharded)
    with open_pool(load, num_processes=num_processes, is_sharded=is_sharded) as pool:
        measured = pool.map(partial(_nats_of_batch, config, num_batches), missing)
        for batch, nats_E in with_progress(measured, num_items=len(missing), what="held-out rows: %s batches"):
            if not np.isfinite(nats_E).all():
                raise RuntimeError(
                    "detect.method: likelihood: the model's losses of held-out rows are not finite; set "
                    "train.precision=fp32, check the model's weights, or set detect.method=generation"
                )
            store.add(batch, nats_E)


def _digest(config: RunConfig, *, model_digest: str, rows: LikelihoodRows) -> str:
    """Return a digest of everything that the measured losses depend on."""
    settings = (config.train.precision, str(config.rows_evaluated_at_once), str(config.data.row_tokens))
    return digest_of_texts([_LOSSES_VERSION, model_digest, *settings, rows_digest(rows)])


def _open(
    config: RunConfig, rows: LikelihoodRows | None, world: World, *, is_sharded: bool
) -> tuple[DomainModel, LikelihoodRows, int]:
    """Load the model and, unless they are given, the rows in one process; the token of padding comes with them."""
    set_threads()
    tokenizer = load_or_train_tokenizer(config)
    rows = likelihood_rows(config, tokenizer=tokenizer) if rows is None else rows
    model = load_model(
        config.model,
        train=config.train,
        vocab_size=len(tokenizer),
        device=device_of(world),
        is_sharded=is_sharded,
        wrap=partial(DomainModel, num_domains=len(rows.domain_set)),
    )
    return model, rows, pad_token_id(tokenizer)


def _nats_of_batch(
    config: RunConfig, num_batches: int, opened: tuple[DomainModel, LikelihoodRows, int], batch: int
) -> np.ndarray:
    """Return the summed loss of the text of every row of one micro-batch, 0 for the others: float64 [E]."""
    model, rows, pad_id = opened
    return losses_without_engine(model, _loader(config, rows, batch=batch, num_batches=num_batches, pad_id=pad_id))


def _loader(config: RunConfig, rows: LikelihoodRows, *, batch: int, num_batches: int, pad_id: int) -> ValidationLoader:
    """Return a loader of one of `num_batches` parts of the rows, as if each part were a rank's."""
    return ValidationLoader(
        rows.held_out,
        domain_set=rows.domain_set,
        rows_per_micro_batch=config.rows_evaluated_at_once,
        row_tokens=config.data.row_tokens,
        rank=batch,
        world_size=num_batches,
        pad_token_id=pad_id,
    )


def likelihood_of(rows: LikelihoodRows, *, nats_E: np.ndarray, seed: int) -> Likelihood:
    """Compare the nats of every row with the baseline's, and turn them into weights.

    Args:
        rows: The rows.
        nats_E: The model's nats for the text of every row, domain by domain.
        seed: Of the bootstrap.
    """
    texts = [text for part in rows.texts for text in part]
    to_fit = [text for part in rows.baseline_texts for text in part]
    nats_of = {"model": nats_E, "baseline": ngram_bits(texts, fitted_on=to_fit) * _LN_2}
    model, baseline = (
        ExampleLosses(
            loss_sum_E=nats_of[which],
            num_loss_tokens_E=np.array([len(text) for text in texts]),
            domain_ids_E=np.repeat(np.arange(len(rows.texts)), [len(part) for part in rows.texts]),
            num_domains=len(rows.texts),
        )
        for which in ("model", "baseline")
    )
    shares = weights_with_intervals(model, baseline, seed=seed)
    return Likelihood(domain_set=rows.domain_set, model=model, baseline=baseline, shares=shares)


def likelihood_weights(model_bits_K: np.ndarray, baseline_bits_K: np.ndarray) -> np.ndarray:
    """Return weights [..., K] that rise with what the model saves over the baseline.

    s_k = log(baseline_k / model_k), at least LEAST_SAVING times the mean of those above zero; w_k = s_k^EXPONENT,
    normalised. Bits a byte, nats a token and bits a row give the same ratio, and twice the saving everywhere the same
    weights. Where a model saves nothing anywhere, the weights are equal.

    Source: ours, docs/method.md section 1.

    Example: the model needs 1/2 of the baseline's bits in one domain and 1/4 in the other: the savings are log 2 and
    2 log 2, the weights 1/5 and 4/5.
    """
    saving_K = np.maximum(np.log(baseline_bits_K) - np.log(model_bits_K), 0.0)
    mean = saving_K.mean(axis=-1, keepdims=True)
    saving_K = np.where(mean > 0, np.maximum(saving_K, LEAST_SAVING * mean), 1.0)
    weights_K = (saving_K / saving_K.max(axis=-1, keepdims=True)) ** EXPONENT
    return weights_K / weights_K.sum(axis=-1, keepdims=True)


def weights_with_intervals(model: ExampleLosses, baseline: ExampleLosses, *, seed: int) -> Shares:
    """Return the weights, and their 95 % intervals from a bootstrap over the rows of every domain that have text."""
    rng = np.random.default_rng(seed)
    sums_RK = np.empty((2, _NUM_DRAWS, model.num_domains))
    for k in range(model.num_domains):
        of_domain = np.flatnonzero((model.domain_ids_E == k) & (model.num_loss_tokens_E > 0))
        counts_RE = rng.multinomial(len(of_domain), np.full(len(of_domain), 1 / len(of_domain)), size=_NUM_DRAWS)
        for place, losses in enumerate((model, baseline)):  # the same rows, so what makes a row hard cancels
            sums_RK[place, :, k] = counts_RE @ losses.loss_sum_E[of_domain]
    lower_K, upper_K = np.quantile(likelihood_weights(sums_RK[0], sums_RK[1]), (_TAIL, 1 - _TAIL), axis=0)
    weights_K = likelihood_weights(model.sum_by_domain(model.loss_sum_E), baseline.sum_by_domain(baseline.loss_sum_E))
    return Shares(shares_K=weights_K, lower_K=np.minimum(lower_K, weights_K), upper_K=np.maximum(upper_K, weights_K))
