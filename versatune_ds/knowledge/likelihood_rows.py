"""Read the rows that likelihood detection measures, and the texts that its baseline is fitted on.

Both are the prepared rows that training reads, under `data.loss_on: all`: what a domain consists of is questions too.
Two things are left out, because no domain differs in them: special tokens, and what all rows begin with (the
system turn that many templates add).

Shape legend: **K** domains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from versatune_ds.config import RunConfig
from versatune_ds.data.collate import Shards
from versatune_ds.data.encoding.tokenizer import special_ids_of
from versatune_ds.data.prepare.domains import PreparedData, prepare_domains
from versatune_ds.data.validation_loader import ExampleSubset
from versatune_ds.domains import DomainSet
from versatune_ds.training.prepared_data import cache_folder

MIN_ROWS = 2
"""Fewer held-out rows of a domain have no standard error."""

MAX_BASELINE_BYTES = 2**18
"""Text of each domain that the baseline is fitted on, at most; six domains take two seconds."""

_MAX_BASELINE_ROWS = 4000

_NUM_FOR_PREFIX = 50
"""Rows of each domain in which a common beginning is looked for."""


class TextRows:
    """Some rows of a domain in which exactly the tokens of its text bear loss; read like a domain's shards."""

    def __init__(self, rows: Shards, *, special_ids: np.ndarray, num_common: int) -> None:
        """Store what is no text.

        Args:
            rows: The rows, all of them in use.
            special_ids: Tokens that are not text.
            num_common: Tokens that every row of every domain begins with.
        """
        self.name, self.lengths = rows.name, rows.lengths
        self._rows = rows
        self._special_ids = special_ids
        self._num_skipped = max(num_common, 1)  # nothing comes before the first token, so it cannot be predicted

    @cached_property
    def loss_lengths(self) -> np.ndarray:
        """Return int32 [num_examples], the tokens of text in each row."""
        masks = (self.read(index)[1] for index in range(self.num_examples))
        return np.array([mask.sum() for mask in masks], dtype=np.int32)

    @property
    def num_examples(self) -> int:
        """Return the number of rows."""
        return self._rows.num_examples

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (input_ids, is_text) of a row."""
        input_ids, _ = self._rows.read(index)
        is_text = ~np.isin(input_ids, self._special_ids)
        is_text[: self._num_skipped] = False
        return input_ids, is_text

    def text(self, index: int, *, tokenizer: Any) -> bytes:
        """Return the UTF-8 text of a row."""
        input_ids, is_text = self.read(index)
        return tokenizer.decode(input_ids[is_text].tolist()).encode()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LikelihoodRows:
    """What likelihood detection reads."""

    domain_set: DomainSet
    held_out: tuple[TextRows, ...]
    """The rows to measure, one entry a domain."""
    texts: tuple[tuple[bytes, ...], ...]
    """Their texts."""
    baseline_texts: tuple[tuple[bytes, ...], ...]
    """Training texts of every domain, the same number of bytes of each."""


def likelihood_rows(config: RunConfig, *, tokenizer: Any) -> LikelihoodRows:
    """Prepare a recipe's rows, and choose those to measure and those to fit the baseline on.

    Raises:
        TooFewRowsError: If a domain has fewer than two held-out rows with text.
    """
    data = config.data.model_copy(update={"loss_on": "all"})
    prepared = prepare_domains(data, tokenizer=tokenizer, cache_dir=cache_folder(config))
    _check_held_out(prepared)
    num_measured, seed = config.detect.likelihood_rows, config.run.seed
    chosen = [ExampleSubset(rows, max_examples=num_measured, seed=seed) for rows in prepared.valid]
    of_text = {"special_ids": special_ids_of(tokenizer), "num_common": common_beginning(chosen)}
    held_out = [TextRows(rows, **of_text) for rows in chosen]
    check_text_rows(held_out)
    texts = [[rows.text(i, tokenizer=tokenizer) for i in range(rows.num_examples)] for rows in held_out]
    to_fit = []
    for rows in prepared.train:
        subset = TextRows(ExampleSubset(rows, max_examples=_MAX_BASELINE_ROWS, seed=seed), **of_text)
        to_fit.append(_texts_up_to(MAX_BASELINE_BYTES, subset, tokenizer=tokenizer))
    num_bytes = min(sum(map(len, part)) for part in to_fit)
    return LikelihoodRows(
        domain_set=prepared.domain_set,
        held_out=tuple(held_out),
        texts=tuple(map(tuple, texts)),
        baseline_texts=tuple(tuple(cut_to(part, num_bytes=num_bytes)) for part in to_fit),
    )


class TooFewRowsError(ValueError):
    """A domain has too few held-out rows for its bits to be measured."""


def _check_held_out(prepared: PreparedData) -> None:
    """Raise TooFewRowsError if a domain has too few held-out rows."""
    _refuse([shards.name for shards in prepared.valid if shards.num_examples < MIN_ROWS], what=f"{MIN_ROWS}")


def check_text_rows(held_out: Sequence[TextRows]) -> None:
    """Raise TooFewRowsError if too few of the held-out rows of a domain have text to measure."""
    few = [rows.name for rows in held_out if np.count_nonzero(rows.loss_lengths) < MIN_ROWS]
    _refuse(few, what=f"{MIN_ROWS} with text")


def _refuse(few: Sequence[str], *, what: str) -> None:
    """Raise TooFewRowsError if a domain is listed; `what` is how many rows of what kind each needs."""
    if few:
        raise TooFewRowsError(
            f"detect.method: likelihood measures held-out rows, and {', '.join(few)} has fewer than {what}; give "
            "held-out rows, raise data.valid_fraction, or set detect.method=generation"
        )


def common_beginning(domains: Sequence[Shards]) -> int:
    """Return how many tokens all rows of all domains begin with; 0 for a single row."""
    rows = [part.read(i)[0] for part in domains for i in range(min(_NUM_FOR_PREFIX, part.num_examples))]
    if len(rows) < 2:
        return 0
    shortest = min(map(len, rows))
    is_common = np.all([row[:shortest] == rows[0][:shortest] for row in rows], axis=0)
    return shortest if is_common.all() else int(np.argmin(is_common))


def _texts_up_to(num_bytes: int, rows: TextRows, *, tokenizer: Any) -> list[bytes]:
    """Return texts of rows, in a fixed random order, until they have that many bytes or all are there."""
    texts: list[bytes] = []
    total = 0
    for index in np.random.default_rng(0).permutation(rows.num_examples):
        texts.append(rows.text(int(index), tokenizer=tokenizer))
        total += len(texts[-1])
        if total >= num_bytes:
            break
    return texts


def cut_to(texts: Sequence[bytes], *, num_bytes: int) -> list[bytes]:
    """Return the first texts, the last one cut, with that many bytes together.

    Example: "abc" and "def" cut to 4 bytes are "abc" and "d".
    """
    kept, left = [], num_bytes
    for text in texts:
        if left <= 0:
            break
        kept.append(text[:left])
        left -= len(kept[-1])
    return kept
