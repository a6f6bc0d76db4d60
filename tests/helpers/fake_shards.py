"""Fake tokenised examples in which every token encodes its domain, example and position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

TOKENS_PER_EXAMPLE = 1_000
EXAMPLES_PER_DOMAIN = 1_000_000


@dataclass(frozen=True, slots=True)
class FakeShards:
    """Examples computed when read: token t of example i of domain d is d * 10^9 + i * 10^3 + t.

    The first `length - loss_length` tokens are the prompt; only the rest bears loss.
    """

    name: str
    domain_id: int
    lengths: np.ndarray
    loss_lengths: np.ndarray

    @property
    def num_examples(self) -> int:
        return len(self.lengths)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        length = int(self.lengths[index])
        first = (self.domain_id * EXAMPLES_PER_DOMAIN + index) * TOKENS_PER_EXAMPLE
        is_loss = np.zeros(length, dtype=np.bool_)
        is_loss[length - int(self.loss_lengths[index]) :] = True
        return (first + np.arange(length)).astype(np.int32), is_loss


def fake_domain(domain_id: int, lengths: Sequence[int], *, name: str | None = None) -> FakeShards:
    """Return a domain of examples of given lengths; half of each one's tokens bear loss (never the first)."""
    length_E = np.array(lengths, dtype=np.int32)
    return FakeShards(name or f"domain{domain_id}", domain_id, length_E, length_E // 2)


def fake_domains(sizes: Sequence[int], *, longest: int, seed: int = 0) -> list[FakeShards]:
    """Return domains of given sizes with random lengths in 1..longest."""
    rng = np.random.default_rng(seed)
    return [fake_domain(k, rng.integers(1, longest + 1, size)) for k, size in enumerate(sizes)]


def source_of(token: int) -> tuple[int, int, int]:
    """Return domain id, example and position of a token of a fake domain."""
    example, position = divmod(token, TOKENS_PER_EXAMPLE)
    return (*divmod(example, EXAMPLES_PER_DOMAIN), position)
