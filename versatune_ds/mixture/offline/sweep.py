"""Expand `--sweep key=value,value` into the overrides of each run, as ordinary `key=value` texts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product


def sweep_overrides(sweeps: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the overrides of every combination.

    Example: ["mixture.sigma=0.1,0.3", "mixture.policy=versatune,steer"] -> four pairs of overrides.

    Args:
        sweeps: Texts `key=value,value,...`; commas within brackets or braces do not separate.

    Raises:
        ValueError: If a text has no `=` or no value.
    """
    return list(product(*(_values_of(sweep) for sweep in sweeps)))


def _values_of(sweep: str) -> list[str]:
    """Return the overrides of one text."""
    key, equals, text = sweep.partition("=")
    values = _split_outside_brackets(text)
    if not equals or not key or any(not value for value in values):
        raise ValueError(f"--sweep {sweep!r}: expected key=value,value,..., for example mixture.sigma=0.1,0.3,1")
    return [f"{key}={value}" for value in values]


def _split_outside_brackets(text: str) -> list[str]:
    """Return the parts of a text between commas outside brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]
