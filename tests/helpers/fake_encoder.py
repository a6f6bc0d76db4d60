"""An encoder without a model: the vector of a text is the sum of one random vector a word."""

from __future__ import annotations

import hashlib
import re
from types import SimpleNamespace

import numpy as np

NUM_DIMENSIONS = 48


def word_vectors(texts) -> np.ndarray:
    """Return the vectors of texts, float32 [N, 48], each of length 1."""
    rows = []
    for text in texts:
        row = np.zeros(NUM_DIMENSIONS)
        for word in re.findall(r"\w+", text.lower()) or [""]:
            seed = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=4).digest(), "big")
            row += np.random.default_rng(seed).normal(size=NUM_DIMENSIONS)
        rows.append(row / np.linalg.norm(row))
    return np.array(rows, dtype=np.float32)


class FakeEncoder:
    """Stands in for `TextEncoder`."""

    name, digest = "fake", "0" * 32

    def encode(self, texts):
        return word_vectors(texts)


class FakeSentenceTransformer:
    """Stands in for `sentence_transformers.SentenceTransformer`: reads six words at once, counts what it encodes."""

    num_encoded = 0

    def __init__(self, folder, device):
        self.max_seq_length = 8
        self.tokenizer = FakeWordTokenizer()

    def eval(self):
        return self

    def encode(self, texts, **_):
        FakeSentenceTransformer.num_encoded += len(texts)
        assert max(len(text.split()) for text in texts) <= self.max_seq_length - 2
        return word_vectors(texts)


class FakeWordTokenizer:
    """One token a word."""

    is_fast = True

    def __call__(self, text, **_):
        return {"offset_mapping": [match.span() for match in re.finditer(r"\S+", text)]}


def fake_library():
    """Return a module in place of `sentence_transformers`."""
    return SimpleNamespace(SentenceTransformer=FakeSentenceTransformer, __spec__=SimpleNamespace(origin=None))
