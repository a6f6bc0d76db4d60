"""Every file format yields its records with their lines, whatever tool wrote the file."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from versatune_ds.data.encoding.forms import Example, parse_example
from versatune_ds.data.encoding.turns import BadRowError
from versatune_ds.data.sources import json_files
from versatune_ds.data.sources.readers import format_of, read_records

ROWS = [
    {"question": "1 + 1?", "answer": "2"},
    {"question": 'Größe,\n"wie"?', "answer": "groß"},
    {"question": "c", "answer": "d"},
]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def records_of(path):
    """Return (line, parsed record) of a file's good records."""
    return [(record.line, json.loads(record.json_text)) for record in read_records(path) if not record.problem]


def write(path, content):
    data = content if isinstance(content, bytes) else content.encode()
    if path.suffix == ".gz":
        data = gzip.compress(data)
    if path.suffix == ".zst":
        with pa.output_stream(str(path), compression="zstd") as stream:
            stream.write(data)
        return path
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.JSONL", "a.b.jsonl.gz", "a.jsonl.zst", "a.json"])
def test_json_lines_are_read_plain_and_compressed(tmp_path, name):
    assert records_of(write(tmp_path / name, LINES)) == list(enumerate(ROWS, start=1))


def test_byte_order_mark_windows_line_ends_and_blank_lines_do_not_matter(tmp_path):
    text = "\ufeff" + LINES.replace("\n", "\r\n\r\n", 1).replace("}\n", "}\r\n") + "\r\n  \r\n"
    assert [line for line, _ in records_of(write(tmp_path / "a.jsonl", text))] == [1, 3, 4]
    assert [row for _, row in records_of(tmp_path / "a.jsonl")] == ROWS


@pytest.mark.parametrize("num_characters", [1, 7, 64, 1 << 16])
@pytest.mark.parametrize("indent", [None, 4])
def test_an_array_is_read_in_blocks_of_any_size(tmp_path, monkeypatch, num_characters, indent):
    monkeypatch.setattr(json_files, "_CHARACTERS_PER_READ", num_characters)
    path = write(tmp_path / "a.json", "\n" + json.dumps(ROWS, indent=indent))
    assert [row for _, row in records_of(path)] == ROWS
    assert [line for line, _ in records_of(path)] == ([2, 2, 2] if indent is None else [3, 7, 11])


def test_an_element_that_spans_two_blocks_is_one_record(tmp_path, monkeypatch):
    monkeypatch.setattr(json_files, "_CHARACTERS_PER_READ", 1)
    assert [row for _, row in records_of(write(tmp_path / "a.json", "[1234, 5678]"))] == [1234, 5678]


@pytest.mark.parametrize(
    "value",
    [{str(i): row for i, row in enumerate(ROWS)}, {"version": 1, "data": ROWS}],
    ids=["dict of dicts", "list under a key"],
)
def test_the_values_of_an_object_of_records_are_records(tmp_path, value):
    assert records_of(write(tmp_path / "a.json", json.dumps(value, indent=1))) == list(enumerate(ROWS, start=1))


def test_an_object_that_is_one_conversation_is_one_record(tmp_path):
    row = {"messages": [{"role": "user", "content": "a"}]}
    assert records_of(write(tmp_path / "a.json", json.dumps(row, indent=1))) == [(1, row)]


