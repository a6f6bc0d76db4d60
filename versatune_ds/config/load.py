"""Load a recipe: a YAML file, then `key=value` overrides, then the typed models; every mistake becomes one line.

`yaml_text` reads the file, `section` reads words and numbers as their keys expect them, pydantic finds the
mistakes, and `error_messages` describes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from versatune_ds.config.error_messages import lines_of_errors
from versatune_ds.config.recipe import RunConfig
from versatune_ds.config.section import typed_values
from versatune_ds.config.yaml_text import EMPTY, read_value, read_yaml

SectionType = TypeVar("SectionType", bound=BaseModel)


def set_by_dotted_key(values: dict[str, Any], override: str) -> None:
    """Set `a.b.c=value` in a nested mapping; the value is read as YAML, so numbers and lists come out typed.

    Raises:
        ValueError: If the text has no `=`, or a part of the key is not a mapping.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ValueError(f"{override!r}: expected key=value, for example mixture.sigma=0.3")
    *parents, last = key.split(".")
    for parent in parents:
        if values.get(parent) in (None, EMPTY):
            values[parent] = {}
        values = values[parent]
        if not isinstance(values, dict):
            raise ValueError(f"{override!r}: {parent!r} is a value, not a section; give the key of a section")
    try:
        values[last] = read_value(text)
    except ValueError as error:
        raise ValueError(f"{override!r}: {error}") from None


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the run's config from a recipe and overrides.

    Args:
        path: YAML file.
        overrides: `key=value` texts with dotted keys, applied in order.

    Raises:
        ValueError: One line per mistake (joined by newlines), each beginning with the dotted key.
    """
    values = read_yaml(Path(path))
    for override in overrides:
        set_by_dotted_key(values, override)
    return parse_config(values)


def parse_config(values: dict[str, Any]) -> RunConfig:
    """Return the typed config of a nested mapping; raise ValueError with one line per mistake."""
    return parse_section(values, RunConfig)


def parse_section(values: dict[str, Any], model: type[SectionType]) -> SectionType:
    """Return a nested mapping as one of our typed sections; raise ValueError with one line per mistake."""
    try:
        return model.model_validate(typed_values(values, model))
    except ValidationError as error:
        lines = lines_of_errors(error.errors(include_url=False), model)
    raise ValueError("\n".join(lines))
