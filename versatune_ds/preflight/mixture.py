"""Check prior and references (present, of the run's domains, measured with its tokens), data supply and policy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from versatune_ds.config.unread_settings import unread_detect_settings, unread_settings
from versatune_ds.data.encoding.templates import template_digest
from versatune_ds.data.encoding.tokenizer import tokenizer_digest
from versatune_ds.mixture.controller import Controller
from versatune_ds.mixture.offline.outlook import (
    MANY_EPOCHS,
    Supply,
    bounds_line,
    epochs_by_domain,
    exhaustion_warnings,
    start_warnings,
)
from versatune_ds.mixture.reference import (
    References,
    digest_mismatches,
    load_references,
    memorisation_warnings,
    not_held_out,
)
from versatune_ds.mixture.schedule import Schedule
from versatune_ds.mixture.settings import guarded_start, starting_weights
from versatune_ds.preflight.data import encode_sample
from versatune_ds.preflight.subject import Subject
from versatune_ds.training.finding import Finding, failures_of, ok, warn
from versatune_ds.training.length.late_updates import updates_in_words, way_to_update
from versatune_ds.training.length.run_length import steps_of_epochs, with_length


def check_mixture(subject: Subject) -> Iterator[Finding]:
    """Start the mixture as training would, on estimated sizes of the domains."""
    # Settings that nothing reads.
    settings, domain_set = subject.config.mixture, subject.domain_set
    yield from _warnings([*unread_settings(subject.config), *unread_detect_settings(subject.config)], check="keys")
    # The weights of step 0; checks that need them are skipped if they are wrong.
    weights_K, references = None, None
    supply = _estimated_supply(subject)
    sizes_K = np.ones(len(domain_set)) if supply is None else supply.sizes_K
    try:
        named_K = starting_weights(settings, domain_set=domain_set, sizes_K=sizes_K)
        weights_K = guarded_start(settings, named_K, domain_set=domain_set)
        shown = ", ".join(f"{name} {weight:.3f}" for name, weight in domain_set.to_dict(weights_K).items())
        yield ok("prior", "mixture.prior", f"step 0 draws about {shown}")
        lines = start_warnings(settings, named_K=named_K, start_K=weights_K, domain_set=domain_set)
        yield from _warnings(lines, check="prior")
        line = bounds_line(settings, start_K=weights_K, domain_set=domain_set)
        if line is not None:
            yield ok("prior", "mixture.safeguards", line)
    except ValueError as error:
        yield from failures_of(error, check="prior")
    # References, supply, and the controller that uses both.
    try:
        references = load_references(settings, domain_set=domain_set)
    except ValueError as error:
        yield from failures_of(error, check="reference")
    if references is not None:
        yield from _check_references(subject, references)
    num_steps = subject.config.train.steps
    if weights_K is not None and supply is not None:
        if num_steps is None:
            num_steps, finding = _epochs_as_steps(subject, supply, weights_K)
            yield finding
        yield from _check_supply(subject, supply, weights_K, num_steps=num_steps)
    if weights_K is not None and references is not None:
        yield from _check_controller(subject, references, weights_K, num_steps=num_steps)


def _estimated_supply(subject: Subject) -> Supply | None:
    """Return an estimate of how much data there is, in the weights' unit; loss tokens count as a fixed share of tokens.

    None if files, tokenizer or template fail, which their checks report.
    """
    config = subject.config
    try:
        rows = [encode_sample(subject, name) for name in subject.domain_set]
        num_rows_K = subject.num_rows_K
    except ValueError:
        return None
    num_tokens_K = num_rows_K * [max(sample.mean_tokens * (1.0 - sample.share_cut), 1.0) for sample in rows]
    sizes_K = num_rows_K if config.mixture.weight_unit == "examples" else num_tokens_K
    return Supply(
        sizes_K=sizes_K,
        units_per_step=config.train.rows_per_batch * config.data.row_tokens * sizes_K.sum() / num_tokens_K.sum(),
        max_epochs=config.data.max_epochs_per_domain,
    )


def _epochs_as_steps(subject: Subject, supply: Supply, weights_K: np.ndarray) -> tuple[int, Finding]:
    """Return about how many steps the epochs are, and report them; raise ValueError if the warm-up is longer."""
    train = subject.config.train
    num_steps, words = steps_of_epochs(train, supply=supply, weights_K=weights_K, domain_set=subject.domain_set)
    with_length(train, steps=num_steps)
    return num_steps, ok("supply", "train.epochs", f"about: {train.length_in_epochs} = {num_steps:,} steps; {words}")


def _check_supply(subject: Subject, supply: Supply, weights_K: np.ndarray, *, num_steps: int) -> Iterator[Finding]:
    """Report how many passes over the data the steps are, and which domains are repeated often, or end.

    The passes over all data depend on no weight; those over one domain are under the weights of step 0.
    """
    key = "train.steps" if subject.config.train.epochs is None else "train.epochs"
    epochs = epochs_by_domain(Schedule(weights_K), supply=supply, num_steps=num_steps)
    steps_per_pass = supply.sizes_K.sum() / supply.units_per_step
    smallest = int(np.argmin(supply.sizes_K))
    found = (
        f"about: {num_steps:,} steps are {num_steps / steps_per_pass:.2g} passes over all data, {steps_per_pass:,.0f} "
        f"steps each, and {epochs[-1][smallest]:.2g} over the smallest domain, {subject.domain_set.names[smallest]}"
    )
    yield ok("supply", key, found)
    todo = "give it more rows or less weight (mixture.prior), or train fewer steps"
    if supply.max_epochs is not None:
        todo = "its share then goes to the other domains"
    for found in exhaustion_warnings(
        epochs, supply=supply, domain_set=subject.domain_set, tolerated_epochs=MANY_EPOCHS
    ):
        yield warn("supply", key, f"about: {found}, under the weights of step 0", todo)


def _check_references(subject: Subject, references: References) -> Iterator[Finding]:
    """Compare where references come from with the run, as training does before the model is loaded."""
    key, is_refused = "mixture.reference", subject.config.mixture.reference_check == "refuse"
    stated = references.provenance.get("digests", {})
    problems = not_held_out(references)
    if stated and subject.has_own_tokenizer:
        run_digests = {
            "tokenizer": tokenizer_digest(subject.tokenizer),
            "template": template_digest(subject.template),
            "mask": subject.config.data.loss_on,
        }
        problems += digest_mismatches(references, run_digests=run_digests)
    elif stated:
        yield warn("reference", key, "its digests are compared when the tokenizer is trained", "run versatune prepare")
    if problems and is_refused:
        yield from failures_of(ValueError("\n".join(problems)), check="reference")
    else:
        yield from _warnings(problems, check="reference")
    yield from _warnings(memorisation_warnings(references, domain_set=subject.domain_set), check="reference")
    if not problems:
        yield ok("reference", key, _describe(references, stated=bool(stated)))


def _warnings(lines: Iterable[str], *, check: str) -> Iterator[Finding]:
    """Yield messages `key: what came; what to do` as warnings."""
    for finding in failures_of(ValueError("\n".join(lines)), check=check):
        yield warn(check, finding.key, finding.found, finding.todo)


def _describe(references: References, *, stated: bool) -> str:
    """Return what the references are, in a few words."""
    if references.losses_K is not None:
        origin = references.origin.removeprefix("mixture.reference").removeprefix(": ") or "the recipe"
        return f"{len(references.losses_K)} losses from {origin}, {'digests fit' if stated else 'no digests stated'}"
    if references.start_fraction is not None:
        return f"{references.start_fraction:g} of each first loss, a stand-in for measured references"
    return "not needed by this policy"


def _check_controller(
    subject: Subject, references: References, weights_K: np.ndarray, *, num_steps: int | None
) -> Iterator[Finding]:
    """Let the controller check its settings; raises ValueError if they contradict each other.

    How often it updates is not reported where the steps are unknown: epochs of data that could not be read.
    """
    settings = subject.config.mixture
    Controller(domain_set=subject.domain_set, settings=settings, weights_K=weights_K, references=references)
    if num_steps is None:
        return
    settings = settings.for_length(num_steps)
    found = updates_in_words(settings, num_steps=num_steps, is_most=subject.config.validation.max_share is not None)
    todo = way_to_update(settings, num_steps=num_steps)
    if todo is None:
        yield ok("policy", "mixture.policy", found)
    else:
        yield warn("policy", "mixture.update_every", found, todo)
