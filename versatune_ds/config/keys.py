"""List every key of a recipe with its type, default and meaning, read off the config classes themselves.

`versatune keys` prints the list and docs/keys.md holds it; neither is written by hand.
"""

from __future__ import annotations

import itertools
import re
import textwrap
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from versatune_ds.config.recipe import RunConfig

_NAME_OF_TYPE = {int: "integer", float: "number", str: "text", bool: "true or false", Path: "path", Any: "any"}
_SIGN = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
_PLACEHOLDER = {"domains": "DOMAIN"}
"""What stands for a key that the user chooses, by the mapping's name."""
_INDENTED: dict[str, Any] = {"initial_indent": "    ", "subsequent_indent": "    "}
_HEAD = """# Keys of a recipe

Written by `versatune keys --markdown`; a test compares. A key stands in the YAML file under its section, or on the
command line as `section.key=value`. DOMAIN and NAME are names that you choose. `versatune keys PATTERN` prints the keys
whose name or meaning has the pattern."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key of a recipe."""

    name: str
    """Dotted, with DOMAIN or NAME for a key that the user chooses."""
    type: str
    default: str
    """As YAML would write it; `required` where there is none."""
    meaning: str


def recipe_keys(pattern: str = "") -> list[Key]:
    """Return the keys whose name or meaning contains a pattern, in the order of the sections.

    Args:
        pattern: Text, matched without regard to case; `*` stands for anything. Empty for all keys.
    """
    wanted = re.compile(re.escape(pattern).replace(r"\*", ".*"), re.IGNORECASE)
    keys = _keys_of(RunConfig, prefix="", place_of={})
    return [key for key in keys if wanted.search(key.name) or wanted.search(key.meaning)]


def keys_as_text(keys: Sequence[Key]) -> str:
    """Return keys for a terminal: name, type and default on a line, the meaning below it."""
    blocks = [
        "\n".join([f"{key.name}  [{key.type}]  default: {key.default}", *textwrap.wrap(key.meaning, 100, **_INDENTED)])
        for key in keys
    ]
    return "\n".join(blocks)


def keys_as_markdown(keys: Sequence[Key]) -> str:
    """Return keys as docs/keys.md: a table for each section of the recipe."""
    lines = [_HEAD]
    for section, of_section in itertools.groupby(keys, key=lambda key: key.name.split(".")[0]):
        lines += [f"\n## {section}\n", "| key | type | default | meaning |", "|---|---|---|---|"]
        lines += [
            f"| `{key.name}` | {_cell(key.type)} | {_cell(key.default)} | {_cell(key.meaning)} |" for key in of_section
        ]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Return text as a cell of a Markdown table."""
    return text.replace("|", "\\|") or "(empty)"


def _keys_of(
    section: type[BaseModel], *, prefix: str, place_of: dict[type[BaseModel], str]
) -> Iterator[Key]:
    """Yield the keys of a section and of the sections in it; one met a second time refers to its first place.

    Args:
        section: The section.
        prefix: Its dotted name, with a dot at the end; empty for the recipe.
        place_of: Dotted names of the sections listed so far; added to.
    """
    for name, field in section.model_fields.items():
        dotted = f"{prefix}{name}"
        nested, is_by_name = _section_in(field.annotation)
        is_known = nested in place_of
        if nested is None or not _is_always_a_section(field.annotation):
            key = _key(dotted, field)
            yield replace(key, meaning=f"{key.meaning} Keys as under `{place_of[nested]}`.") if is_known else key
        if nested is not None and not is_known:
            place_of[nested] = dotted
            middle = f".{_PLACEHOLDER.get(name, 'NAME')}" if is_by_name else ""
            yield from _keys_of(nested, prefix=f"{dotted}{middle}.", place_of=place_of)


def _key(name: str, field: FieldInfo) -> Key:
    """Return a field as a key."""
    metadata = field.metadata
    limits = [f"{_SIGN[sign]} {getattr(item, sign):g}" for item in metadata for sign in _SIGN if hasattr(item, sign)]
    default = "required" if field.is_required() else _default_text(field.get_default(call_default_factory=True))
    return Key(
        name=name,
        type=" ".join([_type_text(field.annotation), *(f"({', '.join(limits)})" for _ in limits[:1])]),
        default=default,
        meaning=" ".join((field.description or "").split()),
    )


def _members(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the annotation alone."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _section_in(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """Return the section that a field may hold, and whether it is one of a mapping by name."""
    for member in _members(annotation):
        if isinstance(member, type) and issubclass(member, BaseModel):
            return member, False
        if get_origin(member) is dict:
            return _section_in(get_args(member)[1])[0], True
    return None, False


def _is_always_a_section(annotation: Any) -> bool:
    """Return whether a field is a section and nothing else, so that only the keys in it can be set."""
    members = _members(annotation)
    return len(members) == 1 and isinstance(members[0], type) and issubclass(members[0], BaseModel)


def _type_text(annotation: Any) -> str:
    """Return a field's type in words."""
    return " or ".join(dict.fromkeys(filter(None, map(_member_text, _members(annotation)))))


def _member_text(member: Any) -> str:
    """Return one member of a type in words; None is shown as null."""
    arguments = get_args(member)
    if member is type(None):
        return "null"
    if get_origin(member) is Literal:
        return ", ".join(map(str, arguments))
    if get_origin(member) in (tuple, list):
        return f"list of {_type_text(arguments[0])}"
    if get_origin(member) in (dict, Mapping):
        return f"mapping from name to {_type_text(arguments[1])}"
    if get_origin(member) is Annotated:
        return _type_text(member)
    if isinstance(member, type) and issubclass(member, BaseModel):
        return "mapping"
    return _NAME_OF_TYPE.get(member, getattr(member, "__name__", str(member)))


def _default_text(value: Any) -> str:
    """Return a default as YAML would write it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, BaseModel):
        return "{}"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_default_text, value))}]"
    return str(value)
