"""What a key of a recipe expects, in words: pydantic's own messages are about Python types and parsing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

PAIRS = "expected key: value pairs"
_LIST = "expected a list such as [a, b]"
_NUMBER, _WHOLE_NUMBER = "expected a number", "expected a whole number"
_SOURCE = "expected a path, or {hub: owner/name}"
_EXPECTED = {
    "model_type": PAIRS,
    "dict_type": PAIRS,
    "tuple_type": _LIST,
    "list_type": _LIST,
    "set_type": _LIST,
    "string_type": "expected text",
    "string_too_short": "expected text that is not empty",
    "string_unicode": "expected text that is valid Unicode",
    "path_type": "expected a path",
    "int_type": _WHOLE_NUMBER,
    "int_parsing": _WHOLE_NUMBER,
    "int_from_float": _WHOLE_NUMBER,
    "int_parsing_size": "expected a smaller number",
    "float_type": _NUMBER,
    "float_parsing": _NUMBER,
    "finite_number": "expected a finite number",
    "bool_type": "expected true or false",
    "bool_parsing": "expected true or false",
    "none_required": "expected null",
    "union_tag_invalid": _SOURCE,
    "union_tag_not_found": _SOURCE,
}
"""Type of an error -> what was expected."""

PATTERNS = {
    r"^[A-Za-z0-9][A-Za-z0-9._-]*$": "a name of letters, digits, '.', '_' and '-', a letter or digit first",
    r"^\d+[KMGT]?$": "a number with K, M, G or T behind it, such as 200G",
    r"^(\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}|UNLIMITED)$": "a time such as 90 (minutes), 12:00:00, 2-12 (days-hours) "
    "or UNLIMITED",
    r"^\d+([-,:]\d+)*(%\d+)?$": "task numbers such as 0-3, 1,5 or 0-9%2",
    r"^[^\[\]]+$": "the name of a split such as train, without a slice",
}
"""Pattern of a text in a section -> what it describes, for a message that a user need not decode."""


def expected_in_words(kind: str, context: Mapping[str, Any], message: str) -> str:
    """Return what a key expects.

    Args:
        kind: Pydantic's type of the error.
        context: The bounds or values that belong to it.
        message: Pydantic's message, for kinds that are messages of this package.
    """
    if kind in ("too_short", "too_long"):
        bound = "least" if kind == "too_short" else "most"
        num_entries = context.get("min_length", context.get("max_length"))
        return f"expected at {bound} {num_entries} {'entry' if num_entries == 1 else 'entries'}"
    if kind in ("literal_error", "enum"):
        return f"expected {context['expected']}"
    if kind == "string_pattern_mismatch":
        return f"expected {PATTERNS.get(context['pattern'], 'text of the form ' + context['pattern'])}"
    words = {"greater_than": "more than", "less_than": "less than", "less_than_equal": "at most"}
    if kind in words:
        (bound,) = context.values()
        return f"expected {words[kind]} {bound:g}"
    if kind == "greater_than_equal":
        return f"expected {context['ge']:g} or more"
    return _EXPECTED.get(kind, message[0].lower() + message[1:])


def joined(expected: Sequence[str]) -> str:
    """Return what a key expects in all the forms that it may have."""
    forms = dict.fromkeys(expected)
    if _NUMBER in forms:  # a whole number is one
        forms.pop(_WHOLE_NUMBER, None)
    first, *others = forms
    return " or ".join([first, *(text.removeprefix("expected ") for text in others)])
