"""Label the same texts with a second labeller, and record where two labellers differ.

A language model that labels is right or wrong in ways nobody measured. The embedded labeller of the recipe (a sentence
encoder, or the classifier of words) reads the same texts: where both agree, little depends on either; where they do
not, the table of pairs shows which domains are meant differently.

Neither is the truth. `versatune detect --labelled` measures a labeller on texts whose domains are known.

Shape legend: **K** domains, **N** texts.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from versatune_ds.config import RunConfig
from versatune_ds.domains import DomainSet
from versatune_ds.knowledge.detection import Detection
from versatune_ds.knowledge.estimate import shares_of
from versatune_ds.knowledge.labeller import fitted_labeller, make_labeller
from versatune_ds.text_table import number_cell, text_table

logger = logging.getLogger(__name__)

MOST_TEXTS = 1000
"""Texts that are labelled twice: the agreement is then known to plus or minus .03, in two minutes on 2 cores."""

UNCLEAR = "unclear"
"""Name of the row and the column of texts that a labeller gives to no domain."""


def top_labels(labels_NK: np.ndarray) -> np.ndarray:
    """Return the likeliest domain of every text, int64 [N]; K where no domain is likelier than none of them.

    Example: (.2, .5) has domain 1, since .3 are left; (.3, .3) has none, since .4 are.
    """
    rest_N = np.maximum(1.0 - labels_NK.sum(axis=1), 0.0)
    return np.argmax(np.column_stack([labels_NK, rest_N]), axis=1)


def labeller_agreement(
    labels_NK: np.ndarray,
    other_NK: np.ndarray,
    *,
    names: tuple[str, str],
    domain_set: DomainSet,
    num_tokens_N: np.ndarray,
) -> dict[str, Any]:
    """Return how far two labellers agree about the same texts, as prior.json records it.

    Args:
        labels_NK: Labels of the recipe's labeller.
        other_NK: Labels of the other one, fitted with equal shares: they are moved to the shares found (`estimate.py`).
        names: What the two are called.
        domain_set: The domains.
        num_tokens_N: Tokens of every text.

    Returns:
        `agreement`, the share of the texts with the same likeliest domain; `pairs`, how many texts have which one by
        the first and by the second labeller; `shares`, the shares of tokens by each.
    """
    first_N, second_N = top_labels(labels_NK), top_labels(other_NK)
    shown = [*domain_set, UNCLEAR]
    counts = np.zeros((len(shown), len(shown)), dtype=np.int64)
    np.add.at(counts, (first_N, second_N), 1)
    shares = {}
    for name, of_labeller, is_shifted in ((names[0], labels_NK, False), (names[1], other_NK, True)):
        found_K = shares_of(of_labeller, num_tokens_N, prior_shift=is_shifted)[1] if of_labeller.any() else None
        shares[name] = None if found_K is None else domain_set.to_dict(np.round(found_K, 6))
    return {
        "labellers": list(names),
        "num_texts": len(labels_NK),
        "agreement": round(float(np.mean(first_N == second_N)), 4),
        "pairs": {name: dict(zip(shown, row.tolist(), strict=True)) for name, row in zip(shown, counts, strict=True)},
        "shares": shares,
    }


def agreement_table(found: dict[str, Any]) -> str:
    """Return the agreement as text: one line, the table of pairs, and the shares by each labeller beside it."""
    one, two = found["labellers"]
    columns = list(found["pairs"])
    rows = []
    for name, counts in found["pairs"].items():
        shares = [number_cell((found["shares"][who] or {}).get(name)) for who in (one, two)]
        rows.append((name, *(str(counts[column] or ".") for column in columns), *shares))
    head = (
        f"{one} and {two} agree about {found['agreement']:.1%} of {found['num_texts']:,} texts; rows are by {one}, "
        f"columns by {two}, at the right the shares of tokens by each"
    )
    return f"{head}\n{text_table(('', *columns, one, two), rows)}"


def compare_with_embedded(found: Detection, config: RunConfig, *, tokenizer: Any, cache_dir: Path) -> None:
    """Label the sequences of a detection with the recipe's embedded labeller too, and record the agreement.

    A recipe whose rows are too few to fit one keeps its labels uncompared, which is logged.
    """
    assert found.labels_NK is not None, "the last round made them"
    try:
        name, _ = fitted_labeller(config.detect)  # not `auto`, whose choice is logged: the recipe names its labeller
        settings = config.detect.model_copy(update={"labeller": name})
        other = make_labeller(
            config.model_copy(update={"detect": settings}),
            tokenizer=tokenizer,
            domain_set=found.domain_set,
            cache_dir=cache_dir,
            folder=found.folder,
        )
    except ValueError as error:
        logger.warning("the labels are not compared with those of an embedded labeller: %s", error)
        return
    written = [i for i, sequence in enumerate(found.sequences) if not sequence.is_empty][:MOST_TEXTS]
    description = other.describe()
    agreement = labeller_agreement(
        found.labels_NK[written],
        other.label([found.sequences[i].text for i in written]),
        names=(found.labeller["name"], description["name"]),
        domain_set=found.domain_set,
        num_tokens_N=np.array([found.sequences[i].num_tokens for i in written], dtype=np.float64),
    )
    found.labeller["compared"] = {**agreement, "other": description}
