"""Save and restore the position of a run in its data.

The position is K draw counters and K deficits after a step, the same on every rank, with the seed, domains and sizes to
which they belong. Batches planned ahead are not saved: they are planned again.
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
    """The data that the counters of a state belong to; a run and the run that resumes it have the same.

    Attributes:
        seed: Seed of the order.
        weight_unit: Unit of the deficits.
        domains: Names in id order.
        num_examples: Examples of each domain.
        lengths_digest: Digest of up to 1024 lengths of each domain, which changes if the data is tokenised differently.
    """

    seed: int
    weight_unit: str
    domains: tuple[str, ...]
    num_examples: tuple[int, ...]
    lengths_digest: str


def identity_of(orders: Sequence[DomainOrder], *, seed: int, weight_unit: str) -> DataIdentity:
    """Return the identity of a run's data."""
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
    """Return the position after a step as JSON values."""
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
    """Return sampler state and step of a saved position.

    Raises:
        RuntimeError: If the position belongs to other data, seed or version, with one line for every difference.
    """
    expected = state_to_json(SamplerState.start(len(identity.domains)), step=0, identity=identity)
    fixed = [key for key in expected if key not in ("step", "draws", "deficits")]
    differing = [
        f"data state: {key} is {values.get(key)!r}, expected {expected[key]!r} as in this run"
        for key in fixed
        if values.get(key) != expected[key]
    ]
    if differing:
        raise RuntimeError("\n".join([*differing, "continue with the data of the checkpoint, or start a new run"]))
    draws_K = np.array(values["draws"], dtype=np.int64)
    return SamplerState(draws_K=draws_K, deficit_K=np.array(values["deficits"], dtype=np.int64)), int(values["step"])
