"""Count every domain's held-out rows, and warn where a domain has so few that its loss says little.

`data.valid_fraction` is one number for all domains: what holds out two rows of a small domain may hold out thousands of
a large one. So the advice includes what a larger fraction would hold out of the others.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import numpy as np

from versatune_ds.data.prepare.one_domain import is_held_out_by_hash
from versatune_ds.preflight.data import encode_sample
from versatune_ds.preflight.subject import Subject
from versatune_ds.training.finding import Finding, fail, ok, warn

_LARGER_FRACTIONS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4)
_FEW = 1
"""Held-out rows of which a loss has no standard error."""


def check_held_out(subject: Subject) -> Iterator[Finding]:
    """Report the held-out rows by domain; warn of a domain with a single one, fail for one without any."""
    by_hash = _hashes_of_domains(subject)
    fraction = subject.config.data.valid_fraction
    counts, listed = {}, []
    for name in subject.readable_domains():
        about, counts[name] = _num_held_out(subject, name, by_hash)
        listed.append(f"{name} {'about ' if about else ''}{counts[name]:,.0f}")
    if listed:
        split_off = f"; {fraction:g} of the rows of {', '.join(by_hash)} (data.valid_fraction)" if by_hash else ""
        yield ok("rows", "held-out rows", f"{', '.join(listed)}{split_off}")
    for name, hashes in by_hash.items():
        if hashes is not None and len(hashes) and counts[name] <= _FEW:
            yield _too_few(subject, name, hashes, num_held_out=int(counts[name]))
    for name, count in counts.items():
        if name not in by_hash and count == _FEW:
            found = f"{name}: 1 held-out row, so its loss has no standard error"
            yield warn("rows", f"{name} valid", found, "give it more of them")


def _hashes_of_domains(subject: Subject) -> dict[str, np.ndarray | None]:
    """Return the content hashes of the domains whose held-out rows are split off; None where they are a sample."""
    hashes: dict[str, np.ndarray | None] = {}
    for name in subject.readable_domains():
        if subject.files_of_domain[name].valid is None:
            is_whole = all(file.is_whole for file in subject.readable_files(name))
            hashes[name] = encode_sample(subject, name).content_hashes if is_whole else None
    return hashes


def _num_held_out(subject: Subject, name: str, by_hash: Mapping[str, np.ndarray | None]) -> tuple[bool, float]:
    """Return whether a domain's number of held-out rows is an estimate, and the number."""
    fraction = subject.config.data.valid_fraction
    if name not in by_hash:
        with contextlib.suppress(ValueError):  # files that cannot be read are reported by their check
            sample = subject.sample(name, "valid")
            return not all(file.is_counted for file in sample.files), sample.num_rows
        return False, 0
    hashes = by_hash[name]
    if hashes is None:
        return True, fraction * subject.sample(name, "train").num_rows
    return False, int(is_held_out_by_hash(hashes, fraction=fraction).sum())


def _too_few(subject: Subject, name: str, hashes: np.ndarray, *, num_held_out: int) -> Finding:
    """Return a finding on a domain of which none or one row is held out, with a fraction that holds out more.

    Args:
        subject: The recipe.
        name: The domain.
        hashes: Content hashes of all its rows.
        num_held_out: Of them, 0 or 1.
    """
    fraction = subject.config.data.valid_fraction
    found = f"{fraction:g} holds out {'1' if num_held_out else 'no'} row of domain {name!r} ({len(hashes)} rows)"
    found += ", so its loss has no standard error" if num_held_out else ""
    todo = "give it files of held-out rows"
    more_of = {larger: int(is_held_out_by_hash(hashes, fraction=larger).sum()) for larger in _LARGER_FRACTIONS}
    larger = next((larger for larger, more in more_of.items() if larger > fraction and more > _FEW), None)
    if larger is not None:
        todo += f", or set data.valid_fraction={larger:g}, which holds out {more_of[larger]}"
        todo += _of_other_domains(subject, name, fraction=larger)
    finding = warn if num_held_out else fail
    return finding("rows", "data.valid_fraction", found, todo)


def _of_other_domains(subject: Subject, name: str, *, fraction: float) -> str:
    """Return about how many rows a fraction would hold out of the other domains; empty if they have files."""
    others = [
        f"about {fraction * subject.sample(other, 'train').num_rows:,.0f} of {other}"
        for other in subject.readable_domains()
        if other != name and subject.files_of_domain[other].valid is None
    ]
    return f" (and {', '.join(others)}: it is one fraction for all domains)" if others else ""
