"""Define the base class of all config sections and the types that they share, and read values as sections expect them.

The same word or number of YAML has two meanings: `off` is text for a mode, 2024 is text for a name. The type annotation
of a field says what its key expects; pydantic checks the values afterwards.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict
from pydantic.fields import FieldInfo

from versatune_ds.config.yaml_text import EMPTY, Word, WrittenFloat, WrittenInt, plain_value
from versatune_ds.paths import expand_path, is_address

_BEGINS_WITH_ZERO = re.compile(r"[-+]?0[\d_]*[1-9][\d_]*")


class Section(BaseModel):
    """Base class of a section of the recipe; the docstrings of its fields are what `versatune keys` prints."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )


def _expanded(value: Any) -> Any:
    """Expand `~` and variables in a path; leave anything but text for pydantic to refuse."""
    return expand_path(value) if isinstance(value, str) else value


def _expanded_local(value: Any) -> Any:
    """Expand `~` and variables in a path, and refuse an address, of which a path would lose a slash."""
    expanded = _expanded(value)
    if is_address(expanded):
        raise ValueError("expected a path of this machine, not an address; only data files may be remote")
    return expanded


def _place(value: Path | str) -> Path | str:
    """Return a text as a path, unless it is an address."""
    return value if isinstance(value, str) and is_address(value) else Path(value)


ExpandedPath = Annotated[Path, BeforeValidator(_expanded_local)]
"""A path of this machine in which `~` and $VARIABLES are expanded."""

ExpandedPlace = Annotated[str | Path, BeforeValidator(_expanded), AfterValidator(_place)]
"""A path of this machine, or the address of remote files, which stays text."""

ExpandedText = Annotated[str, BeforeValidator(_expanded)]
"""A path or a Hub name; Hub names contain neither `~` nor `$`."""

PlainMapping = Annotated[dict[str, Any], BeforeValidator(plain_value)]
"""A mapping for another library, which checks it; words and numbers in it are read as YAML does."""

TextList = Annotated[tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)]
"""Texts; one may be written without a list around it."""


class EmptySection(dict[str, Any]):
    """A section with nothing after its name: it gets its defaults."""


def typed_values(values: Any, expected: Any, *, key: str = "") -> Any:
    """Return values of a YAML file with words and numbers read as their keys expect them.

    Args:
        values: From `read_yaml`, or plain Python values, which are returned unchanged.
        expected: A section, or the annotation of a field.
        key: Dotted key of the values, for messages.

    Raises:
        ValueError: If a number begins with 0: YAML would read 010 in base 8, as 8.
    """
    if values is EMPTY:
        return _nothing(tuple(alternatives_of(expected)))
    kinds = tuple(scalar_types(expected))
    if isinstance(values, Mapping):
        return _typed_mapping(values, kinds, key=key)
    if isinstance(values, list):
        if not any(get_origin(kind) in (tuple, list) or kind is Any for kind in alternatives_of(expected)):
            return plain_value(values)
        return [typed_values(value, kinds, key=f"{key}.{i}") for i, value in enumerate(values)]
    return _typed_scalar(values, kinds, key=key)


def alternatives_of(expected: Any) -> Iterator[Any]:
    """Yield the types that an annotation allows, without `Annotated`."""
    if isinstance(expected, tuple):
        for part in expected:
            yield from alternatives_of(part)
    elif get_origin(expected) is Annotated:
        yield from alternatives_of(get_args(expected)[0])
    elif get_origin(expected) in (Union, types.UnionType):
        for part in get_args(expected):
            yield from alternatives_of(part)
    else:
        yield expected


def scalar_types(expected: Any) -> Iterator[Any]:
    """Yield the types of single values that an annotation allows; for a list, those of its entries."""
    for kind in alternatives_of(expected):
        if get_origin(kind) in (tuple, list):
            yield from scalar_types(get_args(kind)[0])
        else:
            yield kind


def is_section(kind: Any) -> bool:
    """Return whether a type is a section."""
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def fields_of(kinds: Iterable[Any]) -> dict[str, FieldInfo]:
    """Return the fields of the sections among types."""
    return {name: field for kind in kinds if is_section(kind) for name, field in kind.model_fields.items()}


def _nothing(alternatives: tuple[Any, ...]) -> Any:
    """Return what an empty value means: the defaults for a section or a mapping, null for anything else.

    An optional section gets its defaults if they are valid: `model.lora:` trains adapters.
    """
    sections = [kind for kind in alternatives if is_section(kind)]
    is_optional = type(None) in alternatives
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
    """Return a mapping read as a section or as a mapping with names as keys."""
    fields = fields_of(kinds)
    by_name = next((get_args(kind)[1] for kind in kinds if get_origin(kind) is dict), None)
    typed = {}
    for name, value in values.items():
        expected = fields[name].annotation if name in fields else by_name
        if expected is None:  # an unknown key, which is refused afterwards; or anything below a key of type Any
            typed[name] = value if Any in kinds else plain_value(value)
        elif not (value is EMPTY and name in fields and _stands_for_default(fields[name])):
            typed[name] = typed_values(value, expected, key=f"{key}.{name}" if key else str(name))
    return typed


def _stands_for_default(field: FieldInfo) -> bool:
    """Return whether an empty value means a field's default, as for the mapping `train.deepspeed`."""
    alternatives = tuple(alternatives_of(field.annotation))
    is_mapping = isinstance(_nothing(alternatives), EmptySection) and not any(map(is_section, alternatives))
    return is_mapping and not field.is_required()


def _typed_scalar(value: Any, kinds: tuple[Any, ...], *, key: str) -> Any:
    """Return a word or a number as one of the types expects it."""
    if not isinstance(value, Word | WrittenInt | WrittenFloat) or Any in kinds:
        return value
    if isinstance(value, Word):
        choices = {choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)}
        written = value.lower() if value.lower() in choices else str(value)
        is_of_section = any(map(is_section, kinds)) and not any(kind in (str, Path) for kind in kinds)
        return value.is_true if bool in kinds or is_of_section else written  # model.lora: true
    is_number = int in kinds or float in kinds
    if not is_number and any(kind in (str, Path) or get_origin(kind) is Literal for kind in kinds):
        return value.text
    if _BEGINS_WITH_ZERO.fullmatch(value.text):
        raise ValueError(f"{key}: {value.text}: YAML reads numbers that begin with 0 in base 8; leave the 0 out")
    return plain_value(value)
