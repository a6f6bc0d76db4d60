"""Detect what a base model knows: draw, label, take the mean, until the intervals are narrow enough.

Everything slow is kept on disk under a digest of what it depends on (model, tokenizer, sampling). So a detection that
was killed resumes, one with more sequences begins with those it has, and another labeller reads the same sequences.

Source: VersaTune (arXiv 2411.11266), knowledge detection; docs/method.md section 1.
"""

from __future__ import annotations

import json
import logging
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from versatune_ds.config import USER_HEADER, RunConfig
from versatune_ds.data.encoding.templates import choose_template, template_digest
from versatune_ds.data.encoding.tokenizer import tokenizer_digest
from versatune_ds.data.manifest import digest_of_texts
from versatune_ds.knowledge.base_model import BaseModel, find_base_model
from versatune_ds.knowledge.detection import Detection
from versatune_ds.knowledge.generate import load_generator
from versatune_ds.knowledge.label_correction import (
    RecalibratedLabeller,
)
from versatune_ds.knowledge.label_quality import quality_table, read_labelled_texts
from versatune_ds.knowledge.label_texts import LabelledTexts, domain_set_of
from versatune_ds.knowledge.labeller import FITTED_LABELLERS, Labeller, make_labeller, with_chosen_labeller
from versatune_ds.knowledge.labeller_agreement import compare_with_embedded
from versatune_ds.knowledge.likelihood import detect_likelihood
from versatune_ds.knowledge.likelihood_rows import TooFewRowsError
from versatune_ds.knowledge.reliability.labeller_errors import (
    add_source_error,
    calibrated_on_known,
    correct_shares,
    record_confused_domains,
    spread_confused_domains,
)
from versatune_ds.knowledge.reliability.source_error import TestedLabeller
from versatune_ds.knowledge.rounds import run_rounds
from versatune_ds.launch.sharded_pool import open_pool
from versatune_ds.run_folder.file_lock import locked
from versatune_ds.training.prepared_data import cache_folder, load_or_train_tokenizer

logger = logging.getLogger(__name__)

_SEQUENCES_VERSION = "1"  # raise it when the same settings would give other sequences
_MOSTLY_UNCLEAR = 0.3
"""Share of the sequences from which on they say little of the mixture."""


def detect(
    config: RunConfig, *, num_processes: int, is_sharded: bool = False, labelled: Path | None = None
) -> Detection:
    """Detect the shares of a recipe's domains in what its base model writes.

    Args:
        config: The recipe; its model must be a saved one.
        num_processes: Processes that draw, each with its own copy of the model.
        is_sharded: Whether each has a part of the model's weights instead (ZeRO-3), and of a labelling model's.
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
    processes = {"num_processes": num_processes, "is_sharded": is_sharded}
    what = "the sequences drawn from this model and their labels"
    with locked(cache_dir / "locks" / folder.name, what=what), ExitStack() as pools:
        # The labeller comes first: an endpoint that is not there is reported now, not after minutes of measuring.
        labeller = None
        if config.detect.method != "likelihood":
            labeller = make_labeller(
                config,
                tokenizer=tokenizer,
                domain_set=domain_set,
                cache_dir=cache_dir,
                folder=folder,
                num_sharded=num_processes if is_sharded else 1,
                pools=pools,
            )
        if config.detect.method != "generation":
            _detect_likelihood(found, config, tokenizer=tokenizer, **processes)
        if labeller is not None:
            _detect_generation(found, config, labeller=labeller, known=known, labelled=labelled, **processes)
            if config.detect.labeller not in FITTED_LABELLERS:
                compare_with_embedded(found, config, tokenizer=tokenizer, cache_dir=cache_dir)
    return found


def _detect_likelihood(found: Detection, config: RunConfig, *, tokenizer: Any, **processes: Any) -> None:
    """Measure how well the model predicts each domain; where generation runs too, it may do so alone.

    Raises:
        TooFewRowsError: If a domain has too few held-out rows and `detect.method` is `likelihood`.
    """
    try:
        found.likelihood = detect_likelihood(config, tokenizer=tokenizer, **processes)
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
    is_sharded: bool,
    known: LabelledTexts | None,
    labelled: Path | None,
) -> None:
    """Draw sequences, label them, and store the shares; `known` are the texts of the file `labelled`."""
    found.labeller = labeller.describe()
    if known is not None:
        labeller = calibrated_on_known(found, labeller, known, texts=str(labelled), settings=config.detect)
    _log_labeller(found.labeller)
    record_confused_domains(found.labeller, found.domain_set)
    load = partial(load_generator, config, is_sharded=is_sharded)
    with open_pool(load, num_processes=num_processes, is_sharded=is_sharded) as pool:
        run_rounds(found, config.detect, labeller=labeller, pool=pool)
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
        correct_shares(found, labeller, config.detect)
    if isinstance(labeller, TestedLabeller):
        add_source_error(found, labeller, config.detect, drawn=drawn)
    spread_confused_domains(found)
    _warn_if_unlike_the_rows(found)
    _warn_if_mostly_unclear(found)


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


def _warn_if_unlike_the_rows(found: Detection) -> None:
    """Warn if the classifier is much less certain about the sequences than about the recipe's rows."""
    assert found.estimate is not None, "the last round made it"
    expected = found.labeller.get("confidence")
    if expected is not None and found.estimate.confidence < expected - 0.1:
        logger.warning(
            "the classifier's likeliest domain has probability %.2f on average, on the recipe's own rows %.2f: the "
            "model writes much that is unlike these domains, and the shares show only what it resembles most; for a "
            "model tuned on answers, let it answer (detect.sampling.prefix=user_header) or trust likelihood more",
            found.estimate.confidence,
            expected,
        )
