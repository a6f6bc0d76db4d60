"""Load the reference losses that the potential is measured against.

A reference is the held-out loss a model could reach on a domain. Without honest references no weight moves for a good
reason, so having none is an error for policies that need them, and a stand-in must be chosen explicitly.

Shape legend: **K** domains.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from versatune_ds.config import MixtureConfig
from versatune_ds.config.mixture import StartFraction
from versatune_ds.domains import DomainSet
from versatune_ds.mixture.files import read_domain_values


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class References:
    """Reference losses, or the rule that fixes them at the first measurement.

    Attributes:
        losses_K: float64 held-out losses in nats per loss token, or None.
        start_fraction: Reference = this fraction of a domain's first measured loss, where `losses_K` is None.
        origin: Key or file they came from, for messages.
        provenance: The file's other entries: `digests`, `train_losses`, `measured_on`, ...
    """

    losses_K: np.ndarray | None = None
    start_fraction: float | None = None
    origin: str = "mixture.reference"
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self, domain_set: DomainSet) -> dict[str, Any] | None:
        """Return the content of a reference.json, None where no losses were given."""
        if self.losses_K is None:
            return None
        return {**self.provenance, "losses": domain_set.to_dict(self.losses_K)}

    def at_start(self, start_K: np.ndarray) -> np.ndarray:
        """Return the reference losses [K], given the first measured loss of each domain (NaN where none yet)."""
        if self.losses_K is not None:
            return self.losses_K
        fraction = np.nan if self.start_fraction is None else self.start_fraction
        return fraction * start_K


def check_has_references(settings: MixtureConfig) -> None:
    """Raise ValueError if the policy needs references and the recipe has none."""
    if settings.reference is None and settings.rule.needs_references:
        raise ValueError(
            f"mixture.reference: policy {settings.policy!r} needs reference losses and none are given; run "
            "versatune reference with this recipe and set mixture.reference to the reference.json it writes, or "
            "choose the stand-in mixture.reference={start_fraction: 0.85}"
        )


def load_references(settings: MixtureConfig, *, domain_set: DomainSet) -> References:
    """Return the references of `mixture.reference`.

    Args:
        settings: The recipe's mixture section.
        domain_set: Domains of the run.

    Raises:
        ValueError: If the policy needs references and there are none, a file is missing or wrong, or a loss is not
            positive.
    """
    check_has_references(settings)
    reference = settings.reference
    if reference is None:
        return References()
    if isinstance(reference, StartFraction):
        return References(start_fraction=reference.start_fraction)
    if isinstance(reference, Path):
        losses_K, provenance = read_domain_values(
            reference, key="losses", what="mixture.reference", domain_set=domain_set, allows_null=True
        )
        origin = f"mixture.reference: {reference}"
        return References(
            losses_K=_checked(losses_K, domain_set=domain_set, origin=origin, allows_unknown=True),
            origin=origin,
            provenance=provenance,
        )
    losses_K = domain_set.from_dict(reference, what="mixture.reference")
    return References(losses_K=_checked(losses_K, domain_set=domain_set, origin="mixture.reference"))


def _checked(losses_K: np.ndarray, *, domain_set: DomainSet, origin: str, allows_unknown: bool = False) -> np.ndarray:
    """Return the losses; raise ValueError with the first that is not positive and finite.

    In a file, null (NaN here) means a domain without held-out rows; one of a domain that is measured is refused
    at its first measurement.
    """
    for name, loss in zip(domain_set, losses_K, strict=True):
        if np.isnan(loss) and allows_unknown and not np.all(np.isnan(losses_K)):
            continue
        if not np.isfinite(loss) or loss <= 0:
            raise ValueError(f"{origin}: {name}: expected a positive loss in nats per loss token, got {loss}")
    return losses_K
