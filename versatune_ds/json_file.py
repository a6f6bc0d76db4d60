"""Read the JSON files that people keep, copy and edit by hand; what is wrong with one is a line with file and line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any


def read_json_mapping(path: Path, *, todo: str, opening: str = "") -> dict[str, Any]:
    """Return the mapping in a JSON file that exists.

    Args:
        path: The file, in UTF-8.
        todo: What to do about a corrupt one; it ends every message.
        opening: What every message begins with, such as the config key that names the file.

    Raises:
        ValueError: If the file is no mapping, no JSON or no text, or has a key twice.
    """
    text = ""
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = json.loads(text, object_pairs_hook=_mapping_with_unique_keys)
    except UnicodeDecodeError:
        raise ValueError(f"{opening}{path}: not a text file; expected JSON in UTF-8; {todo}") from None
    except json.JSONDecodeError as error:
        if not text.strip():
            place = f"{path}: empty"
        elif "\0" in text:
            place = f"{path}: contains zeros, as after a power failure"
        else:
            place = f"{path}:{error.lineno}: not valid JSON: {error.msg}"
        raise ValueError(f"{opening}{place}; {todo}") from None
    except (_TwiceError, RecursionError) as error:
        problem = str(error) if isinstance(error, _TwiceError) else "nested too deeply"
        raise ValueError(f"{opening}{path}: {problem}; {todo}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{opening}{path}: expected {{key: value}}, got {text.strip()[:60]}; {todo}")
    return content


def is_finite_number(value: Any) -> bool:
    """Return whether a value of a JSON file is a number that fits a float."""
    try:
        return not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:
        return False


class _TwiceError(Exception):
    """A mapping has a key twice, of which Python would keep the last."""


def _mapping_with_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object, refusing a key that is there twice."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise _TwiceError(f"key {next(name for name in names if names.count(name) > 1)!r} is given twice")
    return values
