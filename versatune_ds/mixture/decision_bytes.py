"""A decision as bytes, as rank 0 sends it to the others: numbers by domain as float64, the rest as JSON.

JSON turns every number into digits and back, which took most of an update's time: 3072 numbers with 256 domains. Here
a column of numbers, one a domain, is 8 bytes each and exactly what it was. The bytes carry a digest of themselves.

Layout: digest of the rest (16 bytes), length of the head (8 bytes), head (JSON), columns (float64, little-endian).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from versatune_ds.mixture.decision import Decision, Number

_DIGEST_BYTES, _LENGTH_BYTES = 16, 8
_TABLES = ("losses", "signals")
"""Fields that are {domain: {column: number}}."""
_VECTORS = ("weights_before", "weights_after")
"""Fields that are {domain: number}; some of the inputs are too."""


def packed_decision(decision: Decision) -> bytes:
    """Return a decision as bytes; `unpacked_decision` returns an equal one.

    Raises:
        ValueError: If a number is NaN or infinite, as `Decision.to_json` does.
    """
    rest = decision.to_dict()
    rest["inputs"] = dict(rest["inputs"])
    names = list(decision.weights_after)
    paths: list[Sequence[str]] = []
    columns: list[Sequence[Number]] = []
    for field in _TABLES:
        if table := _columns_of(rest[field], names=names):
            rest[field] = None  # keeps the field's place
            paths += [(field, column) for column in table]
            columns += table.values()
    vectors = [(rest, (field,)) for field in _VECTORS] + [(rest["inputs"], ("inputs", key)) for key in rest["inputs"]]
    for parent, path in vectors:
        values = parent[path[-1]]
        if isinstance(values, Mapping) and list(values) == names and _is_column(tuple(values.values())):
            parent[path[-1]] = None
            paths.append(path)
            columns.append(tuple(values.values()))
    are_whole = [type(column[0]) is int for column in columns]
    head = json.dumps({"names": names, "paths": paths, "are_whole": are_whole, "rest": rest}, allow_nan=False).encode()
    columns_CK = np.array(columns, dtype="<f8")  # None becomes NaN
    for path, column, values_K in zip(paths, columns, columns_CK, strict=True):
        if np.isfinite(values_K).sum() + column.count(None) < len(column):
            raise ValueError(f"decision: {'.'.join(path)}: expected finite numbers or None, found {list(column)}")
    content = len(head).to_bytes(_LENGTH_BYTES, "little") + head + columns_CK.tobytes()
    return _digest(content) + content


def unpacked_decision(packed: bytes) -> Decision:
    """Return the decision of `packed_decision`.

    Raises:
        RuntimeError: If the bytes are not those that were packed.
    """
    digest, content = packed[:_DIGEST_BYTES], packed[_DIGEST_BYTES:]
    if _digest(content) != digest:
        raise RuntimeError(
            "a decision arrived otherwise than rank 0 sent it: its digest does not match; resume from the last "
            "complete checkpoint"
        )
    end = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
    head = json.loads(content[_LENGTH_BYTES:end])
    rest, names, paths = head["rest"], head["names"], head["paths"]
    columns_CK = np.frombuffer(content, dtype="<f8", offset=end).reshape(len(paths), len(names))
    tables: dict[str, dict[str, list[Number]]] = {}
    for path, is_whole, values_K in zip(paths, head["are_whole"], columns_CK, strict=True):
        column = _numbers_of(values_K, is_whole=is_whole)
        if path[0] in _TABLES:
            tables.setdefault(path[0], {})[path[1]] = column
        else:
            parent = rest if len(path) == 1 else rest[path[0]]
            parent[path[-1]] = dict(zip(names, column, strict=True))
    for field, table in tables.items():
        rows = zip(*table.values(), strict=True)
        rest[field] = {name: dict(zip(table, row, strict=True)) for name, row in zip(names, rows, strict=True)}
    return Decision.from_dict(rest)


def _columns_of(table: Mapping[str, Mapping[str, Number]], *, names: list[str]) -> dict[str, tuple[Number, ...]]:
    """Return {column: a number of each domain}, in order; empty where a table has another form and stays JSON."""
    if list(table) != names:
        return {}
    keys = list(next(iter(table.values()), ()))
    if not keys or any(list(row) != keys for row in table.values()):
        return {}
    columns = dict(zip(keys, zip(*(row.values() for row in table.values()), strict=True), strict=True))
    return columns if all(map(_is_column, columns.values())) else {}


def _is_column(values: Sequence[Any]) -> bool:
    """Return whether all values are floats or None, or all whole numbers that float64 has exactly."""
    kinds = set(map(type, values))
    return (kinds == {int} and max(map(abs, values)) < 2**53) or (bool(kinds) and kinds <= {float, type(None)})


def _numbers_of(values_K: np.ndarray, *, is_whole: bool) -> list[Number]:
    """Return a column's numbers as Python's, None for NaN."""
    if is_whole:
        return values_K.astype(np.int64).tolist()
    numbers = values_K.tolist()
    return [None if number != number else number for number in numbers] if np.isnan(values_K).any() else numbers


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()
