"""Load the reference losses that the potential is measured against, and check that they can steer a run.

A reference is the held-out loss a model could reach on a domain. Without honest references no weight moves for a good
reason, so having none is an error for policies that need them, and a stand-in must be chosen explicitly.

Wrong references do not crash. They make every potential equal, so that no weight moves, or leave `steer` nothing but
the losses themselves. So what makes the method useless is refused, and what weakens it is logged, each with what to do.

Source: docs/method.md section 8.

Shape legend: **K** domains.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from versatune_ds.config import MixtureConfig
from versatune_ds.config.mixture_sections import StartFraction
from versatune_ds.domains import DomainSet
from versatune_ds.mixture.files import read_domain_values

SATURATED_POTENTIAL = 0.95
"""Potential above which nearly all of a loss counts as left to learn, as with memorised references."""

MEMORISATION_RATIO = 0.5
"""A reference model whose training loss is below this fraction of its held-out loss has memorised its rows."""

_WAY_OUT = "measure them on held-out rows with versatune reference"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class References:
    """Reference losses, or the rule that fixes them at the first measurement."""

    losses_K: np.ndarray | None = None
    """float64 held-out losses in nats per loss token, or None."""
    start_fraction: float | None = None
    """Reference = this fraction of a domain's first measured loss, where `losses_K` is None."""
    origin: str = "mixture.reference"
    """Key or file they came from, for messages."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """The file's other entries: `digests`, `train_losses`, `measured_on`, ..."""

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


def fatal_against_start(references: References, *, start_K: np.ndarray, domain_set: DomainSet) -> str | None:
    """Return what makes given references useless against the first measured losses [K], or None.

    Two ways: the potential is about 1 in all domains (memorised, or training losses), or 0 in all domains (references
    above the model's own losses: another tokenizer or mask, or a worse model).
    """
    if references.losses_K is None or np.all(np.isnan(start_K)):
        return None
    is_missing_K = np.isnan(references.losses_K) & ~np.isnan(start_K)
    if np.any(is_missing_K):
        names = ", ".join(name for name, is_missing in zip(domain_set, is_missing_K, strict=True) if is_missing)
        return f"{references.origin}: no reference loss for {names}, whose held-out loss is measured; {_WAY_OUT}"
    with np.errstate(divide="ignore"):  # a signal of the user's own may start at 0: nothing is left to learn there
        potential_K = (1.0 - references.losses_K / start_K)[~np.isnan(start_K)]
    if len(domain_set) > 1 and np.all(potential_K > SATURATED_POTENTIAL):
        return (
            f"{references.origin}: the learnable potential exceeds {SATURATED_POTENTIAL} in all domains (least "
            f"{np.min(potential_K):.4f}): these look like memorised or training losses, and do not tell domains apart; "
            f"{_WAY_OUT}"
        )
    if np.all(potential_K <= 0):
        return (
            f"{references.origin}: every reference loss is at or above the model's own first loss, so nothing would "
            f"be left to learn (another tokenizer, template or loss mask?); {_WAY_OUT}"
        )
    return None


def weak_against_start(references: References, *, start_K: np.ndarray, domain_set: DomainSet) -> list[str]:
    """Return a warning about references above the first loss, and one about those that leave nearly all of it to learn.

    Each lists its domains, so that a recipe whose references all have one fault gets one line.
    """
    if references.losses_K is None:
        return []
    above, saturated = [], []
    for name, reference, start in zip(domain_set, references.losses_K, start_K, strict=True):
        pair = f"{name} ({reference:.4f}, first loss {start:.4f})"
        if reference >= start:
            above.append(pair)
        elif 1.0 - reference / start > SATURATED_POTENTIAL:
            saturated.append(pair)
    warnings = []
    if above:
        warnings.append(
            f"{references.origin}: {', '.join(above)}: the reference is not below the first loss; the potential is 0 "
            "and the weight will shrink"
        )
    if saturated:
        warnings.append(
            f"{references.origin}: {', '.join(saturated)}: the reference is under 5 % of the first loss; nearly all of "
            "the loss counts as left to learn"
        )
    return warnings


def digest_mismatches(references: References, *, run_digests: Mapping[str, str]) -> list[str]:
    """Return one line for each digest that differs between the reference file and the run.

    Args:
        references: References whose provenance may contain `digests`, a mapping such as {tokenizer, template, mask}.
        run_digests: The same for the run; those that only one side has are not compared.
    """
    stated = references.provenance.get("digests", {})
    return [
        f"{references.origin}: measured with another {name} (digest {stated[name]}, this run {digest}): losses are not "
        "comparable; measure the references again with versatune reference"
        for name, digest in run_digests.items()
        if name in stated and stated[name] != digest
    ]


def memorisation_warnings(references: References, *, domain_set: DomainSet) -> list[str]:
    """Return a warning that lists the domains whose reference model had memorised its training rows."""
    train_losses = references.provenance.get("train_losses", {})
    if references.losses_K is None:
        return []
    memorised = [
        f"{name} (training loss {train_losses[name]:.4f}, held-out loss {held_out:.4f})"
        for name, held_out in zip(domain_set, references.losses_K, strict=True)
        if name in train_losses and train_losses[name] < MEMORISATION_RATIO * held_out
    ]
    if not memorised:
        return []
    found = f"{references.origin}: {', '.join(memorised)}: the reference model memorised its rows"
    return [f"{found}; stop it earlier (reference.patience) or give it more rows"]


def not_held_out(references: References) -> list[str]:
    """Return why a file is refused whose losses were measured on training rows; empty for held-out ones."""
    measured_on = references.provenance.get("measured_on", "held-out")
    if measured_on in ("held-out", "held_out", "valid", "validation"):
        return []
    refusal = (
        f"{references.origin}: the losses were measured on {measured_on!r} rows; references must be held-out losses; "
        f"{_WAY_OUT}"
    )
    return [refusal]


def check_provenance(
    references: References, *, domain_set: DomainSet, run_digests: Mapping[str, str], is_refused: bool = True
) -> list[str]:
    """Return warnings about where references come from; no measured loss is needed, so it runs before the model.

    Raises:
        ValueError: If `is_refused` and the digests differ or the losses are not held-out ones.
    """
    fatal = digest_mismatches(references, run_digests=run_digests) + not_held_out(references)
    if fatal and is_refused:
        raise ValueError("\n".join(fatal))
    return fatal + memorisation_warnings(references, domain_set=domain_set)


def check_against_start(
    references: References, *, start_K: np.ndarray, domain_set: DomainSet, is_refused: bool = True
) -> list[str]:
    """Return warnings about references against the first measured losses [K].

    Raises:
        ValueError: If `is_refused` and the references would make the potential equal everywhere.
    """
    fatal = fatal_against_start(references, start_K=start_K, domain_set=domain_set)
    if fatal and is_refused:
        raise ValueError(fatal)
    return [fatal] if fatal else weak_against_start(references, start_K=start_K, domain_set=domain_set)
