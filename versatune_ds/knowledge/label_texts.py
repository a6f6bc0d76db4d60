"""Read the records of a recipe's domains as texts, to fit a classifier of domains on.

A text is cut where a drawn sequence would be. Texts are divided by the hash of their content: equal ones count once and
are never on both sides of a division.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from versatune_ds.config import DataConfig
from versatune_ds.data.encoding.forms import parse_example
from versatune_ds.data.encoding.turns import BadRowError, is_unicode
from versatune_ds.data.prepare.encode_records import content_hash
from versatune_ds.data.sources.domain_files import domain_files, key_of
from versatune_ds.data.sources.find_files import find_files
from versatune_ds.data.sources.readers import read_records
from versatune_ds.domains import DomainSet

MIN_ROWS = 20
"""Fewer records of a domain cannot be divided into some to fit, to calibrate and to test on."""

_FIT_SHARE, _CALIBRATE_SHARE = 0.7, 0.15

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledTexts:
    """Texts and the ids of their domains."""

    texts: list[str]
    domain_ids: list[int]
    file_ids: list[int] = field(default_factory=list)
    """Which of its domain's files each text is from, counted from 0; empty where it is unknown."""

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True, slots=True, kw_only=True)
class DividedTexts:
    """The texts to fit a classifier on, to calibrate it on, and to test it on."""

    fit: LabelledTexts
    calibrate: LabelledTexts
    test: LabelledTexts


def joined_texts(texts: DividedTexts) -> LabelledTexts:
    """Return all texts, those to fit first."""
    parts = (texts.fit, texts.calibrate, texts.test)
    return LabelledTexts(
        texts=[text for part in parts for text in part.texts],
        domain_ids=[domain_id for part in parts for domain_id in part.domain_ids],
        file_ids=[file_id for part in parts for file_id in part.file_ids],
    )


def domain_set_of(data: DataConfig, *, cache_dir: Path) -> DomainSet:
    """Return a recipe's domains without reading their records.

    Raises:
        ValueError: If there is only one: then there is no mixture to detect.
    """
    domain_set = DomainSet(tuple(domain_files(data, cache_dir=cache_dir)))
    if len(domain_set) < 2:
        raise ValueError(f"data: one domain alone ({domain_set.names[0]}), so there is no mixture to detect")
    return domain_set


def read_divided_texts(
    data: DataConfig, *, tokenizer: Any, max_tokens: int, rows_per_domain: int, cache_dir: Path
) -> DividedTexts:
    """Return the training records of every domain as texts: 70 % to fit, 15 % to calibrate, 15 % to test.

    Args:
        data: The recipe's data section.
        tokenizer: Of the base model; texts are cut after its tokens.
        max_tokens: Tokens a text keeps.
        rows_per_domain: Of each domain, the records with the smallest hashes, at most that many; 20 or more.
        cache_dir: Where the built-in corpus is.

    Raises:
        ValueError: If a domain has fewer than 20 different records that can be read.
    """
    parts: tuple[LabelledTexts, ...] = tuple(LabelledTexts(texts=[], domain_ids=[], file_ids=[]) for _ in range(3))
    for domain_id, (name, files) in enumerate(domain_files(data, cache_dir=cache_dir).items()):
        # Sample the domain's records by their hashes.
        key = key_of(data, domain=name)
        rows = _hashed_texts(find_files(files.train, key=key, cache_dir=cache_dir), columns=files.columns)
        by_hash = texts_with_smallest_hashes(rows, num_texts=rows_per_domain)
        if len(by_hash) < MIN_ROWS:
            raise ValueError(
                f"{key}: domain {name!r} has {len(by_hash)} different examples, the labeller needs {MIN_ROWS}; add "
                "some, or set detect.method=likelihood"
            )
        # In the order of the hashes, which is random, the first texts are a sample too.
        kept = [by_hash[row_hash] for row_hash in sorted(by_hash)]
        texts = cut_texts([text for text, _ in kept], tokenizer=tokenizer, max_tokens=max_tokens)
        ends = (0, round(len(texts) * _FIT_SHARE), round(len(texts) * (_FIT_SHARE + _CALIBRATE_SHARE)), len(texts))
        for part, start, end in zip(parts, ends, ends[1:], strict=False):
            part.texts.extend(texts[start:end])
            part.domain_ids.extend([domain_id] * (end - start))
            part.file_ids.extend(file_id for _, file_id in kept[start:end])
    return DividedTexts(fit=parts[0], calibrate=parts[1], test=parts[2])


def texts_with_smallest_hashes(rows: Iterable[tuple[int, Row]], *, num_texts: int) -> dict[int, Row]:
    """Return the texts with the smallest different hashes, by hash; no more than that many are ever in memory.

    Hashes are uniform, so this is a random sample without repetition that depends on the texts, not on their order.

    Args:
        rows: (hash, text) of every record; those of the same hash have the same text.
        num_texts: At most that many are kept.
    """
    kept: dict[int, Row] = {}
    negated: list[int] = []  # a heap whose first entry is the largest hash kept
    for row_hash, text in rows:
        if row_hash in kept:
            continue
        if len(kept) < num_texts:
            heapq.heappush(negated, -row_hash)
        elif row_hash < -negated[0]:
            del kept[-heapq.heapreplace(negated, -row_hash)]
        else:
            continue
        kept[row_hash] = text
    return kept


def cut_texts(texts: list[str], *, tokenizer: Any, max_tokens: int) -> list[str]:
    """Return texts cut after their first `max_tokens` tokens."""
    encoded = tokenizer(
        texts, truncation=True, max_length=max_tokens, add_special_tokens=False, return_offsets_mapping=True
    )
    ends = [offsets[-1][1] if offsets else 0 for offsets in encoded["offset_mapping"]]
    return [text[:end] for text, end in zip(texts, ends, strict=True)]


def _hashed_texts(
    paths: tuple[Path, ...], *, columns: Mapping[str, str] | None
) -> Iterator[tuple[int, tuple[str, int]]]:
    """Yield (hash, (text of all turns, number of its file)) of every record that can be read.

    `prepare` counts and reports the others.
    """
    for file_id, path in enumerate(paths):
        for record in read_records(path):
            try:
                row = None if record.problem else parse_example(record.json_text, columns=columns)
            except BadRowError:
                continue
            if row is not None and is_unicode(text := "\n".join(row.texts())):
                yield content_hash(row), (text, file_id)
