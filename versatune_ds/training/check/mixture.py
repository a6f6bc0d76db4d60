"""Check the prior and the references: there, of the run's domains, and measured with the run's tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from versatune_ds.data.templates import template_digest
from versatune_ds.data.tokenize import tokenizer_digest
from versatune_ds.mixture.controller import Controller
from versatune_ds.mixture.reference import References, load_references
from versatune_ds.mixture.reference_checks import digest_mismatches, memorisation_warnings, not_held_out
from versatune_ds.mixture.weights import starting_weights
from versatune_ds.training.check.finding import Finding, failures_of, ok, warn
from versatune_ds.training.check.rows import encode_sample
from versatune_ds.training.check.subject import Subject


def check_mixture(subject: Subject) -> Iterator[Finding]:
    """Start the mixture as training would, on estimated sizes of the domains."""
    settings, domain_set = subject.config.mixture, subject.domain_set
    weights_K, references = None, None
    sizes_K = _estimated_sizes(subject)
    try:
        weights_K = starting_weights(settings, domain_set=domain_set, sizes_K=sizes_K)
        shown = ", ".join(f"{name} {weight:.3f}" for name, weight in domain_set.to_dict(weights_K).items())
        yield ok("prior", "mixture.prior", f"step 0 draws about {shown}")
    except ValueError as error:
        yield from failures_of(error, check="prior")
    try:
        references = load_references(settings, domain_set=domain_set)
    except ValueError as error:
        yield from failures_of(error, check="reference")
    if references is not None:
        yield from _check_references(subject, references)
    if weights_K is not None and references is not None:
        yield from _check_controller(subject, references, weights_K)


def _estimated_sizes(subject: Subject) -> np.ndarray:
    """Return the domains' sizes in the weights' unit, float64 [K]; loss tokens are taken as a fixed share of tokens.

    Where files, tokenizer or template fail, which their checks report, all domains count as equal.
    """
    try:
        tokens_per_row_K = np.array([encode_sample(subject, name).mean_tokens for name in subject.domain_set])
        num_rows_K = subject.num_rows_K
    except ValueError:
        return np.ones(len(subject.domain_set))
    return num_rows_K if subject.config.mixture.weight_unit == "examples" else num_rows_K * tokens_per_row_K


def _check_references(subject: Subject, references: References) -> Iterator[Finding]:
    """Compare where references come from with the run, as training does before the model is loaded."""
    key, is_refused = "mixture.reference", subject.config.mixture.reference_check == "refuse"
    stated = references.provenance.get("digests", {})
    problems = not_held_out(references)
    if stated and subject.has_own_tokenizer:
        problems += digest_mismatches(references, run_digests=_digests(subject))
    elif stated:
        yield warn("reference", key, "its digests are compared when the tokenizer is trained", "run versatune prepare")
    for finding in _findings(problems):
        yield finding if is_refused else warn("reference", key, finding.found, finding.todo)
    for finding in _findings(memorisation_warnings(references, domain_set=subject.domain_set)):
        yield warn("reference", key, finding.found, finding.todo)
    if not problems:
        yield ok("reference", key, _describe(references, stated=bool(stated)))


def _findings(lines: Sequence[str]) -> list[Finding]:
    """Return messages `key: what came; what to do` as failures."""
    return [finding for line in lines for finding in failures_of(ValueError(line), check="reference")]


def _describe(references: References, *, stated: bool) -> str:
    """Say what the references are."""
    if references.losses_K is not None:
        origin = references.origin.removeprefix("mixture.reference").removeprefix(": ") or "the recipe"
        return f"{len(references.losses_K)} losses from {origin}, {'digests fit' if stated else 'no digests stated'}"
    if references.start_fraction is not None:
        return f"{references.start_fraction:g} of each first loss, a stand-in for measured references"
    return "not needed by this policy"


def _digests(subject: Subject) -> dict[str, str]:
    """Return what the run's losses depend on."""
    return {
        "tokenizer": tokenizer_digest(subject.tokenizer),
        "template": template_digest(subject.template),
        "mask": subject.config.data.loss_on,
    }


def _check_controller(subject: Subject, references: References, weights_K: np.ndarray) -> Iterator[Finding]:
    """Let the controller check its settings; raises ValueError where they contradict each other."""
    settings = subject.config.mixture
    Controller(domain_set=subject.domain_set, settings=settings, weights_K=weights_K, references=references)
    num_steps = subject.config.train.steps
    most = "" if subject.config.validation.max_share is None else "at most "
    found = f"{settings.policy}, {most}{(num_steps - 1) // settings.update_every} updates in {num_steps} steps"
    yield ok("policy", "mixture.policy", found)
