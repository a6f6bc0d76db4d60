"""Choose, by what a key expects, how a word or number of a recipe is read: `off` for a mode, 2024 for a name.

What a key expects is the type annotation of its field; pydantic checks the values afterwards.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from versatune_ds.config.yaml_text import EMPTY, Word, WrittenFloat, WrittenInt, plain_value

_BEGINS_WITH_ZERO = re.compile(r"[-+]?0[\d_]*[1-9][\d_]*")


class EmptySection(dict[str, Any]):
    """A section after whose name nothing is written: it holds its defaults."""


def typed_values(values: Any, expected: Any, *, key: str = "") -> Any:
    """Return values of a YAML file with words and numbers read as their keys expect them.

    Args:
        values: As `read_yaml` returns them, or plain Python values, which stay as they are.
        expected: A section, or the annotation of a field.
        key: Dotted key of the values, for messages.

    Raises:
        ValueError: If a number begins with 0: YAML reads 010 in base 8, and nobody who writes it means 8.
    """
    if values is EMPTY:
        return _nothing(tuple(_alternatives(expected)))
    kinds = tuple(scalar_types(expected))
    if isinstance(values, Mapping):
        return _typed_mapping(values, kinds, key=key)
    if isinstance(values, list):
        if not any(get_origin(kind) in (tuple, list) or kind is Any for kind in _alternatives(expected)):
            return plain_value(values)
        return [typed_values(value, kinds, key=f"{key}.{i}") for i, value in enumerate(values)]
    return _typed_scalar(values, kinds, key=key)


def _alternatives(expected: Any) -> Iterator[Any]:
    """Yield the types that an annotation allows, without their decorations."""
    if isinstance(expected, tuple):
        for part in expected:
            yield from _alternatives(part)
    elif get_origin(expected) is Annotated:
        yield from _alternatives(get_args(expected)[0])
    elif get_origin(expected) in (Union, types.UnionType):
        for part in get_args(expected):
            yield from _alternatives(part)
    else:
        yield expected


def scalar_types(expected: Any) -> Iterator[Any]:
    """Yield the types of single values that an annotation allows; one may stand without a list around it."""
    for kind in _alternatives(expected):
        if get_origin(kind) in (tuple, list):
            yield from scalar_types(get_args(kind)[0])
        else:
            yield kind


def is_section(kind: Any) -> bool:
    """Return whether a type is a section."""
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _nothing(alternatives: tuple[Any, ...]) -> Any:
    """Return what an empty value means: a section or a mapping with its defaults, null elsewhere.

    A section that may be left out is then the one with its defaults, if it has one: `model.lora:` trains adapters.
    """
    sections, is_optional = [kind for kind in alternatives if is_section(kind)], type(None) in alternatives
    if is_optional:
        return EmptySection() if sections and _is_valid_when_empty(sections[0]) else None
    is_mapping = any(get_origin(kind) is dict for kind in alternatives)
    is_choice = any(get_origin(kind) is Literal for kind in alternatives)
    return EmptySection() if sections or (is_mapping and not is_choice) else None


def _is_valid_when_empty(section: type[BaseModel]) -> bool:
    """Return whether a section's defaults are a valid section."""
    try:
        section()
    except ValueError:
        return False
    return True


def _typed_mapping(values: Mapping[str, Any], kinds: tuple[Any, ...], *, key: str) -> dict[str, Any]:
    """Return a mapping read as a section or as a mapping by name."""
    fields = {name: field for kind in kinds if is_section(kind) for name, field in kind.model_fields.items()}
    by_name = next((get_args(kind)[1] for kind in kinds if get_origin(kind) is dict), None)
    typed = {}
    for name, value in values.items():
        expected = fields[name].annotation if name in fields else by_name
        if expected is None:  # an unknown key, which is refused afterwards; or everything below a key that takes all
            typed[name] = value if Any in kinds else plain_value(value)
        elif not (value is EMPTY and name in fields and _stands_for_default(fields[name])):
            typed[name] = typed_values(value, expected, key=f"{key}.{name}" if key else str(name))
    return typed


def _stands_for_default(field: FieldInfo) -> bool:
    """Return whether an empty value is a field's default: that of a mapping, such as `train.deepspeed`."""
    alternatives = tuple(_alternatives(field.annotation))
    is_mapping = isinstance(_nothing(alternatives), EmptySection) and not any(map(is_section, alternatives))
    return is_mapping and not field.is_required()


def _typed_scalar(value: Any, kinds: tuple[Any, ...], *, key: str) -> Any:
    """Return a word or a number as one of the types expects it."""
    if not isinstance(value, Word | WrittenInt | WrittenFloat) or Any in kinds:
        return value
    if isinstance(value, Word):
        choices = {choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)}
        written = value.lower() if value.lower() in choices else str(value)
        return value.is_true if bool in kinds else written
    is_number = int in kinds or float in kinds
    if not is_number and any(kind in (str, Path) or get_origin(kind) is Literal for kind in kinds):
        return value.text
    if _BEGINS_WITH_ZERO.fullmatch(value.text):
        raise ValueError(f"{key}: {value.text}: YAML reads numbers that begin with 0 in base 8; leave the 0 out")
    return plain_value(value)
