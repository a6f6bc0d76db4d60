"""Find texts that are no language of the user's rows at all: random characters, other scripts, one word repeated.

A classifier, and a sentence encoder too, gives such texts a domain, often a sure one. Two numbers need neither:

- bits a byte under the byte n-gram model of the user's rows (`byte_ngram.py`): the spelling of noise is not predicted;
- the size of the text compressed by itself (zlib), as a part of its size: a text that repeats itself shrinks.

Limits come from the user's own rows. Each is measured by a model of other files, or of other rows where its domain has
one file. At most 0.5 % of them are beyond a limit, and in general far fewer: text of other sources is harder to
predict, and may repeat itself more, a table more than prose. So the first limit is halfway between the bits that 0.5 %
of the rows exceed and the bits of the rows with their characters in random order, which is noise for certain (or the
former, where that is more); the second is half of the ratio that 0.5 % of the rows are below.

Example: rows need 1.4 to 4 bits a byte, in random order 10, so the limit is 7.

Not covered: noise made of common words is spelt like language, and real text of no domain is language. Where all rows
are written from a few patterns, other prose may be implausible too.

Shape legend: **N** texts.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from versatune_ds.knowledge.byte_ngram import ngram_bits
from versatune_ds.knowledge.label_texts import LabelledTexts
from versatune_ds.knowledge.reliability.source_error import TestedLabeller
from versatune_ds.knowledge.text_folds import assign_groups

_RARE = 0.005
"""Share of the user's rows whose bits are too many."""
_MARGIN_OF_RATIO = 0.5

_LENGTHS = (0, 1, 2, 3, 4)
"""Bytes of the n-grams: spelling. Longer ones would tell the phrases of one source from those of another."""
_BYTES_OF_DOMAIN = 2**16
"""Bytes of each domain that the n-gram model is fitted on, at most."""
_BYTES_OF_PIECE = 256
_BYTES_OF_NOTHING = len(zlib.compress(b""))
_NUM_PARTS = 5
_NUM_SHUFFLED = 200


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TextScreen:
    """What plausible texts are like."""

    fitted_on: tuple[bytes, ...]
    """Texts of the n-gram model."""
    most_bits: float
    """Bits a byte above which a text is implausible."""
    least_ratio: float
    """Compressed size over size below which a text is implausible."""

    def is_plausible(self, texts: Sequence[str]) -> np.ndarray:
        """Return whether each text is spelt like the rows and repeats itself no more than they do, bool [N]."""
        encoded = [text.encode() for text in texts]
        bits_N = bits_per_byte(encoded, fitted_on=self.fitted_on)
        return (bits_N <= self.most_bits) & (compression_ratios(encoded) >= self.least_ratio)

    def describe(self) -> dict[str, float]:
        """Return what prior.json records."""
        return {"most_bits_per_byte": round(self.most_bits, 3), "least_compression_ratio": round(self.least_ratio, 3)}


class ScreenedLabeller:
    """A fitted labeller whose labels of implausible texts are 0 for every domain: they are unclear."""

    def __init__(self, labeller: TestedLabeller, screen: TextScreen) -> None:
        self.labeller, self.screen = labeller, screen
        self.left_out = labeller.left_out

    def label(self, texts: list[str]) -> np.ndarray:
        """Return the labels, float64 [N, K]."""
        return self.labeller.label(texts) * self.screen.is_plausible(texts)[:, None]

    def describe(self) -> dict[str, Any]:
        """Return what prior.json records of this labeller."""
        return {**self.labeller.describe(), "screen": self.screen.describe()}


def fit_text_screen(texts: LabelledTexts) -> TextScreen:
    """Return the limits of the rows of a recipe, each row measured by a model of rows of other files."""
    encoded, ids_N = [text.encode() for text in texts.texts], np.array(texts.domain_ids)
    part_N = _parts(ids_N, np.array(texts.file_ids or [0] * len(texts)))
    bits_N = np.zeros(len(encoded))
    for part in np.unique(part_N):
        is_out_N = part_N == part
        others = _some_of_each_domain(encoded, np.where(is_out_N, -1, ids_N))
        bits_N[is_out_N] = bits_per_byte([encoded[i] for i in np.flatnonzero(is_out_N)], fitted_on=others)
    fitted_on = _some_of_each_domain(encoded, ids_N)
    rare, of_noise = float(np.quantile(bits_N, 1.0 - _RARE)), _bits_in_random_order(texts.texts, fitted_on=fitted_on)
    return TextScreen(
        fitted_on=fitted_on,
        most_bits=max(rare, (rare + of_noise) / 2),
        least_ratio=_MARGIN_OF_RATIO * float(np.quantile(compression_ratios(encoded), _RARE)),
    )


def bits_per_byte(texts: Sequence[bytes], *, fitted_on: Sequence[bytes]) -> np.ndarray:
    """Return the bits a byte of each text under the n-gram model of others; 0 for an empty one."""
    num_bytes_N = np.array([len(text) for text in texts])
    return ngram_bits(texts, fitted_on=fitted_on, lengths=_LENGTHS) / np.maximum(num_bytes_N, 1)


def _bits_in_random_order(texts: Sequence[str], *, fitted_on: Sequence[bytes]) -> float:
    """Return the median bits a byte of some texts whose characters are in random order."""
    rng = random.Random(0)
    chosen = rng.sample(list(texts), min(_NUM_SHUFFLED, len(texts)))
    noise = ["".join(rng.sample(text, len(text))).encode() for text in chosen]
    return float(np.median(bits_per_byte(noise, fitted_on=fitted_on)))


def compression_ratios(texts: Sequence[bytes]) -> np.ndarray:
    """Return the compressed size of each text as a part of its size, in pieces of 256 bytes.

    The pieces make texts of different lengths comparable: a long text compresses better than a short one of its kind.
    What zlib needs for no text at all is not counted.

    Example: one word of 4 bytes repeated has .03, English prose .5 or more.
    """
    return np.array([_compressed_size(text) / max(len(text), 1) for text in texts])


def _compressed_size(text: bytes) -> int:
    starts = range(0, len(text), _BYTES_OF_PIECE)
    return sum(len(zlib.compress(text[start : start + _BYTES_OF_PIECE], 9)) - _BYTES_OF_NOTHING for start in starts)


def _parts(ids_N: np.ndarray, file_ids_N: np.ndarray) -> np.ndarray:
    """Return the part that leaves out each text: its file, or a fifth of the rows where its domain has one file."""
    part_N = np.zeros(len(ids_N), dtype=np.int64)
    for domain_id in np.unique(ids_N):
        places = np.flatnonzero(ids_N == domain_id)
        is_one_file = len(np.unique(file_ids_N[places])) == 1
        part_N[places] = np.arange(len(places)) % _NUM_PARTS if is_one_file else assign_groups(file_ids_N[places])
    return part_N


def _some_of_each_domain(texts: Sequence[bytes], ids_N: np.ndarray) -> tuple[bytes, ...]:
    """Return the first texts of each domain, up to a number of bytes; a domain of -1 is left out."""
    kept = []
    for domain_id in np.unique(ids_N[ids_N >= 0]):
        places = np.flatnonzero(ids_N == domain_id)
        bytes_before = np.cumsum([0, *(len(texts[i]) for i in places)])[:-1]
        kept += [texts[i] for i in places[bytes_before < _BYTES_OF_DOMAIN]]
    return tuple(kept)
