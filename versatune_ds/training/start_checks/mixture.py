"""Start checks of what moves the weights: the policy, its measurements, its prior and its references."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from versatune_ds.data.sources.domain_files import domain_names
from versatune_ds.domains import DomainSet
from versatune_ds.mixture.files import no_such_file
from versatune_ds.mixture.reference import check_has_references
from versatune_ds.mixture.settings import target_id_of
from versatune_ds.mixture.weights import as_weights
from versatune_ds.training.best import check_judged, judging_keys
from versatune_ds.training.finding import Finding, warn
from versatune_ds.training.prepared_data import cache_folder
from versatune_ds.training.start_checks.check_input import StartCheckInput, is_made_by_another_job


def check_policy(start: StartCheckInput) -> None:
    """Check that a policy of the user's own can be imported, and that the target is a domain."""
    settings, data = start.config.mixture, start.config.data
    settings.check_for_rule(settings.rule)
    names = None if is_made_by_another_job(start) else domain_names(data, cache_dir=cache_folder(start.config))
    if settings.has_target and names is not None:
        target_id_of(settings, DomainSet(names))


def check_judges(start: StartCheckInput) -> None:
    """Check that held-out losses are measured where a run is judged by them, and that their domain exists."""
    config = start.config
    for key, metric in judging_keys(config).items():
        names = None if is_made_by_another_job(start) else domain_names(config.data, cache_dir=cache_folder(config))
        check_judged(key, metric, domains=names, signal=config.mixture.signal)


def check_tasks(start: StartCheckInput) -> None:
    """Check that questions can be asked while training, and that their files exist."""
    settings = start.config.validation.tasks
    if settings is None:
        return
    missing = [path for path in settings.choices if not path.exists()]
    if missing and not is_made_by_another_job(start):
        raise ValueError(f"validation.tasks.choices: {missing[0]}: no such file or folder; expected DOMAIN.jsonl")


def check_signal(start: StartCheckInput) -> Iterator[Finding]:
    """Check that a loss signal of the user's own can be imported; warn of references in another unit."""
    settings = start.config.mixture
    if settings.has_own_signal and settings.signal_function is not None and isinstance(settings.reference, Path):
        yield warn(
            "signal",
            "mixture.reference",
            f"{settings.reference} has held-out losses, and mixture.signal={settings.signal} numbers of its own",
            "give references in its unit, as a mapping or {start_fraction: 0.85}, unless it is that of the file",
        )


def check_prior(start: StartCheckInput) -> None:
    """Check that the prior's file exists, or that its weights are weights."""
    prior = start.config.mixture.prior
    if isinstance(prior, Path) and not prior.is_file():
        raise ValueError(no_such_file(prior, what="mixture.prior"))
    if isinstance(prior, dict):
        as_weights(list(prior.values()), "mixture.prior")


def check_reference(start: StartCheckInput) -> None:
    """Check that the policy has the references it needs, and that their file exists."""
    reference = start.config.mixture.reference
    check_has_references(start.config.mixture)
    if isinstance(reference, Path) and not reference.is_file():
        raise ValueError(no_such_file(reference, what="mixture.reference"))
