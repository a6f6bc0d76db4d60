"""How long a rank may be silent: until that is logged, and until the job ends instead of waiting for it.

The limits are the same for a rank whose heartbeats stop (`heartbeats.py`) and for a rank 0 that answers no request
(`rank_zero_watch.py`). VERSATUNE_LOST_SECONDS changes the second one, for all ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

LOST_VARIABLE = "VERSATUNE_LOST_SECONDS"
"""Seconds, or `off` to wait as long as it takes."""
_LEAST_LOST_SECONDS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class SilenceLimits:
    """Seconds of silence of another rank."""

    warn_seconds: float = 45.0
    """Silence that is logged: long enough for a rank whose interpreter is busy with one long call."""
    lost_seconds: float | None = 300.0
    """Silence after which the job ends: a network that fails for a minute, a process in a debugger or a machine that is
    moved may come back before. None: the job never ends for it."""

    @property
    def consequence(self) -> str:
        """Return what follows if the silence lasts."""
        if self.lost_seconds is None:
            return f"the other ranks wait as long as it takes ({LOST_VARIABLE}=off)"
        return (
            f"the other ranks wait. After {self.lost_seconds:.0f} s of silence ({LOST_VARIABLE}) the job ends with "
            "exit code 1, and starting it again resumes from its last checkpoint"
        )


def silence_limits(environ: Mapping[str, str]) -> SilenceLimits:
    """Return the limits that the environment asks for.

    Raises:
        ValueError: If VERSATUNE_LOST_SECONDS is neither a number of seconds, at least 60, nor `off`.
    """
    value = environ.get(LOST_VARIABLE, "")
    if not value:
        return SilenceLimits()
    if value == "off":
        return SilenceLimits(lost_seconds=None)
    if not value.isdecimal() or int(value) < _LEAST_LOST_SECONDS:
        raise ValueError(
            f"{LOST_VARIABLE}: expected whole seconds, at least {_LEAST_LOST_SECONDS}, or off, found {value!r}; "
            "unset it for five minutes"
        )
    return SilenceLimits(lost_seconds=float(value))
