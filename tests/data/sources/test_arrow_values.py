"""No column of a table stops the run: values that Python cannot represent become text, or an error only when read."""

from __future__ import annotations

import datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from versatune_ds.data.encoding.forms import Example, parse_example
from versatune_ds.data.encoding.turns import BadRowError
from versatune_ds.data.sources.arrow_values import distinct_names, rows_of_batch
from versatune_ds.data.sources.readers import read_records
from versatune_ds.data.sources.records import why_unreadable

LATE = 10**14
"""Seconds from 1970 to the year 3170843."""


def rows(**columns):
    return list(rows_of_batch(pa.record_batch(list(columns.values()), names=list(columns))))


def test_values_that_python_can_represent_are_unchanged():
    day = datetime.date(2020, 2, 3)
    assert rows(a=pa.array([1, None]), b=pa.array([day, day]), c=pa.array([{"x": [1.5]}, None])) == [
        {"a": 1, "b": day, "c": {"x": [1.5]}},
        {"a": None, "b": day, "c": None},
    ]


def test_nan_and_infinity_become_none_at_any_depth():
    column = pa.array([{"x": [float("nan"), float("inf"), 2.0]}])
    assert rows(a=pa.array([float("-inf")]), b=column) == [{"a": None, "b": {"x": [None, None, 2.0]}}]


@pytest.mark.parametrize("kind", [pa.float64(), pa.float32(), pa.float16()])
def test_a_16_or_32_bit_float_has_only_the_digits_that_it_stores(kind):
    assert rows(a=pa.array([0.1, None, float("nan"), 3.0]).cast(kind)) == [{"a": a} for a in (0.1, None, None, 3.0)]


def test_a_map_becomes_a_mapping_as_in_json():
    assert rows(a=pa.array([[("x", 1), ("y", None)]], pa.map_(pa.string(), pa.int64()))) == [{"a": {"x": 1, "y": None}}]


def test_a_time_of_an_unknown_zone_is_written_in_utc():
    column = pa.array([0, None], pa.timestamp("s", tz="Mars/Phobos"))
    assert rows(a=column) == [{"a": "1970-01-01 00:00:00"}, {"a": None}]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([LATE], pa.timestamp("s")),
        pa.array([10**9], pa.date32()),
        pa.array([LATE], pa.timestamp("s", tz="UTC")),
        pa.array([[{"at": LATE}]], pa.list_(pa.struct([("at", pa.timestamp("s"))]))),
        pa.array([b"\xff"]),
        pa.array(["caf\xe9".encode("latin-1")]).view(pa.string()),
    ],
    ids=lambda column: str(column.type),
)
def test_a_value_that_cannot_be_read_is_an_error_only_in_a_column_that_is_used(tmp_path, column):
    table = pa.table([pa.array(["fine"]), column], names=["text", "other"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    for name in ("a.parquet", "a.arrow"):
        (record,) = read_records(tmp_path / name)
        assert parse_example(record.json_text) == Example(text="fine")
        with pytest.raises(BadRowError):
            parse_example(record.json_text, columns={"text": "other"})


def test_an_unreadable_key_beside_a_message_does_not_affect_the_message():
    fields = [("role", pa.string()), ("content", pa.string()), ("at", pa.timestamp("s"))]
    (row,) = rows(messages=pa.array([[{"role": "user", "content": "Hi", "at": LATE}]], pa.list_(pa.struct(fields))))
    (message,) = row["messages"]
    assert (message["role"], message["content"]) == ("user", "Hi")
    assert why_unreadable(message["at"]) == "contains a timestamp[s] that cannot be read as text"


def test_repeated_column_names_are_numbered_as_in_pandas():
    assert distinct_names(["a", "b", "a", "a.1", "a"]) == ["a", "b", "a.1", "a.1.1", "a.2"]
