"""Look up the columns of one record by name, and list the ones that no form of row reads.

Nothing a user put into a row may stay out of training silently. So a record's columns remember which of them were
taken; of the others, those with text are returned by name: text (an explanation, a hint) apart from labels (an id, a
source, a language), which ordinary data sets have and nobody wants to train on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from versatune_ds.data.encoding.reasoning import MIN_QUOTED_CHARACTERS, REASONING_KEYS
from versatune_ds.data.sources.records import why_unreadable

_LABELS = """
id ids idx index uid uuid guid hash sha md5 url urls uri link links href doi date time timestamp created updated at
lang language languages locale source sources src dataset corpus origin domain subdomain category categories
subcategory topic topics subtopic subject tag tags keyword keywords label labels type types kind task tasks split
subset config version license licence copyright author authors user username model models generator engine name
names title titles file filename path level difficulty grade score scores rating quality status metadata meta
info extra tokens token count counts num length size role
"""
_LABEL_WORDS = frozenset(_LABELS.split())
"""Last words of column names (`prompt_id`, `createdAt`) that describe a row."""
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
_LABEL_VALUE = re.compile(r"[!-~]{1,48}")  # one word without a space: `physics`, `gpt-4`, a date, a digest
_NO_TEXT = frozenset(("true", "false", "none", "null", "nan"))
_VERDICTS = ("label", "correct", "is_correct")
_RENDERED_KEYS = ("text", "prompt", "full_text", "full_prompt", "formatted_text", "formatted_prompt", "chat")
"""Columns that some data sets write the finished row into once more."""

_KEYS = "role from content value text tool_calls function_call tool_call_id name id weight loss_weight train type"
_MESSAGE_KEYS = frozenset(_KEYS.split())
"""Keys of a message that are read, or say nothing to train on."""
_KEYS_OF_PART = "type text value content thinking reasoning think summary signature cache_control"
_PART_KEYS = frozenset(_KEYS_OF_PART.split())


class Columns:
    """The columns of one record by lower-case name; a null column counts as absent.

    Args:
        record: Column names to values. Where two differ in letter case only, the lower-case one is meant by the name.
    """

    def __init__(self, record: Mapping[str, Any]) -> None:
        self._record = record
        self._name_of: dict[str, str] = {}
        for name in sorted((str(name) for name in record), key=lambda name: name != name.lower()):
            if record.get(name) is not None:
                self._name_of.setdefault(name.lower(), name)
        self._nulls = {str(name).lower() for name in record} - self._name_of.keys()
        self._taken: set[str] = set()

    def __contains__(self, key: str) -> bool:
        """Return whether there is a column with a value."""
        return key in self._name_of

    def get(self, key: str) -> Any:
        """Return a column's value without taking it; None when absent."""
        return self._record[self._name_of[key]] if key in self._name_of else None

    def take(self, key: str) -> Any:
        """Return a column's value, which the row is made of from now on."""
        if key in self._name_of:
            self._taken.add(self._name_of[key])
        return self.get(key)

    def first(self, keys: Iterable[str]) -> str | None:
        """Return the first of some names that is a column."""
        return next((key for key in keys if key in self), None)

    def first_null(self, keys: Iterable[str]) -> str | None:
        """Return the first of some names whose column is null."""
        return next((key for key in keys if key in self._nulls), None)

    def first_filled(self, keys: Iterable[str]) -> str | None:
        """Return the first of some names whose column is more than blank text or an empty list."""
        return next((key for key in keys if key in self and not _is_blank(self.get(key))), None)

    def unread(self, texts: Sequence[str]) -> tuple[list[str], list[str]]:
        """Return the columns with text that were not taken and do not repeat the row's texts: text, labels."""
        left = {str(name): value for name, value in self._record.items() if name not in self._taken}
        return _divided(left, texts=texts)


def unread_message_keys(messages: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the keys of messages and of their typed parts with text that the turns do not have: text, labels."""
    text: dict[str, None] = {}
    labels: dict[str, None] = {}
    for message in messages:
        for prefix, left in _left_of_message(message):
            found, label = _divided(left, texts=texts)
            text |= dict.fromkeys(prefix + name for name in found)
            labels |= dict.fromkeys(prefix + name for name in label)
    return list(text), [name for name in labels if name not in text]


def _left_of_message(message: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what is beside the content of a message and of each of its parts, with the path to it."""
    if not message.keys() <= _MESSAGE_KEYS:
        yield "messages[].", {key: value for key, value in message.items() if key not in _MESSAGE_KEYS}
    filled = [key for key in ("content", "value", "text") if message.get(key) is not None]
    if len(filled) > 1:
        yield "messages[].", {key: message[key] for key in filled[1:]}
    content = message[filled[0]] if filled else None
    for part in content if isinstance(content, list) else ():
        if isinstance(part, dict) and not part.keys() <= _PART_KEYS:
            yield "messages[].content[].", {key: value for key, value in part.items() if key not in _PART_KEYS}


def _divided(left: Mapping[str, Any], *, texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the names of values with text that the row's texts do not hold: text, labels."""
    text, labels = [], []
    for name, value in left.items():
        strings = [part for part in _strings(value) if _is_text(part)]
        if name.lower() in _VERDICTS and not isinstance(value, str) and value in (0, False):
            text.append(name)  # no text, but it may say that the answer is wrong
        elif strings and _is_label(name, strings):
            labels += [name] * any(string not in texts for string in strings)
        elif strings and not _is_repeated(name, strings, texts=texts):
            text.append(name)
    return text, labels


def _strings(value: Any) -> Iterator[str]:
    """Yield the texts in a value, however nested."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict) and not why_unreadable(value):
        for entry in value.values():
            yield from _strings(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _strings(entry)


def _is_text(string: str) -> bool:
    """Return whether a text has a letter and is no word for nothing, true or false."""
    return string.strip().lower() not in _NO_TEXT and any(character.isalpha() for character in string)


def _is_blank(value: Any) -> bool:
    """Return whether a value is an empty list or text of white space alone."""
    return value == [] or (isinstance(value, str) and not value.strip())


def _is_label(name: str, strings: Sequence[str]) -> bool:
    """Return whether a column describes the row, by its name or because each of its texts is a single word."""
    words = [word.lower() for word in _WORD.findall(name)]
    is_named_so = bool(words) and words[-1] in _LABEL_WORDS and name.lower() not in REASONING_KEYS
    return is_named_so or all(_LABEL_VALUE.fullmatch(string.strip()) for string in strings)


def _is_repeated(name: str, strings: Sequence[str], *, texts: Sequence[str]) -> bool:
    """Return whether the row's texts hold a column's, or it is a rendered form of all of them."""
    stripped = {text.strip() for text in texts}
    if all(_is_quoted(string.strip(), stripped) for string in strings):
        return True
    paragraphs = [paragraph.strip() for text in texts for paragraph in text.split("\n\n")]
    is_rendered = name.lower() in _RENDERED_KEYS and len(strings) == 1
    return is_rendered and all(paragraph in strings[0] for paragraph in paragraphs)


def _is_quoted(string: str, texts: set[str]) -> bool:
    """Return whether a text is one of some texts, or a part of one that is too long to be there by chance."""
    return string in texts or (len(string) >= MIN_QUOTED_CHARACTERS and any(string in text for text in texts))
