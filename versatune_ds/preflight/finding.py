"""Hold what one check found, in one line: how bad it is, the key, what was found, what to do.

The one idea: a mistake that training would raise as a ValueError is said here in the same words, under the same key.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "FAIL"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Say one thing that is known before nodes are taken."""

    level: Level
    check: str
    """Which check: files, rows, tokenizer, ..."""
    key: str
    """Dotted key of the recipe, environment variable or option that it is about."""
    found: str
    todo: str = ""
    """What to do about it; empty when all is well."""

    @property
    def text(self) -> str:
        """Return what was found and what to do, in one line."""
        return " ".join("; ".join(filter(None, (self.found, self.todo))).split())


def ok(check: str, key: str, found: str) -> Finding:
    """Return a finding that needs nothing."""
    return Finding(level="ok", check=check, key=key, found=found)


def warn(check: str, key: str, found: str, todo: str = "") -> Finding:
    """Return a finding that does not stop a run."""
    return Finding(level="warn", check=check, key=key, found=found, todo=todo)


def fail(check: str, key: str, found: str, todo: str) -> Finding:
    """Return a finding that stops a run, or makes it worthless."""
    return Finding(level="FAIL", check=check, key=key, found=found, todo=todo)


def failures_of(error: ValueError, *, check: str) -> Iterator[Finding]:
    """Yield a failure for each line of a message `key: what came, what was expected; what to do`."""
    for line in str(error).splitlines():
        key, colon, rest = line.partition(": ")
        if not colon:
            key, rest = check, line
        found, _, todo = rest.rpartition("; ")
        yield fail(check, key, found or rest, todo if found else "")
