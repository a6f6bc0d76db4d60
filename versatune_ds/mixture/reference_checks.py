"""Check that reference losses can steer a run.

Wrong references do not crash. They make every potential equal, so that no weight moves, or leave `steer` nothing but
the losses themselves. So what makes the method useless is refused, and what weakens it is logged, each with what to do.

Source: docs/method.md section 8.

Shape legend: **K** domains.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from versatune_ds.domains import DomainSet
from versatune_ds.mixture.reference import References

SATURATED_POTENTIAL = 0.95
"""Potential above which nearly all of a loss counts as left to learn, as with memorised references."""

MEMORISATION_RATIO = 0.5
"""A reference model whose training loss is below this fraction of its held-out loss has memorised its rows."""

_WAY_OUT = "measure them on held-out rows with versatune reference"


def refuse_or_warn(problems: list[str], *, is_refused: bool) -> list[str]:
    """Return the problems as warnings, or raise them.

    Raises:
        ValueError: If `is_refused` and there is any, one line each.
    """
    if problems and is_refused:
        raise ValueError("\n".join(problems))
    return problems


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
    """Return a warning for each domain whose reference is above its first loss, or saturates alone."""
    if references.losses_K is None:
        return []
    warnings = []
    for name, reference, start in zip(domain_set, references.losses_K, start_K, strict=True):
        if reference >= start:
            warnings.append(
                f"{references.origin}: {name}: reference {reference:.4f} is not below the first loss {start:.4f}; "
                "its potential is 0 and its weight will shrink"
            )
        elif 1.0 - reference / start > SATURATED_POTENTIAL:
            warnings.append(
                f"{references.origin}: {name}: reference {reference:.4f} is under 5 % of the first loss {start:.4f}; "
                "nearly all of its loss counts as left to learn"
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
    """Return a warning for each domain whose reference model had memorised its training rows."""
    train_losses = references.provenance.get("train_losses", {})
    if references.losses_K is None:
        return []
    return [
        f"{references.origin}: {name}: the reference model's training loss {train_losses[name]:.4f} is far below its "
        f"held-out loss {held_out:.4f}: it memorised its rows; stop it earlier (reference.patience) or give it more "
        "rows"
        for name, held_out in zip(domain_set, references.losses_K, strict=True)
        if name in train_losses and train_losses[name] < MEMORISATION_RATIO * held_out
    ]


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
    return refuse_or_warn(fatal, is_refused=is_refused) + memorisation_warnings(references, domain_set=domain_set)


def check_against_start(
    references: References, *, start_K: np.ndarray, domain_set: DomainSet, is_refused: bool = True
) -> list[str]:
    """Return warnings about references against the first measured losses [K].

    Raises:
        ValueError: If `is_refused` and the references would make the potential equal everywhere.
    """
    fatal = fatal_against_start(references, start_K=start_K, domain_set=domain_set)
    if fatal:
        return refuse_or_warn([fatal], is_refused=is_refused)
    return weak_against_start(references, start_K=start_K, domain_set=domain_set)
