"""Detect what a base model knows: draw, label, take the mean, until the intervals are narrow enough.

Everything slow is kept on disk under a digest of what it depends on (model, tokenizer, sampling). So a detection that
was killed resumes, one with more sequences begins with those it has, and another labeller reads the same sequences.

Source: VersaTune (arXiv 2411.11266), knowledge detection; docs/method.md section 1.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from versatune_ds.config import USER_HEADER, DetectConfig, RunConfig
from versatune_ds.data.encoding.templates import choose_template, template_digest
from versatune_ds.data.encoding.tokenizer import tokenizer_digest
from versatune_ds.data.manifest import digest_of_texts
from versatune_ds.domains import DomainSet
from versatune_ds.knowledge.base_model import BaseModel, find_base_model
from versatune_ds.knowledge.detection import Detection
from versatune_ds.knowledge.estimate import Estimate, Shares, estimate, unknown_estimate
from versatune_ds.knowledge.generate import SequenceGenerator, load_generator
from versatune_ds.knowledge.label_correction import (
    KnownLabels,
    RecalibratedLabeller,
    confused_pairs,
    corrected_estimate,
    describe_correction,
    recalibrated_labeller,
    spread_over_confused,
)
from versatune_ds.knowledge.label_quality import quality_of, quality_table, read_labelled_texts
from versatune_ds.knowledge.label_texts import LabelledTexts, domain_set_of
from versatune_ds.knowledge.labeller import FITTED_LABELLERS, Labeller, make_labeller, with_chosen_labeller
from versatune_ds.knowledge.labeller_agreement import compare_with_embedded
from versatune_ds.knowledge.likelihood import detect_likelihood
from versatune_ds.knowledge.likelihood_rows import TooFewRowsError
from versatune_ds.knowledge.precision import precision_of
from versatune_ds.knowledge.reliability.interval_parts import widest_interval
from versatune_ds.knowledge.reliability.source_error import TestedLabeller, describe_source_error, with_source_error
from versatune_ds.knowledge.sequences import DrawnSequence, SequenceStore
from versatune_ds.launch.process_pool import ProcessPool
from versatune_ds.monitor.progress_lines import duration
from versatune_ds.run_folder.file_lock import locked
from versatune_ds.training.prepared_data import cache_folder, load_or_train_tokenizer

logger = logging.getLogger(__name__)

_SEQUENCES_VERSION = "1"  # raise it when the same settings would give other sequences
_LOG_SECONDS = 5.0
_DRAWS_OF_A_ROUND = 200  # bootstrap draws of the rounds before the last
_MOSTLY_UNCLEAR = 0.3


def detect(config: RunConfig, *, num_processes: int, labelled: Path | None = None) -> Detection:
    """Detect the shares of a recipe's domains in what its base model writes.

    Args:
        config: The recipe; its model must be a saved one.
        num_processes: Processes that draw, each with its own copy of the model.
        labelled: File of texts whose domains are known, to measure the labeller on.

    Raises:
        ValueError: If the model, the data or the labeller is not as expected; before anything is drawn.
        RuntimeError: If no sequence could be labelled, or an endpoint fails for good.
    """
    if labelled is not None and config.detect.method == "likelihood":
        raise ValueError(
            f"--labelled: {labelled}: detect.method=likelihood labels no text; leave --labelled out, or choose "
            "detect.method=both or generation"
        )
    config = with_chosen_labeller(config)
    cache_dir = cache_folder(config)
    base_model = find_base_model(config.model, cache_dir=cache_dir)
    domain_set = domain_set_of(config.data, cache_dir=cache_dir)
    known = None if labelled is None else read_labelled_texts(labelled, domain_set=domain_set)
    tokenizer = load_or_train_tokenizer(config)
    folder = cache_dir / f"detect-{_sequences_digest(config, base_model, tokenizer)[:16]}"
    found = Detection(
        domain_set=domain_set,
        base_model=base_model,
        tokenizer_digest=tokenizer_digest(tokenizer),
        weight_unit=_weight_unit(config),
        method=config.detect.method,
        folder=folder,
    )
    with locked(cache_dir / "locks" / folder.name):
        # The labeller comes first: an endpoint that is not there is reported now, not after minutes of measuring.
        labeller = None
        if config.detect.method != "likelihood":
            labeller = make_labeller(
                config, tokenizer=tokenizer, domain_set=domain_set, cache_dir=cache_dir, folder=folder
            )
        if config.detect.method != "generation":
            _detect_likelihood(found, config, tokenizer=tokenizer, num_processes=num_processes)
        if labeller is not None:
            _detect_generation(
                found, config, labeller=labeller, num_processes=num_processes, known=known, labelled=labelled
            )
            if config.detect.labeller not in FITTED_LABELLERS:
                compare_with_embedded(found, config, tokenizer=tokenizer, cache_dir=cache_dir)
    return found


def _detect_likelihood(found: Detection, config: RunConfig, *, tokenizer: Any, num_processes: int) -> None:
    """Measure how well the model predicts each domain; where generation runs too, it may do so alone.

    Raises:
        TooFewRowsError: If a domain has too few held-out rows and `detect.method` is `likelihood`.
    """
    try:
        found.likelihood = detect_likelihood(config, tokenizer=tokenizer, num_processes=num_processes)
    except TooFewRowsError as error:  # a domain may be trained on and not measured: generation needs no such rows
        if config.detect.method == "likelihood":
            raise
        logger.warning("generation alone: %s", error)
        found.method = "generation"


def _detect_generation(
    found: Detection,
    config: RunConfig,
    *,
    labeller: Labeller,
    num_processes: int,
    known: LabelledTexts | None,
    labelled: Path | None,
) -> None:
    """Draw sequences, label them, and store the shares; `known` are the texts of the file `labelled`."""
    found.labeller = labeller.describe()
    if known is not None:
        labeller = _with_known(found, labeller, known, texts=str(labelled), settings=config.detect)
    _log_labeller(found.labeller)
    _record_confused_domains(found.labeller, found.domain_set)
    with ProcessPool(partial(load_generator, config), num_processes=num_processes) as pool:
        _rounds(found, config.detect, labeller=labeller, pool=pool)
    assert found.labels_NK is not None, "the last round made them"
    if not found.labels_NK.any():
        logger.warning(
            "no sequence looks like any domain, so what the model writes shows nothing: the weights are equal, every "
            "interval is 0 to 1; take detect.method=likelihood, begin the sequences as the model's training did "
            "(detect.sampling.prefix), or set mixture.prior by hand"
        )
        return
    drawn = found.shares
    if isinstance(labeller, RecalibratedLabeller):
        _correct(found, labeller, config.detect)
    if isinstance(labeller, TestedLabeller):
        _add_source_error(found, labeller, config.detect, drawn=drawn)
    _spread_over_confused(found)
    _warn_if_unlike_the_rows(found)
    _warn_if_mostly_unclear(found)


def _with_known(
    found: Detection, labeller: Labeller, known: LabelledTexts, *, texts: str, settings: DetectConfig
) -> Labeller:
    """Record how good the labeller is on texts of known domains, and return it, calibrated on them where it can be."""
    of_known = KnownLabels(labels_NK=labeller.label(known.texts), domain_ids=known.domain_ids)
    quality = quality_of(of_known.labels_NK, known.domain_ids, texts=texts)
    found.labeller["labelled"] = quality.describe(found.domain_set)
    return recalibrated_labeller(labeller, of_known, texts=texts) if settings.labeller in FITTED_LABELLERS else labeller


def _rounds(
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


def _correct(found: Detection, labeller: RecalibratedLabeller, settings: DetectConfig) -> None:
    """Put the error of the correction into the intervals, and record the shares by black-box shift estimation."""
    assert found.estimate is not None, "the last round made it"
    assert found.labels_NK is not None, "the last round made them"
    found.estimate = corrected_estimate(
        found.estimate,
        labeller,
        found.labels_NK,
        np.array([sequence.num_tokens for sequence in found.sequences], dtype=np.float64),
        prior_shift=settings.prior_shift,
        seed=settings.sampling.seed,
    )
    correction = describe_correction(labeller, found.labels_NK, found.domain_set)
    found.labeller["correction"] = correction
    black_box = "  ".join(f"{name} {share:.3f}" for name, share in correction["black_box_shares"].items())
    logger.info(
        "labels calibrated on the labelled texts: calibration error %.3f there (each half on the other); shares of "
        "sequences by black-box shift estimation:\n  %s",
        correction["labelled"]["calibration_error"],
        black_box,
    )


def _add_source_error(found: Detection, labeller: TestedLabeller, settings: DetectConfig, *, drawn: Shares) -> None:
    """Put the labeller's errors on texts left out into the intervals; log what is in the widest one, and what is not.

    `drawn` are the shares with the intervals of the last round.
    """
    assert found.estimate is not None, "the last round made it"
    found.estimate, by_sequence_K, by_token_K = with_source_error(
        found.estimate, labeller.left_out, prior_shift=settings.prior_shift, seed=settings.sampling.seed
    )
    error_K = by_token_K if found.weight_unit == "tokens" else by_sequence_K
    described = describe_source_error(labeller.left_out, error_K, found.domain_set)
    found.labeller["source_error"] = described
    is_known = isinstance(labeller, RecalibratedLabeller)
    text = widest_interval(found.shares, drawn=drawn, error_K=error_K, domain_set=found.domain_set, is_known=is_known)
    if text is not None:
        logger.info("%s", text)
    if described["one_source"]:
        logger.info(
            "labels were tested on rows of the same files of %s, so the intervals hold for text of these sources only; "
            "give each source a file of its own, or texts whose domain you know (--labelled FILE)",
            ", ".join(described["one_source"]),
        )


def _draw_up_to(
    end: int, *, store: SequenceStore, settings: DetectConfig, pool: ProcessPool[SequenceGenerator]
) -> float | None:
    """Draw the missing batches of the first `end` sequences, log the progress, and return sequences a second.

    Processes get batch numbers and return sequences; only this process writes. So there is one file with one writer,
    and nothing to put together when a process, or all of them, are killed.
    """
    per_batch = settings.sampling.sequences_per_batch
    missing = [batch for batch in range(-(-end // per_batch)) if batch not in store]
    started = logged = time.monotonic()
    for num_done, (batch, sequences) in enumerate(pool.map(SequenceGenerator.draw, missing), start=1):
        store.add(batch, sequences)
        now = time.monotonic()
        if now - logged > _LOG_SECONDS or num_done == len(missing):
            logged = now
            left = (now - started) / num_done * (len(missing) - num_done)
            logger.info(
                "drew %s of %s sequences  %.1f a second  %s left",
                f"{end - (len(missing) - num_done) * per_batch:,}",
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


def _sequences_digest(config: RunConfig, base_model: BaseModel, tokenizer: Any) -> str:
    """Return a digest of everything that determines which sequences are drawn."""
    sampling = json.dumps(config.detect.sampling.model_dump(mode="json"), sort_keys=True)
    parts = [_SEQUENCES_VERSION, base_model.digest, tokenizer_digest(tokenizer), config.train.precision, sampling]
    if config.detect.sampling.prefix == USER_HEADER:
        parts.append(template_digest(choose_template(tokenizer, path=config.data.chat_template)))
    return digest_of_texts(parts)


def _weight_unit(config: RunConfig) -> str:
    """Return the unit of the weights that can be detected: sequences have tokens, but no part that bears loss."""
    if config.mixture.weight_unit == "loss_tokens":
        logger.warning("mixture.weight_unit: what a model writes has no loss tokens; tokens are used")
        return "tokens"
    return config.mixture.weight_unit


def _log_labeller(description: dict[str, Any]) -> None:
    """Log which labeller is used, and how good it is where that is known."""
    for texts in ("left_out", "labelled"):
        if texts in description:
            logger.info("labeller %s: %s", description["name"], quality_table(description[texts]))
    if "left_out" in description:
        return
    if "accuracy" not in description:
        logger.info("labeller %s", json.dumps({key: value for key, value in description.items() if key != "labelled"}))
        return
    logger.info(
        "labeller classifier: fitted on %s rows; on %s others accuracy %.3f, calibration error %.3f",
        f"{description['num_rows']['fit']:,}",
        f"{description['num_rows']['test']:,}",
        description["accuracy"],
        description["calibration_error"],
    )


def _spread_over_confused(found: Detection) -> None:
    """Widen the intervals of domains that the labeller cannot tell apart."""
    assert found.estimate is not None, "the last round made it"
    ids = [
        (found.domain_set.id_of(one), found.domain_set.id_of(two)) for one, two in found.labeller.get("confused", ())
    ]
    by_sequence, by_token = (
        spread_over_confused(shares, ids) for shares in (found.estimate.sequences, found.estimate.tokens)
    )
    found.estimate = replace(found.estimate, sequences=by_sequence, tokens=by_token)


def _record_confused_domains(description: dict[str, Any], domain_set: DomainSet) -> None:
    """Add the pairs of domains that the labeller cannot distinguish to its description, and warn of them."""
    measured = description.get("labelled") or description.get("left_out")
    if measured is None:
        return
    rows = [measured["confusion"][name] for name in domain_set]
    confusion_KK = np.array([[np.nan] * len(domain_set) if row is None else list(row.values()) for row in rows])
    pairs = [[domain_set.names[i], domain_set.names[j]] for i, j in confused_pairs(confusion_KK)]
    description["confused"] = pairs
    if pairs:
        logger.warning(
            "detect.labeller: it cannot tell apart %s (%s), so their intervals span both shares; describe "
            "them better (data.domains.NAME.description), make them one domain, or set mixture.prior by hand",
            "; ".join(" and ".join(pair) for pair in pairs),
            measured["texts"],
        )


def _warn_if_mostly_unclear(found: Detection) -> None:
    """Warn if what the model writes looks like none of the domains."""
    share = found.rates().get("unclear", 0.0)
    if share > _MOSTLY_UNCLEAR:
        logger.warning(
            "unclear: %.0f%% of the sequences look like no domain, so they say little of the mixture; begin them as "
            "the model's training did (detect.sampling.prefix), add a domain for what it writes, or set mixture.prior "
            "by hand",
            100 * share,
        )


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


def _warn_if_unlike_the_rows(found: Detection) -> None:
    """Warn if the classifier is much less certain about the sequences than about the recipe's rows."""
    assert found.estimate is not None, "the last round made it"
    expected = found.labeller.get("confidence")
    if expected is not None and found.estimate.confidence < expected - 0.1:
        logger.warning(
            "the classifier's likeliest domain has probability %.2f on average, on the recipe's own rows %.2f: the "
            "model writes much that is unlike these domains, and the shares show only what it resembles most",
            found.estimate.confidence,
            expected,
        )
