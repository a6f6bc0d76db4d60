"""Count every domain's held-out rows, and warn where a domain has so few that its loss says little.

`data.valid_fraction` is one number for all domains: what holds out two rows of a small domain may hold out thousands of
a large one. So the advice includes what a larger fraction would hold out of the others.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from versatune_ds.data.prepare.one_domain import is_held_out_by_hash
from versatune_ds.preflight.data import encode_sample
from versatune_ds.preflight.subject import Subject
from versatune_ds.text_table import counted
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
    few = [name for name, hashes in by_hash.items() if hashes is not None and len(hashes) and counts[name] <= _FEW]
    if few:
        yield _too_few(subject, few, by_hash, counts=counts)
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


def _too_few(
    subject: Subject, few: Sequence[str], by_hash: Mapping[str, np.ndarray | None], *, counts: Mapping[str, float]
) -> Finding:
    """Return a finding on the domains of which none or one row is held out, with a fraction that serves all domains.

    Args:
        subject: The recipe.
        few: These domains.
        by_hash: Content hashes of all rows of each domain that is split, None where they are a sample.
        counts: Held-out rows of each domain.
    """
    fraction = subject.config.data.valid_fraction
    known = {name: hashes for name, hashes in by_hash.items() if hashes is not None and len(hashes)}
    rows_of = ", ".join(
        f"{int(counts[name]) or 'no'} row of domain {name!r} ({counted(len(known[name]), 'row')})" for name in few
    )
    has_none = any(not counts[name] for name in few)
    found = f"{fraction:g} holds out {rows_of}" + ("" if has_none else ", so its loss has no standard error")
    todo = "give it files of held-out rows" if len(few) == 1 else "give them files of held-out rows"
    for larger in (larger for larger in _LARGER_FRACTIONS if larger > fraction):
        held_out = {name: int(is_held_out_by_hash(hashes, fraction=larger).sum()) for name, hashes in known.items()}
        if min(held_out.values()) > _FEW:
            todo += f", or set data.valid_fraction={larger:g}, one fraction for all domains, which holds out "
            todo += _listed_counts(subject, held_out, by_hash, fraction=larger)
            break
    return (fail if has_none else warn)("rows", "data.valid_fraction", found, todo)


def _listed_counts(
    subject: Subject, held_out: Mapping[str, int], by_hash: Mapping[str, np.ndarray | None], *, fraction: float
) -> str:
    """Return how many rows a fraction would hold out of each domain that is split, about where rows are a sample."""
    counts = [
        f"{held_out[name]:,} of {name}"
        if name in held_out
        else f"about {fraction * subject.sample(name, 'train').num_rows:,.0f} of {name}"
        for name in by_hash
    ]
    return ", ".join(counts)
