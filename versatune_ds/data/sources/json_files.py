"""Read the records of a `.json` file: an array, an object of records, or JSON Lines under another name.

An array is parsed element by element while it is read, so its size does not matter. Only a file with a single object is
read into memory completely.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from versatune_ds.data.sources.records import Record, json_text, open_text, parse_json, read_lines

_CHARACTERS_PER_READ = 1 << 16
_SEPARATORS = re.compile(r"[ \t\r\n,]*")
_KEYS_OF_A_RECORD = ("messages", "conversations", "conversation", "instruction", "prompt", "question", "query")
_MAX_FIRST_LINE_CHARACTERS = 1 << 26  # a longer first line is read as part of one object


def read_json_lines(path: Path) -> Iterator[Record]:
    """Yield one record per line; the JSON itself is parsed later, in parallel."""
    yield from records_of_json_lines(read_lines(path))


def records_of_json_lines(lines: Iterable[tuple[int, str, str]]) -> Iterator[Record]:
    """Yield the records of lines as `read_lines` yields them."""
    for number, text, problem in lines:
        yield Record(line=number, json_text=text.strip(), problem=problem)


def read_json(path: Path) -> Iterator[Record]:
    """Yield the elements of a JSON array, the lines of JSON Lines under another name, or the entries of an object."""
    with open_text(path) as stream:
        start = _read_first_block(stream).lstrip()
    if start.startswith("["):
        yield from _read_json_array(path)
    elif _is_json_lines(path):
        yield from read_json_lines(path)
    else:
        with open_text(path) as stream:
            yield from _read_json_object(path, text=stream.read())


def _read_json_array(path: Path) -> Iterator[Record]:
    """Yield the elements of an array while reading it, with one element and one block in memory.

    Raises:
        ValueError: If the file ends within an element, an element is not JSON, or something follows the array, with
            file and line.
    """
    decoder, line = json.JSONDecoder(parse_int=str), 1  # only the end is used: integers may have any length
    with open_text(path) as stream:
        buffer = _read_first_block(stream)
        place = buffer.index("[") + 1
        line += buffer.count("\n", 0, place)
        while True:
            # Find the end of the next element.
            start = _SEPARATORS.match(buffer, place).end()
            line += buffer.count("\n", place, start)
            try:
                _, end = decoder.raw_decode(buffer, start)
            except ValueError:
                end = -1
            except RecursionError:
                raise ValueError(f"{path}:{line}: nested too deeply to be read") from None
            # The array ends, the element may continue in the next block, or it is complete.
            if buffer.startswith("]", start):
                _check_nothing_follows(buffer[start + 1 :], stream, place=f"{path}:{line}")
                return
            if end < 0 or end == len(buffer):  # perhaps cut off by the end of the block: a number could continue
                more = stream.read(max(_CHARACTERS_PER_READ, len(buffer) - start))
                if not more:
                    raise ValueError(f"{path}:{line}: not valid JSON, or the array is not closed with ]")
                buffer, place = buffer[start:] + more, 0
                continue
            yield Record(line=line, json_text=buffer[start:end])
            line += buffer.count("\n", start, end)
            place = end


def _check_nothing_follows(text: str, stream: TextIO, *, place: str) -> None:
    """Raise ValueError, with the place, if an array is followed by more than white space."""
    found = text.strip() or _read_first_block(stream).strip()
    if found:
        raise ValueError(
            f"{place}: the array ends here, but {found[:20]!r} follows; expected one array, or JSON Lines of objects"
        )


def _read_first_block(stream: TextIO) -> str:
    """Return the beginning of a file, up to the first block with more than white space."""
    text = block = stream.read(_CHARACTERS_PER_READ)
    while block and not text.strip():
        block = stream.read(_CHARACTERS_PER_READ)
        text += block
    return text


def _is_json_lines(path: Path) -> bool:
    """Return whether the first line that is not blank is a complete object, and more follows it."""
    with open_text(path) as stream:
        line = stream.readline(_MAX_FIRST_LINE_CHARACTERS)
        while line and not line.strip():
            line = stream.readline(_MAX_FIRST_LINE_CHARACTERS)
        return _is_json_object(line) and bool(_read_first_block(stream).strip())


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(parse_json(text), dict)
    except (ValueError, RecursionError):
        return False


def _read_json_object(path: Path, *, text: str) -> Iterator[Record]:
    """Yield the records of an object: its values if all are objects, its list of objects, or the object itself."""
    try:
        value = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from None
    except RecursionError:
        raise ValueError(f"{path}: nested too deeply to be read") from None
    for number, entry in enumerate(_entries(value), start=1):
        yield Record(line=number, json_text=json_text(entry))


def _entries(value: Any) -> list[Any]:
    if not isinstance(value, dict):
        return [value]
    if value and all(isinstance(entry, dict) for entry in value.values()):
        return list(value.values())
    lists = [entry for entry in value.values() if isinstance(entry, list) and entry and isinstance(entry[0], dict)]
    is_record = any(key in value for key in _KEYS_OF_A_RECORD)
    return lists[0] if len(lists) == 1 and not is_record else [value]
