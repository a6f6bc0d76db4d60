"""Log warnings about a recipe's files only once.

A run looks at its files several times, for the tokenizer, the cache and the rows, and a comparison once for every run.
A text is logged the first time in a process, and not at all by a look that another process repeats.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

_logger = logging.getLogger(__name__)

_is_silent = ContextVar("_is_silent", default=False)


def warn_once(text: str) -> None:
    """Log a warning, unless this process has logged the same text already or `silence` is active."""
    if not _is_silent.get():
        _warn(text)


@contextmanager
def silence() -> Iterator[None]:
    """Suppress such warnings within a block: the process started next looks at the same files and logs them."""
    token = _is_silent.set(True)
    try:
        yield
    finally:
        _is_silent.reset(token)


@cache
def _warn(text: str) -> None:
    """Log a warning; the cache makes it happen once for each text."""
    _logger.warning("%s", text)
