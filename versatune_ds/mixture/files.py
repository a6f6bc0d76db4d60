"""Read the small JSON files that hold one number a domain: prior.json and reference.json.

The one idea: a file written by hand with the required key alone is as good as one with its
origin; that nothing is known about its origin is said once.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from versatune_ds.domains import DomainSet

logger = logging.getLogger(__name__)

_WRITTEN_BY = {"mixture.prior": "versatune detect", "mixture.reference": "versatune reference"}
"""Command that writes the file which a config key names."""


def no_such_file(path: Path, *, what: str) -> str:
    """Return what to say of a file that config key `what` names and that is not there."""
    return f"{what}: {path}: no such file; run {_WRITTEN_BY[what]} with this recipe, which writes it there"


def read_domain_values(
    path: Path, *, key: str, what: str, domain_set: DomainSet, allows_null: bool = False
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return a file's number for every domain, and everything else it says.

    Args:
        path: JSON file holding a mapping with `key`.
        key: Name of the required mapping from domain to number.
        what: Config key that named the file; it opens every message.
        domain_set: Domains of the run.
        allows_null: Whether a domain's value may be null, which becomes NaN.

    Returns:
        float64 array [K], and the file's other entries (its provenance; empty for a hand-written file).

    Raises:
        ValueError: If the file is missing, is not JSON, lacks the key, or names other domains.
    """
    content = _read_mapping(path, what=what)
    values = content.pop(key, None)
    if not isinstance(values, Mapping):
        raise ValueError(f'{what}: {path}: expected {{"{key}": {{domain: number}}}}, found keys {sorted(content)}')
    if allows_null:
        values = {name: math.nan if value is None else value for name, value in values.items()}
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{what}: {path}: {key}.{name}: expected a number, got {value!r}")
    if not content:
        logger.info("%s: %s has no provenance besides %r; taken as written by hand", what, path, key)
    return domain_set.from_dict(values, what=f"{what}: {path}: {key}"), content


def _read_mapping(path: Path, *, what: str) -> dict[str, Any]:
    """Return a JSON file's mapping, raising ValueError with key, file and line where it is none."""
    if not path.is_file():
        raise ValueError(no_such_file(path, what=what))
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise ValueError(f"{what}: {path}: not a text file; expected JSON in UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{what}: {path}:{error.lineno}: not valid JSON: {error.msg}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{what}: {path}: expected a JSON mapping, got {type(content).__name__}")
    return content
