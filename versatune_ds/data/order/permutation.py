"""Shuffle the examples of a domain without storing an order.

Example `i` of epoch `e` is a keyed permutation of `i`, computed when needed. There is no index array to build, shuffle,
save or send to other ranks; every example of a billion costs the same, and the position of a run in a domain is one
integer, the domain's draw counter:

    epoch, position = divmod(draw, size);  index = permutation(domain key, epoch)(position)

The permutation is a Feistel network on the smallest power of two that is at least `size`, repeated until the result is
below `size`. Source: Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002, section 4 (cycle walking).
Differences from the paper: the two halves may differ by a bit, so that fewer than two repetitions are needed on
average; the round function is a 64-bit mixer and not a cipher: it shuffles, it hides nothing.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numba import njit

NUM_ROUNDS = 6
NUM_ROUNDS_SMALL = 24
SMALL_BITS = 10
"""Rounds of the network; domains of fewer than 2^10 examples use the larger number. A half of one or two bits has so
few round functions that six rounds reach some of the 120 permutations of five examples 100 times as often as others;
with 24 rounds all are equally frequent (chi-square over degrees of freedom: 144 and 1.00)."""

NUM_PROBES = 1024
"""Number of lengths read when a domain is opened."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)
_ONE = np.uint64(1)


@njit(cache=True, nogil=True)
def _mix(value: np.uint64) -> np.uint64:
    """Scramble 64 bits, one to one (the finaliser of splitmix64)."""
    value = (value ^ (value >> np.uint64(30))) * _MULTIPLIER_1
    value = (value ^ (value >> np.uint64(27))) * _MULTIPLIER_2
    return value ^ (value >> np.uint64(31))


@njit(cache=True, nogil=True)
def _feistel(value: np.uint64, key: np.uint64, low_bits: np.uint64, high_bits: np.uint64, rounds: int) -> np.uint64:
    """Permute the integers of `low_bits + high_bits` bits; each round changes one half by a hash of the other."""
    low_mask = (_ONE << low_bits) - _ONE
    high_mask = (_ONE << high_bits) - _ONE
    low = value & low_mask
    high = value >> low_bits
    for round_number in range(rounds):
        round_key = key + np.uint64(round_number) * _GOLDEN
        if round_number % 2 == 0:
            low ^= _mix(high + round_key) & low_mask
        else:
            high ^= _mix(low + round_key) & high_mask
    return (high << low_bits) | low


@njit(cache=True, nogil=True)
def _num_bits(size: int) -> int:
    bits = 0
    while (1 << bits) < size:
        bits += 1
    return bits


@njit(cache=True, nogil=True)
def _fill_indices(domain_key: np.uint64, first_draw: int, size: int, epochs: np.ndarray, indices: np.ndarray) -> None:
    """Write epoch and example index of consecutive draws into two int64 arrays of equal length."""
    # The network for this size.
    bits = _num_bits(size)
    low_bits = np.uint64(bits - bits // 2)
    high_bits = np.uint64(bits // 2)
    rounds = NUM_ROUNDS_SMALL if bits < SMALL_BITS else NUM_ROUNDS
    # Where the draws begin; each epoch has a key of its own.
    epoch = first_draw // size
    position = first_draw - epoch * size
    key = _mix(domain_key ^ _mix(np.uint64(epoch) + _GOLDEN))
    for draw in range(len(indices)):
        if position == size:
            position = 0
            epoch += 1
            key = _mix(domain_key ^ _mix(np.uint64(epoch) + _GOLDEN))
        value = _feistel(np.uint64(position), key, low_bits, high_bits, rounds)
        while value >= np.uint64(size):
            value = _feistel(value, key, low_bits, high_bits, rounds)
        epochs[draw] = epoch
        indices[draw] = np.int64(value)
        position += 1


def domain_key(seed: int, domain_name: str) -> int:
    """Return the 64-bit key of a domain's order.

    It depends on the run's seed and the domain's name, not on its id: adding a domain to a run, or listing the domains
    in another order, does not change the order within any other domain.
    """
    digest = hashlib.blake2b(f"{seed}:{domain_name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def draw_indices(key: int, *, first_draw: int, count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return epoch and example index of `count` consecutive draws from a domain.

    Args:
        key: From `domain_key`.
        first_draw: Number of the first draw, counted from 0 over all epochs.
        count: Number of draws.
        size: Number of examples of the domain, at least 1. In every epoch each example is drawn exactly once.

    Returns:
        Two int64 arrays [count]: epochs, and indices in [0, size).

    Raises:
        ValueError: If the domain is empty or a number is negative.
    """
    if size < 1 or first_draw < 0 or count < 0:
        raise ValueError(f"draws {first_draw}..{first_draw + count} of {size} examples: expected a size of 1 or more")
    epochs, indices = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)
    _fill_indices(np.uint64(key), first_draw, size, epochs, indices)
    return epochs, indices


def probe_of(lengths: np.ndarray) -> np.ndarray:
    """Return at most 1024 consecutive lengths from the middle: each separate read of a memory map would cost 64 KiB."""
    first = max(len(lengths) - NUM_PROBES, 0) // 2
    return np.asarray(lengths[first : first + NUM_PROBES])


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainOrder:
    """What a plan needs of one domain: its lengths, and the key of its order."""

    name: str
    key: int
    """From `domain_key`."""
    lengths: np.ndarray
    """int32 [num_examples] tokens of each example; may be a memory map."""
    loss_lengths: np.ndarray
    """int32 [num_examples] tokens that bear loss; may be a memory map."""
    mean_tokens: float
    """Mean of some of the `lengths`; it decides how far a plan looks ahead, never what it draws."""
    mean_loss_tokens: float
    """The same for `loss_lengths`."""

    @staticmethod
    def of(name: str, *, seed: int, lengths: np.ndarray, loss_lengths: np.ndarray) -> DomainOrder:
        """Return the order of a domain; reads at most 1024 lengths, however many there are."""
        probe, loss_probe = probe_of(lengths), probe_of(loss_lengths)
        return DomainOrder(
            name=name,
            key=domain_key(seed, name),
            lengths=lengths,
            loss_lengths=loss_lengths,
            mean_tokens=float(probe.mean()) if len(probe) else 0.0,
            mean_loss_tokens=float(loss_probe.mean()) if len(loss_probe) else 0.0,
        )

    @property
    def size(self) -> int:
        """Return the number of examples."""
        return len(self.lengths)

    def window(self, first_draw: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return epochs, indices and lengths of consecutive draws, each [count]."""
        epochs, indices = draw_indices(self.key, first_draw=first_draw, count=count, size=self.size)
        return epochs, indices, np.take(self.lengths, indices)
