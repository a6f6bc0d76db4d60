"""Warn of what is odd about a recipe's files, once.

The one idea: a run looks at its files several times, for the tokenizer, the cache and the rows, and a comparison for
every run; a text is said the first time in a process, and not at all by a look that another process repeats.
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
    """Log a warning, unless this process has logged the same text or is silent now."""
    if not _is_silent.get():
        _warn(text)


@contextmanager
def silence() -> Iterator[None]:
    """Leave out such warnings meanwhile: the process that is started next looks at the same files and says them."""
    token = _is_silent.set(True)
    try:
        yield
    finally:
        _is_silent.reset(token)


@cache
def _warn(text: str) -> None:
    """Log a warning; the cache is what makes it the only time."""
    _logger.warning("%s", text)