def test_an_array_of_a_hundred_thousand_elements_keeps_memory_small(tmp_path):
    path = write(tmp_path / "a.json", json.dumps([{"text": "x" * 100, "id": i} for i in range(20_000)]))
    import tracemalloc

    tracemalloc.start()
    num_records = sum(1 for _ in read_records(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert num_records == 20_000
    assert peak < path.stat().st_size / 2


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz"])
def test_tables_keep_quoted_line_ends_and_count_lines(tmp_path, name):
    plain = tmp_path / "plain"
    with plain.open("w", newline="", encoding="utf-8-sig") as stream:
        writer = csv.DictWriter(stream, ["question", "answer"], delimiter="\t" if "tsv" in name else ",")
        writer.writeheader()
        writer.writerows(ROWS)
    path = write(tmp_path / name, plain.read_bytes())
    assert records_of(path) == [(2, ROWS[0]), (3, ROWS[1]), (5, ROWS[2])]


def test_a_table_line_with_too_many_cells_is_a_problem_of_that_line(tmp_path):
    path = write(tmp_path / "a.csv", "question,answer\na,b\nc,d,e,f\n")
    assert [(record.line, record.problem) for record in read_records(path)] == [
        (2, ""),
        (3, "2 more cells than the header"),
    ]


def test_cells_longer_than_the_csv_default_are_read(tmp_path):
    path = write(tmp_path / "a.csv", "text\n" + "x" * 200_000 + "\n")
    assert len(records_of(path)[0][1]["text"]) == 200_000


def test_text_files_give_one_record_per_line(tmp_path):
    path = write(tmp_path / "a.txt", "one\n\ntwo\r\n")
    assert records_of(path) == [(1, {"text": "one"}), (3, {"text": "two"})]


def test_parquet_and_both_kinds_of_arrow_files_are_read(tmp_path):
    rows = [{**row, "turns": [{"role": "user", "content": None}]} for row in ROWS]
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    with pa.OSFile(str(tmp_path / "file.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    with pa.OSFile(str(tmp_path / "stream.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    for name in ("a.parquet", "file.arrow", "stream.arrow"):
        assert records_of(tmp_path / name) == list(enumerate(rows, start=1))


def test_a_line_that_is_not_utf8_is_a_problem_of_that_line(tmp_path):
    path = write(tmp_path / "a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n{"text": "b"}\n')
    problems = [(record.line, record.problem) for record in read_records(path)]
    assert [line for line, problem in problems if problem] == [2]
    assert "not UTF-8 text" in problems[1][1]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl", '{"text": "a"}'.encode("utf-16"), "encoded as UTF-16; convert it to UTF-8"),
        ("a.json", b'[{"text": "a"}, {"text": ', r":1: not valid JSON, or the array is not closed"),
        ("a.json", b'[{"text": "a"},\n {"text" "b"}]', r":2: not valid JSON"),
        ("a.json", b'{"text": ', "not valid JSON"),
        ("a.parquet", b"no parquet", "cannot be read"),
        ("a.arrow", b"no arrow", "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_read_is_an_error_with_its_path(tmp_path, name, content, reason):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=reason) as caught:
        list(read_records(path))
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_a_truncated_compressed_file_is_an_error_with_its_path(tmp_path, name):
    path = write(tmp_path / name, "".join(json.dumps({"text": str(i) * 50}) + "\n" for i in range(2000)))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match="cannot be read"):
        list(read_records(path))


@pytest.mark.parametrize(
    ("name", "suffix"), [("a.jsonl.gz", ".jsonl"), ("a.v1.CSV", ".csv"), ("a.md", None), ("gz", None)]
)
def test_the_format_is_the_suffix_before_that_of_the_compression(name, suffix):
    assert format_of(Path(name)) == suffix


@pytest.mark.parametrize("num_characters", [1, 16, 1 << 16])
def test_text_after_an_array_is_refused(tmp_path, monkeypatch, num_characters):
    monkeypatch.setattr(json_files, "_CHARACTERS_PER_READ", num_characters)
    path = write(tmp_path / "a.json", '[{"text": "a"}]\n[{"text": "b"}]')
    with pytest.raises(ValueError, match=r"a.json:1: the array ends here, but '\[.* follows"):
        list(read_records(path))
    assert records_of(write(tmp_path / "b.json", '[{"text": "a"}]\n \n')) == [(1, {"text": "a"})]


def test_a_quote_that_is_never_closed_is_an_error(tmp_path):
    path = write(tmp_path / "a.csv", 'question,answer\na,b\nc,"d\ne,f\ng,h\n')
    with pytest.raises(ValueError, match=r"a.csv:3: a quote in this row is never closed"):
        list(read_records(path))


def test_a_quote_closed_within_a_cell_is_a_problem_of_its_line(tmp_path):
    path = write(tmp_path / "a.csv", 'question,answer\na,b\n"c"d,e\nf,g\nh\n')
    found = [(record.line, bool(record.problem)) for record in read_records(path)]
    assert found == [(2, False), (3, True), (4, False), (5, False)]
    assert records_of(path)[-1] == (5, {"question": "h", "answer": None})


def test_text_files_keep_their_indentation(tmp_path):
    path = write(tmp_path / "a.txt", "def f():\n    return 1 \r\n\t\n")
    assert records_of(path) == [(1, {"text": "def f():"}), (2, {"text": "    return 1 "})]


def test_a_corrupt_compressed_file_is_an_error_with_its_path(tmp_path):
    path = write(tmp_path / "a.jsonl.gz", LINES * 50)
    content = bytearray(path.read_bytes())
    content[10] = 0x07  # a block type that deflate does not have
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a.jsonl.gz: cannot be read: .*invalid block type"):
        list(read_records(path))


def test_binary_columns_are_decoded_and_nan_becomes_none(tmp_path):
    rows = [{"text": b"hello", "note": float("nan"), "turns": [b"hi"]}, {"text": b"\xff", "note": 1.0, "turns": []}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    good, bad = read_records(tmp_path / "a.parquet")
    assert json.loads(good.json_text) == {"text": "hello", "note": None, "turns": ["hi"]}
    with pytest.raises(BadRowError, match=r"^not UTF-8 text \(invalid start byte at byte 1\)$"):
        parse_example(bad.json_text)


def test_binary_in_a_column_that_is_not_used_is_ignored(tmp_path):
    pq.write_table(pa.table({"text": ["a photo"], "image": [b"\xff\xd8\xff"]}), tmp_path / "a.parquet")
    (record,) = read_records(tmp_path / "a.parquet")
    assert parse_example(record.json_text) == Example(text="a photo")


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_the_second_of_two_columns_with_one_name_gets_a_number(tmp_path, name):
    path = write(tmp_path / name, "text,text\na,b\n")
    if name == "a.parquet":
        columns = pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
        pq.write_table(columns, path)
    assert records_of(path)[0][1] == {"text": "a", "text.1": "b"}


def test_cells_of_a_table_stay_text(tmp_path):
    path = write(tmp_path / "a.csv", "question,input,answer\nWhat is None in JSON?,,null\nand 0/0?,NA,nan\n")
    first, second = (parse_example(record.json_text).turns for record in read_records(path))
    assert [turn["content"] for turn in first] == ["What is None in JSON?", "null"]
    assert [turn["content"] for turn in second] == ["and 0/0?\n\nNA", "nan"]


@pytest.mark.parametrize("start", ["[", "", '{"data": ['])
def test_numbers_of_any_length_are_read_from_a_json_file(tmp_path, start):
    row = '{"text": "a", "id": ' + "7" * 5000 + "}"
    content = {"[": f"[{row}]", "": f"{row}\n{row}\n", '{"data": [': '{"data": [' + row + "]}"}[start]
    records = list(read_records(write(tmp_path / "a.json", content)))
    assert {parse_example(record.json_text).text for record in records} == {"a"}


@pytest.mark.parametrize("content", ["[" * 200_000, '{"a": ' * 200_000])
def test_a_json_file_nested_too_deeply_is_an_error_with_its_path(tmp_path, content):
    with pytest.raises(ValueError, match=r"a.json.*(nested too deeply|not valid JSON)"):
        list(read_records(write(tmp_path / "a.json", content)))


def test_a_json_file_of_one_question_with_tools_is_one_record(tmp_path):
    row = {"prompt": "Why?", "completion": "Because.", "tools": [{"name": "f"}]}
    assert records_of(write(tmp_path / "a.json", json.dumps(row, indent=1))) == [(1, row)]


def test_json_lines_named_json_may_begin_with_a_long_line(tmp_path):
    rows = [{"text": "x" * 100_000}, {"text": "b"}]
    path = write(tmp_path / "a.json", "\n" + "".join(json.dumps(row) + "\n" for row in rows))
    assert records_of(path) == [(2, rows[0]), (3, rows[1])]


def test_the_column_without_a_name_that_pandas_writes_is_dropped(tmp_path):
    assert records_of(write(tmp_path / "a.csv", ",text\n0,a\n1,b\n")) == [(2, {"text": "a"}), (3, {"text": "b"})]
