"""Align texts by the columns they take on a terminal: a Chinese character takes two, an accent none."""

from __future__ import annotations

import unicodedata


def width_of(text: str) -> int:
    """Return the columns that a text takes on a terminal."""
    return sum(_columns(character) for character in text)


def pad_right(text: str, width: int) -> str:
    """Return a text filled up with spaces on its right to at least `width` columns."""
    return text + " " * (width - width_of(text))


def pad_left(text: str, width: int) -> str:
    """Return a text filled up with spaces on its left to at least `width` columns."""
    return " " * (width - width_of(text)) + text


def _columns(character: str) -> int:
    """Return the columns of one character."""
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
