"""Put the labeller's errors into the intervals of a detection, and record them for prior.json.

Errors are measured on texts whose domains the user gives (`label_correction.py`), and on texts that were left out of
the labeller's fit (`source_error.py`). Domains that the labeller cannot tell apart get intervals that span both shares.

Shape legend: **K** domains, **N** sequences.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np

from versatune_ds.config import DetectConfig
from versatune_ds.domains import DomainSet
from versatune_ds.knowledge.detection import Detection
from versatune_ds.knowledge.estimate import Shares
from versatune_ds.knowledge.label_correction import (
    KnownLabels,
    RecalibratedLabeller,
    confused_pairs,
    corrected_estimate,
    describe_correction,
    recalibrated_labeller,
    spread_over_confused,
)
from versatune_ds.knowledge.label_quality import quality_of
from versatune_ds.knowledge.label_texts import LabelledTexts
from versatune_ds.knowledge.labeller import FITTED_LABELLERS, Labeller
from versatune_ds.knowledge.reliability.interval_parts import widest_interval
from versatune_ds.knowledge.reliability.source_error import TestedLabeller, describe_source_error, with_source_error

logger = logging.getLogger(__name__)


def calibrated_on_known(
    found: Detection, labeller: Labeller, known: LabelledTexts, *, texts: str, settings: DetectConfig
) -> Labeller:
    """Record how good the labeller is on texts of known domains, and return it, calibrated on them where it can be."""
    of_known = KnownLabels(labels_NK=labeller.label(known.texts), domain_ids=known.domain_ids)
    quality = quality_of(of_known.labels_NK, known.domain_ids, texts=texts)
    found.labeller["labelled"] = quality.describe(found.domain_set)
    return recalibrated_labeller(labeller, of_known, texts=texts) if settings.labeller in FITTED_LABELLERS else labeller


def correct_shares(found: Detection, labeller: RecalibratedLabeller, settings: DetectConfig) -> None:
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
        "labels calibrated on the labelled texts: calibration error %.3f there (each half on the other). The weights "
        "follow from these labels; a second way from the same, black-box shift estimation, gives shares of sequences "
        "of:\n  %s",
        correction["labelled"]["calibration_error"],
        black_box,
    )


def add_source_error(found: Detection, labeller: TestedLabeller, settings: DetectConfig, *, drawn: Shares) -> None:
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


def record_confused_domains(description: dict[str, Any], domain_set: DomainSet) -> None:
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


def spread_confused_domains(found: Detection) -> None:
    """Widen the intervals of domains that the labeller cannot tell apart."""
    assert found.estimate is not None, "the last round made it"
    ids = [
        (found.domain_set.id_of(one), found.domain_set.id_of(two)) for one, two in found.labeller.get("confused", ())
    ]
    by_sequence, by_token = (
        spread_over_confused(shares, ids) for shares in (found.estimate.sequences, found.estimate.tokens)
    )
    found.estimate = replace(found.estimate, sequences=by_sequence, tokens=by_token)
