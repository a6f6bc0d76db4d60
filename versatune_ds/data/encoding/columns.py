"""Look up the columns of one record by name, and list those that are not used.

No text may be dropped from training silently. So the columns of a record track which of them were used. Of the others,
those with text are listed: text (an explanation, a hint) separately from labels (an id, a source, a language), which
are common and not meant for training.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from versatune_ds.data.encoding.reasoning import MIN_QUOTED_CHARACTERS, REASONING_KEYS
from versatune_ds.data.sources.records import printable, texts_in
from versatune_ds.text_table import listed

_LABELS = """
id ids idx index uid uuid guid hash sha md5 url urls uri link links href doi date time timestamp created updated at
lang language languages locale source sources src dataset corpus origin domain subdomain category categories
subcategory topic topics subtopic subject tag tags keyword keywords label labels type types kind task tasks split
subset config version license licence copyright author authors user username model models generator engine name
names title titles file filename path level difficulty grade score scores rating quality status metadata meta
info extra tokens token count counts num length size role
"""
_LABEL_WORDS = frozenset(_LABELS.split())
"""Last words of the names of columns that describe an example (`prompt_id`, `createdAt`)."""
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
_LABEL_VALUE = re.compile(r"[!-~]{1,48}")  # one word without a space: `physics`, `gpt-4`, a date, a digest
_NO_TEXT = frozenset(("true", "false", "none", "null", "nan"))
_VERDICTS = ("label", "correct", "is_correct")
_RENDERED_KEYS = ("text", "prompt", "full_text", "full_prompt", "formatted_text", "formatted_prompt", "chat")
"""Columns in which some data sets repeat the full rendered example."""

_KEYS = "role from content value text tool_calls function_call tool_call_id name id weight loss_weight train type"
_MESSAGE_KEYS = frozenset(_KEYS.split())
"""Keys of a message that are read, or contain nothing to train on."""
_KEYS_OF_PART = "type text value content thinking reasoning think summary signature cache_control"
_PART_KEYS = frozenset(_KEYS_OF_PART.split())

UNREAD_WAY_OUT = "if they belong to the example, list them in `columns` of data.domains"
_MAX_NAMES = 12
_MAX_NAME_CHARACTERS = 60


class Columns:
    """The columns of one record by lower-case name; a null column counts as absent.

    Args:
        record: Column names to values. If two names differ only in letter case, the lower-case one is used.
    """

    def __init__(self, record: Mapping[str, Any]) -> None:
        self._record = record
        self._name_of: dict[str, str] = {}
        for name in sorted((str(name) for name in record), key=lambda name: name != name.lower()):
            if record.get(name) is not None:
                self._name_of.setdefault(name.lower(), name)
        self._nulls = {str(name).lower() for name in record} - self._name_of.keys()
        self._used: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._name_of

    def get(self, key: str) -> Any:
        """Return a column's value without marking it as used; None if absent."""
        return self._record[self._name_of[key]] if key in self._name_of else None

    def take(self, key: str) -> Any:
        """Return a column's value and mark the column as used; None if absent."""
        if key in self._name_of:
            self._used.add(self._name_of[key])
        return self.get(key)

    def first(self, keys: Iterable[str]) -> str | None:
        """Return the first of some names whose column has a value."""
        return next((key for key in keys if key in self), None)

    def first_null(self, keys: Iterable[str]) -> str | None:
        """Return the first of some names whose column is null."""
        return next((key for key in keys if key in self._nulls), None)

    def first_filled(self, keys: Iterable[str]) -> str | None:
        """Return the first of some names whose column is not blank text or an empty list."""
        return next((key for key in keys if key in self and not _is_blank(self.get(key))), None)

    def unread(self, texts: Sequence[str]) -> tuple[list[str], list[str]]:
        """Return the unused columns with text that does not repeat the example's texts, as (text, labels)."""
        unused = {str(name): value for name, value in self._record.items() if name not in self._used}
        return _text_and_labels(unused, texts=texts)


