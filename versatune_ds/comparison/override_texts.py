"""Write dotted keys and values as the `key=value` texts of a command line."""

from __future__ import annotations

import json
import re
from typing import Any

from versatune_ds.config.yaml_text import EMPTY, Word


def texts(values: dict[str, Any]) -> list[str]:
    """Return dotted keys and values as the command line takes them."""
    return [f"{key}={_as_yaml(value)}" for key, value in values.items()]


def _as_yaml(value: Any) -> str:
    """Return a value as the YAML of one line; words such as off, which only a key's type tells from text, unquoted."""
    return re.sub(r'"\\u0000(\w*)"', r"\1", json.dumps(_marked(value), default=str))


def _marked(value: Any) -> Any:
    """Return a value in which a zero character marks what must not be quoted."""
    if isinstance(value, dict):
        return {key: _marked(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_marked(item) for item in value]
    if isinstance(value, Word) or value is EMPTY:
        return "\0" + (value if isinstance(value, Word) else "")
    return value
