"""Read a recipe: YAML, then `key=value` overrides, then the typed models; every mistake becomes one line.

The one idea: pydantic finds the mistakes, this file says them in the user's words: the dotted key, the value, what
was expected, the nearest valid name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from versatune_ds.config.recipe import RunConfig
from versatune_ds.domains import nearest_name

SectionType = TypeVar("SectionType", bound=BaseModel)


class _UniqueKeyLoader(yaml.SafeLoader):
    """Read YAML strictly: refuse a key given twice, which would silently hold the last value; keep 24:00:00 a text."""


def _mapping_with_unique_keys(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    """Build a mapping, raising at the line of a key that stands there already."""
    seen: set[str] = set()
    for key_node, _ in node.value:
        key = str(key_node.value)
        if key in seen:
            raise ValueError(f"{key_node.start_mark.name}:{key_node.start_mark.line + 1}: key {key!r} is given twice")
        seen.add(key)
    loader.flatten_mapping(node)
    return dict(loader.construct_pairs(node, deep=True))


# YAML 1.1 takes 24:00:00 for 86400, a number in base 60: as `slurm.time` that would be minutes, two months of them.
_TIME_AS_TEXT = ("tag:yaml.org,2002:str", re.compile(r"[-+]?\d[\d_]*(:[0-5]?\d)+(\.\d*)?$"))
_UniqueKeyLoader.yaml_implicit_resolvers = {
    first: [_TIME_AS_TEXT, *resolvers] if first.isdigit() or first in "+-" else resolvers
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_with_unique_keys)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return a YAML file's mapping, safely loaded.

    Raises:
        ValueError: If the file is missing, is not YAML, or does not hold a mapping; the message has file and line.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such recipe; give the path of a YAML file (see recipes/)")
    try:
        with path.open(encoding="utf-8") as stream:
            values = yaml.load(stream, Loader=_UniqueKeyLoader)
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a text file; expected YAML in UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = " ".join(str(getattr(error, "problem", error)).split())
        raise ValueError(f"{place}: not valid YAML: {problem}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a mapping with sections run, model, data, train, mixture")
    return values


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
        if values.get(parent) is None:
            values[parent] = {}
        values = values[parent]
        if not isinstance(values, dict):
            raise ValueError(f"{override!r}: {parent!r} holds a value, not a section")
    try:
        values[last] = yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.YAMLError:
        raise ValueError(f"{override!r}: the value is not valid YAML; quote it") from None


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the run's config from a recipe and overrides.

    Args:
        path: YAML file.
        overrides: `key=value` texts with dotted keys, applied in order.

    Raises:
        ValueError: One line per mistake (joined by newlines), each opening with the dotted key.
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
        return model.model_validate(_numbers_from_scientific_text(values))
    except ValidationError as error:
        lines = dict.fromkeys(_line_for(details, model) for details in error.errors())
        raise ValueError("\n".join(lines)) from None


def _numbers_from_scientific_text(value: Any) -> Any:
    """Turn texts such as `2e-5`, which YAML 1.1 reads as strings, into numbers, at any depth."""
    if isinstance(value, dict):
        return {key: _numbers_from_scientific_text(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers_from_scientific_text(item) for item in value]
    if isinstance(value, str) and value[:1] in "0123456789-.+" and "e" in value.lower():
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _line_for(details: ErrorDetails, whole: type[BaseModel]) -> str:
    """Say one pydantic error in one line."""
    location = [str(part) for part in details["loc"] if not str(part).startswith(("function-", "constrained-"))]
    key = ".".join(location)
    if details["type"] == "extra_forbidden":
        known = _known_keys(details["loc"][:-1], whole)
        return f"{key}: unknown key; {nearest_name(location[-1], known)}" if known else f"{key}: unknown key"
    if details["type"] == "missing":
        return f"{key}: missing; this key is required"
    message = details["msg"].removeprefix("Value error, ")
    if not key:  # of the whole section, whose message names what it is about
        return message
    if details["type"] == "value_error" and "." in message.split(" ", 1)[0].rstrip(":"):
        return message
    expected = message[0].lower() + message[1:]
    given = "" if isinstance(details["input"], dict) else f" (got {details['input']!r})"
    return f"{key}: {expected}{given}"


def _known_keys(location: tuple[int | str, ...], model: type[BaseModel]) -> list[str]:
    """Return the field names of the section at a location within a model, empty where it is not a section."""
    for part in location:
        if part not in model.model_fields:
            continue  # a mapping's key or a union's tag, not a field
        annotation = model.model_fields[str(part)].annotation
        sections = [a for a in (annotation, *_leaves(annotation)) if isinstance(a, type) and issubclass(a, BaseModel)]
        if not sections:
            return []
        model = sections[0]
    return list(model.model_fields)


def _leaves(annotation: Any) -> list[Any]:
    """Return every type named inside a union, dict or tuple annotation."""
    leaves: list[Any] = []
    for part in get_args(annotation):
        leaves += [part, *_leaves(part)]
    return leaves
