"""A large file of lines is divided without changing one of its records."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from versatune_ds.data.sources import line_ranges
from versatune_ds.data.sources.line_ranges import LineRange, count_lines, has_line_ranges, read_range
from versatune_ds.data.sources.readers import read_records

_BOM = b"\xef\xbb\xbf"
_LINES = st.lists(
    st.sampled_from([b'{"text": "a"}', b"", b"  ", b"\xff", b"caf\xc3\xa9", b"x\r", b"a\rb\x0cc", b"y" * 20]),
    max_size=12,
)


def ranges_of(path, *, num_bytes, start=0):
    return list(line_ranges.line_ranges(path, num_bytes=num_bytes, start=start))


def test_a_range_extends_to_the_end_of_a_line(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"a\nbcd\nef\n")
    assert ranges_of(path, num_bytes=4) == [
        LineRange(start=0, end=6, first_line=1, num_lines=2),
        LineRange(start=6, end=9, first_line=3, num_lines=1),
    ]
    assert ranges_of(path, num_bytes=4, start=6) == [LineRange(start=6, end=9, first_line=3, num_lines=1)]


@settings(max_examples=80)
@given(lines=_LINES, ends_with_newline=st.booleans(), has_bom=st.booleans(), num_bytes=st.integers(1, 40))
@example(lines=[b"", b"a"], ends_with_newline=False, has_bom=True, num_bytes=1)
def test_ranges_have_the_records_of_the_file(lines, ends_with_newline, has_bom, num_bytes):
    with tempfile.TemporaryDirectory() as name:
        for suffix in (".jsonl", ".txt"):
            path = Path(name) / f"a{suffix}"
            path.write_bytes(_BOM * has_bom + b"\n".join(lines) + b"\n" * ends_with_newline)
            ranges = ranges_of(path, num_bytes=num_bytes)
            assert [record for part in ranges for record in read_range(path, part)] == list(read_records(path))
            assert sum(part.num_lines for part in ranges) == count_lines(path)
            for i, part in enumerate(ranges):
                assert ranges_of(path, num_bytes=num_bytes, start=part.start) == ranges[i:]


def test_only_large_files_of_lines_without_compression_are_divided(tmp_path, monkeypatch):
    monkeypatch.setattr(line_ranges, "MIN_BYTES", 3)
    found = {}
    for name, content in {
        "a.jsonl": b"{}\n",
        "b.jsonl": b"{}",
        "c.jsonl.gz": b"xxx",
        "d.json": b"[ ]",
        "e.txt": b"abc",
    }.items():
        (tmp_path / name).write_bytes(content)
        found[name[0]] = has_line_ranges(tmp_path / name)
    assert found == {"a": True, "b": False, "c": False, "d": False, "e": True}


def test_counting_the_lines_of_a_file_in_utf_16_is_an_error(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes("{}".encode("utf-16"))
    with pytest.raises(ValueError, match="UTF-16"):
        count_lines(path)
