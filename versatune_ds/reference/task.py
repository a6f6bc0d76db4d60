"""Say what `versatune reference` is asked for: on the command line, and to the processes it starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceTask:
    """Say what is asked for.

    Attributes:
        domains: Domains to measure; None means all.
        scored_model: Folder or Hub name of a model to score; None fine-tunes the recipe's.
        output: Where reference.json goes; None puts it where `mixture.reference` looks, or beside the run's folder.
        is_fresh: Whether finished domains are measured again.
    """

    domains: tuple[str, ...] | None = None
    scored_model: str | None = None
    output: Path | None = None
    is_fresh: bool = False

    def flags(self) -> list[str]:
        """Return the options by which a started process is asked for the same."""
        values = {
            "--score": self.scored_model,
            "--domains": ",".join(self.domains) if self.domains else None,
            "--output": self.output,
        }
        given = [f"{option}={value}" for option, value in values.items() if value is not None]
        return given + ["--fresh"] * self.is_fresh
