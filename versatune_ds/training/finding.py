"""A finding of a check (how bad, which key, what was found, what to do), and a check as an entry of a list.

A mistake that training raises as a ValueError has the same words and the same key in a finding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

Level = Literal["ok", "warn", "FAIL"]
Need = Literal["nothing", "files", "model config", "tokenizer", "rows", "GPU", "Slurm", "network"]
"""What a check reads besides the recipe, and so what it costs."""
Stage = Literal["check", "train", "submit", "reference", "detect", "every rank", "rank 0"]
"""Where a check runs: in a command, or in the processes of a run."""

Subject = TypeVar("Subject")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One result of a check."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Check(Generic[Subject]):
    """One check in a list of checks."""

    name: str
    """Shown before its findings; checks of the same thing may share it."""
    needs: Need
    stages: frozenset[Stage]
    find: Callable[[Subject], Iterator[Finding] | None]
    """Yields findings, or returns None; a ValueError is a failure."""


def ok(check: str, key: str, found: str) -> Finding:
    """Return a finding that asks for nothing."""
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
