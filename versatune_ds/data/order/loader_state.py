"""Save and restore where the data of a run stands.

The one idea: the place is K draw counters and K deficits after a step, the same on every rank, and what they are
counters of: seed, domains, sizes. Batches planned ahead are not part of it: they are planned again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from versatune_ds.data.order.permutation import DomainOrder, probe_of
from versatune_ds.data.order.sampler import SamplerState

STATE_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class DataIdentity:
    """Say what the counters of a state count; equal for a run and the run that continues it.

    Attributes:
        seed: Seed of the order.
        weight_unit: Unit of the deficits.
        domains: Names in id order.
        num_examples: Examples of each domain.
        lengths_digest: Digest of up to 1024 lengths of each domain: tells data tokenised otherwise.
    """

    seed: int
    weight_unit: str
    domains: tuple[str, ...]
    num_examples: tuple[int, ...]
    lengths_digest: str


def identity_of(orders: Sequence[DomainOrder], *, seed: int, weight_unit: str) -> DataIdentity:
    """Return what a run's counters count."""
    hasher = hashlib.blake2b(digest_size=16)
    for order in orders:
        hasher.update(np.ascontiguousarray(probe_of(order.lengths), dtype="<i4").tobytes())
    return DataIdentity(
        seed=seed,
        weight_unit=weight_unit,
        domains=tuple(order.name for order in orders),
        num_examples=tuple(order.size for order in orders),
        lengths_digest=hasher.hexdigest(),
    )


def state_to_json(state: SamplerState, *, step: int, identity: DataIdentity) -> dict[str, Any]:
    """Return the place after a step as plain ints, strings and lists."""
    return {
        "version": STATE_VERSION,
        "step": step,
        "seed": identity.seed,
        "weight_unit": identity.weight_unit,
        "domains": list(identity.domains),
        "num_examples": list(identity.num_examples),
        "lengths_digest": identity.lengths_digest,
        "draws": state.draws_K.tolist(),
        "deficits": state.deficit_K.tolist(),
    }


def state_from_json(values: dict[str, Any], *, identity: DataIdentity) -> tuple[SamplerState, int]:
    """Return sampler state and step of a saved place.

    Raises:
        RuntimeError: If the place belongs to other data, seed or version; one line for every difference.
    """
    expected = state_to_json(SamplerState.start(len(identity.domains)), step=0, identity=identity)
    fixed = [key for key in expected if key not in ("step", "draws", "deficits")]
    differing = [
        f"data state: {key} is {values.get(key)!r}, this run has {expected[key]!r}"
        for key in fixed
        if values.get(key) != expected[key]
    ]
    if differing:
        raise RuntimeError("\n".join([*differing, "continue with the data of the checkpoint, or start a new run"]))
    draws_K = np.array(values["draws"], dtype=np.int64)
    return SamplerState(draws_K=draws_K, deficit_K=np.array(values["deficits"], dtype=np.int64)), int(values["step"])