def unread_message_keys(messages: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the keys of messages and of their typed parts with text that is in no turn, as (text, labels)."""
    text: dict[str, None] = {}
    labels: dict[str, None] = {}
    for message in messages:
        for prefix, unused in _unused_of_message(message):
            names_of_text, names_of_labels = _text_and_labels(unused, texts=texts)
            text |= dict.fromkeys(prefix + name for name in names_of_text)
            labels |= dict.fromkeys(prefix + name for name in names_of_labels)
    return list(text), [name for name in labels if name not in text]


def _unused_of_message(message: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the unused keys of a message and of each of its parts, with the path to them."""
    if not message.keys() <= _MESSAGE_KEYS:
        yield "messages[].", {key: value for key, value in message.items() if key not in _MESSAGE_KEYS}
    filled = [key for key in ("content", "value", "text") if message.get(key) is not None]
    if len(filled) > 1:
        yield "messages[].", {key: message[key] for key in filled[1:]}
    content = message[filled[0]] if filled else None
    for part in content if isinstance(content, list) else ():
        if isinstance(part, dict) and not part.keys() <= _PART_KEYS:
            yield "messages[].content[].", {key: value for key, value in part.items() if key not in _PART_KEYS}


def _text_and_labels(unused: Mapping[str, Any], *, texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the names of unused values with text that the example's texts do not contain, as (text, labels)."""
    text, labels = [], []
    for name, value in unused.items():
        strings = [part for part in texts_in(value) if _is_text(part)]
        if name.lower() in _VERDICTS and not isinstance(value, str) and value in (0, False):
            text.append(name)  # a number or a flag: 0 or false can mark a wrong answer
        elif strings and _is_label(name, strings):
            if any(string not in texts for string in strings):
                labels.append(name)
        elif strings and not _is_repeated(name, strings, texts=texts):
            text.append(name)
    return text, labels


def _is_text(string: str) -> bool:
    """Return whether a text has a letter and is not a word such as none or true."""
    return string.strip().lower() not in _NO_TEXT and any(character.isalpha() for character in string)


def _is_blank(value: Any) -> bool:
    return value == [] or (isinstance(value, str) and not value.strip())


def _is_label(name: str, strings: Sequence[str]) -> bool:
    """Return whether a column describes the example: by its name, or because each of its texts is a single word."""
    words = [word.lower() for word in _WORD.findall(name)]
    has_name_of_label = bool(words) and words[-1] in _LABEL_WORDS and name.lower() not in REASONING_KEYS
    return has_name_of_label or all(_LABEL_VALUE.fullmatch(string.strip()) for string in strings)


def _is_repeated(name: str, strings: Sequence[str], *, texts: Sequence[str]) -> bool:
    """Return whether the example's texts contain a column's, or the column is a rendered form of all of them."""
    stripped = {text.strip() for text in texts}
    if all(_is_quoted(string.strip(), stripped) for string in strings):
        return True
    paragraphs = [paragraph.strip() for text in texts for paragraph in text.split("\n\n")]
    is_rendered = name.lower() in _RENDERED_KEYS and len(strings) == 1
    return is_rendered and all(paragraph in strings[0] for paragraph in paragraphs)


def _is_quoted(string: str, texts: set[str]) -> bool:
    """Return whether a text is one of some texts, or a part of one and too long to be there by chance."""
    return string in texts or (len(string) >= MIN_QUOTED_CHARACTERS and any(string in text for text in texts))


@dataclass(frozen=True, slots=True, kw_only=True)
class UnreadColumn:
    """One column, or one key of messages (`messages[].note`), that is not trained on."""

    name: str
    num_rows: int
    place: str
    """file:line of the first of these rows."""
    is_label: bool
    """Whether it is a label (an id, a source), or excluded by `columns`, in all of these rows."""


class UnreadCounter:
    """Count, over the records of a domain, the columns that are not used."""

    def __init__(self) -> None:
        self._found: dict[str, UnreadColumn] = {}

    def add(self, names: Iterable[str], *, is_label: bool, place: str, num_rows: int = 1) -> None:
        """Count unused columns of one record, or of several with the same ones; `place` is that of the first."""
        for name in names:
            before = self._found.get(name)
            self._found[name] = UnreadColumn(
                name=name,
                num_rows=num_rows + (before.num_rows if before else 0),
                place=before.place if before else place,
                is_label=is_label and (before is None or before.is_label),
            )

    def columns(self) -> tuple[UnreadColumn, ...]:
        """Return the columns, those in most rows first."""
        return tuple(sorted(self._found.values(), key=lambda column: (-column.num_rows, column.name)))


def describe_text(columns: Iterable[UnreadColumn]) -> str:
    """Return the columns with text, each with its number of rows and the first of them; empty if there are none."""
    found = [column for column in columns if not column.is_label]
    texts = [f"{_name(c)} ({c.num_rows:,} rows, first {printable(c.place, max_characters=400)})" for c in found]
    return listed(texts, most=_MAX_NAMES)


def describe_labels(columns: Iterable[UnreadColumn]) -> str:
    """Return the names of the columns that are labels; empty if there are none."""
    return listed([_name(column) for column in columns if column.is_label], most=_MAX_NAMES)


def _name(column: UnreadColumn) -> str:
    return printable(column.name, max_characters=_MAX_NAME_CHARACTERS)
