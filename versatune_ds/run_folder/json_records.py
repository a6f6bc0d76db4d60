"""Read files with one JSON object a line, as a run writes them, also after a kill or a power cut.

A last line that is not complete is what a kill leaves, or zeros where a file system lost its last block: it is left
out, and logged. Anywhere else an unreadable line is damage, and named with its number.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonLine:
    """A line of a file.

    Attributes:
        number: Number of the line, from 1.
        text: The line as it stands in the file, without its end.
        value: The object in it; None where there is none.
        is_last: Whether nothing but empty lines follow.
    """

    number: int
    text: str
    value: dict[str, Any] | None
    is_last: bool

    @property
    def problem(self) -> str:
        """Return what is wrong with a line without an object."""
        if not self.text.strip("\0 \t\r"):
            return "zeros, as a power cut leaves"
        return "cut off, followed by zeros" if "\0" in self.text else "no complete JSON object"


def json_lines(path: Path) -> Iterator[JsonLine]:
    """Yield the lines of a file that are not empty; a missing file has none."""
    if not path.is_file():
        return
    texts = path.read_text(encoding="utf-8", errors="replace").split("\n")
    filled = [(number, text) for number, text in enumerate(texts, start=1) if text.strip()]
    for number, text in filled:
        yield JsonLine(number=number, text=text, value=_object_in(text), is_last=number == filled[-1][0])


def _object_in(text: str) -> dict[str, Any] | None:
    """Return the object of a line, None where it holds none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def complete_lines(path: Path, *, when_damaged: Callable[[str], None]) -> Iterator[JsonLine]:
    """Yield the lines that hold an object; a last one that does not is left out, which is logged.

    Args:
        path: The file.
        when_damaged: Called with a sentence for every other line without an object; it may raise.
    """
    for line in json_lines(path):
        if line.value is not None:
            yield line
        elif line.is_last:
            logger.warning("%s:%d: the last line is left out: %s", path, line.number, line.problem)
        else:
            when_damaged(f"{path}:{line.number}: {line.problem}")
