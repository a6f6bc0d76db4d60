"""The domains of a run: their names and their order.

Every vector indexed by domain (weights, losses, counters) is ordered as in one `DomainSet`; nothing else in the package
decides that order. Files and logs use names, arrays use positions.

Shape legend: **K** domains.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

Value = TypeVar("Value")


def nearest_name(name: str, known: Sequence[str]) -> str:
    """Return a hint with the known name closest to a misspelt one, or with all known names."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"


def domain_name(text: str) -> str:
    """Return a domain's name in Unicode normal form C.

    An accent may be a character of its own, as in the names of files on a Mac, or part of a letter, as a keyboard
    writes it. The two look alike and would be two domains.
    """
    return unicodedata.normalize("NFC", text)


def by_domain_name(values: Mapping[Any, Value], *, what: str) -> dict[str, Value]:
    """Return a mapping by domain with normalised names (see `domain_name`).

    Args:
        values: By name.
        what: The key or file it came from; the message begins with it.

    Raises:
        ValueError: If two names differ only in their Unicode form.
    """
    named = {domain_name(str(name)): value for name, value in values.items()}
    if len(named) < len(values):
        counted = Counter(domain_name(str(name)) for name in values)
        twice = next(name for name, count in counted.items() if count > 1)
        raise ValueError(f"{what}: {twice!r} is given twice, its accents written in two ways (Unicode); keep one")
    return named


@dataclass(frozen=True, slots=True)
class DomainSet:
    """The ordered domain names of a run.

    Attributes:
        names: Names in the order of their ids; at least one, all different, none empty.
    """

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check that the names can serve as ids.

        Raises:
            ValueError: If there is no name, an empty one, or one twice.
        """
        if not self.names:
            raise ValueError("data.domains: no domain given; expected at least one")
        for name in self.names:
            if not name or not name.isprintable() or self.names.count(name) > 1:
                raise ValueError(f"data.domains: {name!r}: expected a printable name, given once")
        by_domain_name(dict.fromkeys(self.names), what="data.domains")

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def id_of(self, name: str) -> int:
        """Return the id of a domain name.

        Raises:
            ValueError: If the name is unknown; the message suggests the nearest one.
        """
        if name not in self.names:
            raise ValueError(f"unknown domain {name!r}; {nearest_name(name, self.names)}")
        return self.names.index(name)

    def to_dict(self, values_K: Sequence[float] | np.ndarray) -> dict[str, float]:
        """Return values in id order as a mapping from domain name to plain Python number."""
        if len(values_K) != len(self):
            raise ValueError(f"{len(values_K)} values for {len(self)} domains ({', '.join(self.names)})")
        return dict(zip(self.names, np.asarray(values_K).tolist(), strict=True))

    def from_dict(self, values: Mapping[str, float], *, what: str) -> np.ndarray:
        """Return a mapping's values as a float64 vector in id order.

        Args:
            values: One value for every domain, and for nothing else.
            what: The key or file the mapping came from; every message begins with it.

        Returns:
            float64 array of shape [K].

        Raises:
            ValueError: If a domain is missing or unknown.
        """
        known = frozenset(self.names)
        for name in values:
            if name not in known:
                raise ValueError(f"{what}: unknown domain {name!r}; {nearest_name(name, self.names)}")
        missing = [name for name in self.names if name not in values]
        if missing:
            raise ValueError(f"{what}: no value for {', '.join(missing)}; give one for each of {', '.join(self.names)}")
        return np.array([float(values[name]) for name in self.names], dtype=np.float64)
