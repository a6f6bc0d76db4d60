"""Check the files of every domain: that they can be read, and how many rows they have."""

from __future__ import annotations

from collections.abc import Iterator

from versatune_ds.data.sources.domain_files import key_of
from versatune_ds.preflight.subject import DomainSample, Subject
from versatune_ds.training.finding import Finding, fail, failures_of, ok, warn
from versatune_ds.training.mixture_start import is_never_measured, nothing_measured


def check_files(subject: Subject) -> Iterator[Finding]:
    """Find and sample every domain's files, and report their sizes and records."""
    for name in subject.files_of_domain:
        for split in ("train", "valid"):
            try:
                sample = subject.sample(name, split)
            except ValueError as error:
                yield from failures_of(error, check="files")
                continue
            if sample.files:
                yield _describe(sample)
        if subject.files_of_domain[name].valid == ():
            found = f"{name} has no held-out rows: its loss is not measured, and no loss of its own moves its weight"
            yield warn("files", key_of(subject.config.data, domain=name, split="valid"), found, _todo(subject, name))
    if is_never_measured(subject.config, num_valid_K=[files.valid != () for files in subject.files_of_domain.values()]):
        yield warn("files", "mixture.policy", *nothing_measured(subject.config).split("; "))


def _todo(subject: Subject, domain: str) -> str:
    """Return where a domain's held-out rows would go."""
    data = subject.config.data
    return f"write {data.folder}/valid/{domain}.jsonl" if data.folder else "name files, or null to split some rows off"


def _describe(sample: DomainSample) -> Finding:
    """Return how many files, bytes and rows a split has."""
    num_bytes = sum(file.path.stat().st_size for file in sample.files)
    about = "" if all(file.is_counted for file in sample.files) else "about "
    found = f"{len(sample.files)} file{'s' * (len(sample.files) > 1)}, {num_bytes / 2**20:,.1f} MiB, {about}"
    found += f"{sample.num_rows:,.0f} rows"
    if sample.num_rows == 0:
        return fail("files", sample.key, f"{sample.files[0].path} has no row", "give it rows or leave the domain out")
    return ok("files", f"{sample.domain} {sample.split}", found)
