"""Interventions recorded with an update: safeguards, limits of the rule, uncertain or missing losses.

A decision records the texts alone (`Decision.acted`), so this file also has the one reader of recorded texts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

ALARM = "alarm"
"""Kind that a person should look at: it is logged as a warning and sent as an alert."""


@dataclass(frozen=True, slots=True)
class Acted:
    """One thing that acted in an update."""

    kind: str
    """Such as `floor`, `KL limit`, `alarm`; the text starts with it."""
    domains: tuple[str, ...]
    """Domains it acted on, empty where it acts on the entire mixture."""
    text: str
    """What is recorded and shown, with numbers."""
    is_same_entry: bool = False
    """Whether it is recorded in the same entry as the one before it; the bounds of one projection are."""


Guarded = tuple[np.ndarray, tuple[Acted, ...]]
"""Weights [K] after a safeguard, and what acted; empty if it changed nothing."""


def recorded_texts(acted: Iterable[Acted]) -> tuple[str, ...]:
    """Return the entries of `Decision.acted`; the order and the bytes are part of a decision's digest."""
    entries: list[str] = []
    for item in acted:
        if item.is_same_entry and entries:
            entries[-1] += f"; {item.text}"
        else:
            entries.append(item.text)
    return tuple(entries)


def read_recorded(entries: object) -> list[Acted]:
    """Return what the entries of a recorded decision describe; the domains are not recovered.

    Example: "floor: law; cap: code", "prior pull 0.05" are a `floor`, a `cap` and a `prior pull`.

    Args:
        entries: `acted` of a decision read from JSON; anything but a list counts as empty.
    """
    found: list[Acted] = []
    for entry in entries if isinstance(entries, list) else []:
        for number, text in enumerate(str(entry).split("; ")):
            kind = re.sub(r"\s+[\d.]+%?$", "", text.split(":")[0]).strip()
            found.append(Acted(kind, (), text, is_same_entry=number > 0))
    return found


def kinds_of(acted: Iterable[Acted]) -> list[str]:
    """Return the kinds that acted, each once, in order."""
    return list(dict.fromkeys(item.kind for item in acted))
