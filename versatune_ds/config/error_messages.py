"""Turn pydantic's errors into messages for users: the dotted key, what was expected, what was given.

Messages contain no Python classes or types, only keys and values.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from versatune_ds.config.expected_values import PAIRS, expected_in_words, joined
from versatune_ds.config.known_names import known_name, nearest_known_name
from versatune_ds.config.section import alternatives_of, fields_of, is_section, scalar_types
from versatune_ds.domains import nearest_name
from versatune_ds.text_table import listed

_MOST_SHOWN = 80
"""Characters of a value that a message repeats."""

_MOST_KEYS = 16
"""Keys of a section that a message lists; `versatune keys SECTION` lists all."""

_TAGS = frozenset({"path", "hub", "int", "float", "str", "bool", "none"})
_TAG_BEGINNINGS = ("function-", "constrained-", "lax-or-strict", "json-or-python", "literal[", "dict[", "tuple[",
                   "list[", "chain[", "union[", "tagged-union[", "is-instance[", "nullable")  # fmt: skip
"""Names that pydantic puts among the keys of an error, for the alternatives of a key."""


def lines_of_errors(errors: Sequence[ErrorDetails], section: type[BaseModel]) -> list[str]:
    """Return one line for each mistake; all forms that one key may have share a line.

    Args:
        errors: As pydantic lists them.
        section: The model that was validated.
    """
    lines: dict[str, None] = {}
    expected_of: dict[tuple[str, str], list[str]] = {}
    places = [_walk(details["loc"], section)[0] for details in errors]
    for details, place in zip(errors, places, strict=True):
        has_errors_inside = any(other != place and other[: len(place)] == place for other in places)
        if isinstance(details["input"], dict) and details["type"].endswith("_type") and has_errors_inside:
            continue  # a mapping is one of the key's forms, and the error inside it says more
        found = _words(details, section=section)
        if isinstance(found, str):
            lines[found] = None
        else:
            key, expected, given = found
            expected_of.setdefault((key, given), []).append(expected)
    for (key, given), expected in expected_of.items():
        lines[f"{key}: {joined(expected)}{given}"] = None
    return list(lines)


def _words(details: ErrorDetails, *, section: type[BaseModel]) -> str | tuple[str, str, str]:
    """Return an error as a line; or, where other errors may be joined to it, its key, what was expected and given."""
    keys, kinds = _walk(details["loc"], section)
    key, kind, given = ".".join(keys), details["type"], details["input"]
    if kind == "extra_forbidden":
        return f"{key}: unknown key{_hint(keys, list(fields_of(_walk(details['loc'][:-1], section)[1])), section)}"
    if kind == "missing":
        return f"{key}: missing; this key is required"
    message = details["msg"].removeprefix("Value error, ")
    # A validator that checks several keys begins its message with the one at fault; pydantic knows the section only.
    names_its_key = kind == "value_error" and "." in message.split(" ", 1)[0].rstrip(":")
    if not key or names_its_key:
        return message
    expected = expected_in_words(kind, details.get("ctx", {}), message)
    if expected == PAIRS and (known := fields_of(kinds)):
        expected = f"{PAIRS}, with the keys {listed(list(known), most=_MOST_KEYS)}"
    return key, expected, f" (got {PAIRS.removeprefix('expected ') if isinstance(given, dict) else shown_value(given)})"


def _hint(keys: Sequence[str], known: Sequence[str], section: type[BaseModel]) -> str:
    """Return what to write instead of an unknown key: our key for a name of another tool, or the nearest name.

    Args:
        keys: Parts of the unknown key.
        known: Keys of the section it is in.
        section: The model that was validated; other tools' names are answered in a recipe alone.
    """
    is_recipe = set(_RECIPE_SECTIONS) <= set(section.model_fields)
    foreign = known_name(".".join(keys)) if is_recipe else None
    if foreign is not None:
        # reference.lr is reference.learning_rate, not train.learning_rate.
        last = foreign.keys[0].rpartition(".")[2] if len(foreign.keys) == 1 else ""
        here = (".".join([*keys[:-1], last]),) if last in known else None
        return f"; {foreign.answer(here)}"
    elsewhere = _keys_named(keys[-1], section)
    if elsewhere:
        return f"; did you mean {' or '.join(elsewhere)}?"
    nearest = nearest_name(keys[-1], known) if known else ""
    misspelt = nearest_known_name(keys[-1]) if is_recipe and not nearest.startswith("did you mean") else None
    if misspelt is not None:
        return f"; did you mean {misspelt}? {known_name(misspelt).answer()}"
    return f"; {nearest}" if nearest else ""


_RECIPE_SECTIONS = ("run", "model", "data", "train")
"""Sections that a recipe must have; a comparison has none of them but data."""


def _keys_named(name: str, section: type[BaseModel]) -> list[str]:
    """Return the dotted keys one section below the top whose last part is a name, such as train.steps for steps."""
    parts = section.model_fields.items()
    return [f"{key}.{name}" for key, field in parts if name in fields_of(alternatives_of(field.annotation))]


def shown_value(value: Any) -> str:
    """Return a value for a message: as YAML writes it, and shortened if long."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | Path):
        text = repr(str(value))
    else:
        text = repr(value)
        for of_python, of_yaml in (("None", "null"), ("True", "true"), ("False", "false")):
            text = re.sub(rf"\b{of_python}\b", of_yaml, text)
    return text if len(text) <= _MOST_SHOWN else f"{text[: _MOST_SHOWN - 3]}..."


def _walk(places: Sequence[int | str], section: type[BaseModel]) -> tuple[list[str], list[Any]]:
    """Return the keys in the location of an error, and the types that the value at the last key may have.

    Pydantic puts the alternatives of a key between the keys: ("num_rows", "dict[str,int]", "law").
    """
    keys: list[str] = []
    kinds: list[Any] = [section]
    for place in places:
        # What the value at the last key may contain.
        fields = fields_of(kinds)
        mappings = [kind for kind in kinds if get_origin(kind) is dict]
        has_others = any(kind is not type(None) and kind not in mappings for kind in kinds)
        # Whether the next place is a key, or the name of an alternative.
        if isinstance(place, int):
            keys.append(str(place))
        elif place in fields:
            keys.append(place)
            kinds = list(scalar_types(fields[place].annotation))
        elif place.startswith(_TAG_BEGINNINGS):
            kinds = mappings if place.startswith("dict[") else kinds
        elif place == "[key]" or any(is_section(kind) and kind.__name__ == place for kind in kinds):
            continue
        elif mappings and not (has_others and place in _TAGS):
            keys.append(place)
            kinds = [kind for mapping in mappings for kind in scalar_types(get_args(mapping)[1])]
        elif place not in _TAGS:
            keys.append(place)
            kinds = []
    return keys, kinds
