"""Turn Arrow record batches into Python values, whatever a column contains.

A column that is not used (a date in the year 12000, a time zone that this machine does not know, an image) must not
stop the run. Values that Python cannot represent become their Arrow text or, where there is none, a marker that is an
error only when it is read (`records.unreadable`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from versatune_ds.data.sources.records import plain_value, unreadable

# What `to_pylist` raises: Arrow's own errors, dates out of range, unknown zones, invalid UTF-8, double field names.
_CONVERSION_ERRORS = (pa.ArrowException, ValueError, OverflowError, LookupError, TypeError, NotImplementedError)
_OUT_OF_RANGE = "<value out of range"  # how Arrow's text of such a value begins


def rows_of_batch(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """Yield the rows of a record batch as Python values, columns in the order of the schema."""
    names = distinct_names(batch.schema.names)
    columns = [_plain_values(column) for column in batch.columns]
    for row in range(batch.num_rows):
        yield {name: column[row] for name, column in zip(names, columns, strict=True)}


def distinct_names(names: Sequence[str]) -> list[str]:
    """Return column names made unique, as pandas does: a, b, a becomes a, b, a.1, so that no column is lost."""
    found: list[str] = []
    for name in names:
        number, distinct = 0, name
        while distinct in found:
            number += 1
            distinct = f"{name}.{number}"
        found.append(distinct)
    return found


def _plain_values(column: pa.Array) -> list[Any]:
    """Return a column's values; one by one if it has maps (lists of pairs in Python) or cannot be converted at once."""
    if pa.types.is_float32(column.type) or pa.types.is_float16(column.type):
        # Through numpy's text, which has only the digits that the column stores: Python would write 0.1 as
        # 0.10000000149011612, and the model would be trained on that.
        kind = column.type.to_pandas_dtype()
        return [None if value is None else plain_value(float(str(kind(value)))) for value in column.to_pylist()]
    if not _has_map(column.type):
        try:
            return [plain_value(value) for value in column.to_pylist()]
        except _CONVERSION_ERRORS:
            pass
    return [_plain_scalar(scalar) for scalar in column]


def _has_map(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        return _has_map(kind.storage_type)
    return pa.types.is_map(kind) or any(_has_map(kind.field(i).type) for i in range(kind.num_fields))


def _plain_scalar(scalar: pa.Scalar) -> Any:
    """Return one value, converted part by part, so that an unreadable part does not affect the others."""
    kind = scalar.type
    if not scalar.is_valid:
        return None
    if pa.types.is_struct(kind):
        names = distinct_names([kind.field(i).name for i in range(kind.num_fields)])
        return {name: _plain_scalar(scalar[i]) for i, name in enumerate(names)}
    if pa.types.is_map(kind):
        pairs = [(pair[0], pair[1]) for pair in scalar.values]
        return {str(_plain_scalar(key)): _plain_scalar(value) for key, value in pairs}
    if isinstance(scalar, pa.ListScalar):  # and large, fixed-size and view lists, its subclasses
        return [_plain_scalar(value) for value in scalar.values]
    if isinstance(scalar, (pa.ExtensionScalar, pa.DictionaryScalar, pa.UnionScalar, pa.RunEndEncodedScalar)):
        return _plain_scalar(scalar.value)
    try:
        return plain_value(scalar.as_py())
    except _CONVERSION_ERRORS:
        return _arrow_text(scalar)


def _arrow_text(scalar: pa.Scalar) -> Any:
    """Return Arrow's text for a value that Python cannot represent; times of unknown zones are written in UTC."""
    try:
        if pa.types.is_timestamp(scalar.type):
            scalar = scalar.cast(pa.timestamp(scalar.type.unit))
        text = scalar.cast(pa.string()).as_py()
    except _CONVERSION_ERRORS:
        text = _OUT_OF_RANGE
    if text.startswith(_OUT_OF_RANGE):
        return unreadable(f"contains a {scalar.type} that cannot be read as text")
    return text
