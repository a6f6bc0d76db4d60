"""Read the small JSON files with one number per domain: prior.json and reference.json.

A file written by hand needs the required key alone. That nothing is known about its origin is logged.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from versatune_ds.domains import DomainSet, by_domain_name
from versatune_ds.json_file import is_finite_number, read_json_mapping

logger = logging.getLogger(__name__)

_WRITTEN_BY = {"mixture.prior": "versatune detect", "mixture.reference": "versatune reference"}
"""Config key of a file -> the command that writes it."""

_REMAKE = {key: f"correct it, or write it again with {command}" for key, command in _WRITTEN_BY.items()}


def no_such_file(path: Path, *, what: str) -> str:
    """Return the message for a file of config key `what` that is not there."""
    if path.is_dir():
        return f"{what}: {path}: a folder; expected the JSON file that {_WRITTEN_BY[what]} writes"
    return f"{what}: {path}: no such file; run {_WRITTEN_BY[what]} with this recipe, which writes it there"


def read_domain_values(
    path: Path, *, key: str, what: str, domain_set: DomainSet, allows_null: bool = False
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return a file's number for every domain, and its other entries.

    Args:
        path: JSON file with a mapping that has `key`.
        key: The required entry, a mapping from domain to number.
        what: Config key of the file; it opens every message.
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
        found = f"found keys {sorted(content)}" if values is None else f"found {key}: {str(values)[:60]}"
        raise ValueError(f'{what}: {path}: expected {{"{key}": {{domain: number}}}}, {found}')
    for name, value in values.items():
        if not (is_finite_number(value) or (allows_null and value is None)):
            raise ValueError(f"{what}: {path}: {key}.{name}: expected a number, got {str(value)[:60]!r}")
    _check_provenance(content, path=path, what=what)
    if not content:
        logger.info("%s: %s has no provenance besides %r; taken as written by hand", what, path, key)
    values = {name: math.nan if value is None else value for name, value in values.items()}
    place = f"{what}: {path}: {key}"
    return domain_set.from_dict(by_domain_name(values, what=place), what=place), content


def _check_provenance(content: dict[str, Any], *, path: Path, what: str) -> None:
    """Check the entries on a file's origin that are read; raise ValueError with the key of a wrong one."""
    for key, is_value, expected in (
        ("digests", lambda value: isinstance(value, str), "name: digest"),
        ("train_losses", is_finite_number, "domain: number"),
    ):
        values = content.get(key, {})
        if not isinstance(values, Mapping) or not all(map(is_value, values.values())):
            raise ValueError(f"{what}: {path}: {key}: expected {{{expected}}}, got {str(values)[:60]}; {_REMAKE[what]}")
    for key in ("weight_unit", "measured_on"):
        if not isinstance(content.get(key), str | None):
            raise ValueError(f"{what}: {path}: {key}: expected text, got {str(content[key])[:60]}; {_REMAKE[what]}")


def _read_mapping(path: Path, *, what: str) -> dict[str, Any]:
    """Return a JSON file's mapping; raise ValueError with key, file and line where it has none."""
    if not path.is_file():
        raise ValueError(no_such_file(path, what=what))
    return read_json_mapping(path, opening=f"{what}: ", todo=_REMAKE[what])
