"""Read YAML and keep the text of `off`, `2024` and `1e-3` beside their values.

YAML 1.1 reads `no` as false, `010` as 8, 24:00:00 as 86400, and `2e-5` as text. Which reading is meant depends on the
key, so plain words and numbers are returned with both, and `section.typed_values` chooses. Keys are always text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from versatune_ds.paths import PROJECT_DIR, nearest_path


class Word(str):
    """A word that YAML 1.1 reads as true or false, written without quotes."""

    __slots__ = ()

    @property
    def is_true(self) -> bool:
        """Return whether YAML 1.1 reads it as true."""
        return self.lower() in ("yes", "true", "on")


class WrittenInt(int):
    """A whole number and its text."""

    text: str


class WrittenFloat(float):
    """A number and its text."""

    text: str


class _Empty:
    """The value of a key with nothing after the colon."""

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return "nothing"


EMPTY = _Empty()
"""The value of `monitor:` with nothing after it; an explicit null is None."""


class _Loader(yaml.SafeLoader):
    """A safe YAML loader that refuses a key given twice; PyYAML would silently use the last value."""


_FLOAT = re.compile(r"[-+]?(\.\d[\d_]*|\d[\d_]*(\.[\d_]*)?)([eE][-+]?\d+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$")
_REPLACED_TAGS = ("tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp")
# YAML 1.1 reads 24:00:00 as 86400, a number in base 60: as `slurm.time` that would be minutes, two months of them.
# It reads 2024-01-05 as a date, which no key expects; and 1.0e-5 as a number, but not 1e-5 or 1.0e5.
_TIME = ("tag:yaml.org,2002:str", re.compile(r"[-+]?\d[\d_]*(:[0-5]?\d)+(\.\d*)?$"))
_NUMBER = ("tag:yaml.org,2002:float", _FLOAT)
_Loader.yaml_implicit_resolvers = {
    first: [
        *([_TIME] if first.isdigit() or first in ("+", "-") else []),
        *(resolver for resolver in resolvers if resolver[0] not in _REPLACED_TAGS),
        *([_NUMBER] if first.isdigit() or first in ("+", "-", ".") else []),
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    """Build a mapping with its keys as written; raise, with the line, for a key given twice."""
    seen: set[str] = set()
    for key_node, _ in node.value:
        place = f"{key_node.start_mark.name}:{key_node.start_mark.line + 1}"
        if not isinstance(key_node, yaml.ScalarNode):
            raise ValueError(f"{place}: expected a word as key, found a list or a mapping")
        if not key_node.value:
            raise ValueError(f"{place}: a key is empty; write a name before the colon")
        if key_node.value in seen:
            raise ValueError(f"{place}: key {key_node.value!r} is given twice; keep one")
        seen.add(key_node.value)
    loader.flatten_mapping(node)
    return {key_node.value: loader.construct_object(value_node, deep=True) for key_node, value_node in node.value}


def _word(loader: _Loader, node: yaml.ScalarNode) -> Word:
    return Word(node.value)


def _integer(loader: _Loader, node: yaml.ScalarNode) -> Any:
    """Build a whole number, or text if Python cannot read it as one."""
    try:
        number = WrittenInt(loader.construct_yaml_int(node))
    except ValueError:
        return node.value
    number.text = node.value
    return number


def _float(loader: _Loader, node: yaml.ScalarNode) -> WrittenFloat:
    number = WrittenFloat(loader.construct_yaml_float(node))
    number.text = node.value
    return number


def _null(loader: _Loader, node: yaml.ScalarNode) -> Any:
    """Build null: None where it is written, EMPTY where nothing is."""
    return None if node.value else EMPTY


for _tag, _build in (("map", _mapping), ("bool", _word), ("int", _integer), ("float", _float), ("null", _null)):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _build)


def read_value(text: str) -> Any:
    """Return the value of a YAML text, such as the right side of `key=value`.

    Raises:
        ValueError: If it is not YAML; the message has no place.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, RecursionError):
        raise ValueError("the value is not valid YAML; quote it") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Return a YAML file's mapping, safely loaded; one that is not here may be of the project, as recipes/base.yaml is.

    Raises:
        ValueError: If the file is missing, is not YAML, or is not a mapping; the message has file and line.
    """
    if not path.exists() and (PROJECT_DIR / path).is_file():
        path = PROJECT_DIR / path
    if not path.is_file():
        what, nearest = ("a folder", None) if path.is_dir() else ("no such recipe", nearest_path(path))
        hint = "give the path of a YAML file (see recipes/)" if nearest is None else f"did you mean {str(nearest)!r}?"
        raise ValueError(f"{path}: {what}; {hint}")
    try:
        with path.open(encoding="utf-8") as stream:
            values = yaml.load(stream, Loader=_Loader)
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a text file; expected YAML in UTF-8") from None
    except RecursionError:
        raise ValueError(f"{path}: not a recipe: nested too deeply") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ValueError(f"{place}: not valid YAML: {_problem(error)}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a mapping with sections run, model, data, train, mixture")
    return values


def _problem(error: yaml.YAMLError) -> str:
    """Return what is wrong with a YAML text, and what to do."""
    problem = " ".join(str(getattr(error, "problem", error)).split())
    if "'\\t'" in problem:
        return f"{problem}; indent with spaces, not tabs"
    if "another document" in problem:
        return "a second document begins (---); a recipe is one document"
    return problem


def plain_value(value: Any) -> Any:
    """Return a value as YAML 1.1 reads it: words are true or false, numbers are numbers."""
    if isinstance(value, Mapping):
        return {str(key): plain_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_value(item) for item in value]
    if isinstance(value, Word):
        return value.is_true
    if isinstance(value, WrittenInt):
        return int(value)
    if isinstance(value, WrittenFloat):
        return float(value)
    return None if value is EMPTY else value
