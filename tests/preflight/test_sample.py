"""A sample of a data file is spread over the file, and shows whether the rows were counted or estimated."""

import gzip
import json

import pytest
from chat_data import chat_row, write_jsonl

from versatune_ds.preflight import sample
from versatune_ds.preflight.sample import sample_file


@pytest.fixture
def lines(tmp_path):
    return write_jsonl(tmp_path / "law.jsonl", [chat_row(f"question {i:04}", "yes") for i in range(1000)])


def questions(found):
    return [int(json.loads(record.json_text)["messages"][0]["content"].split()[1]) for record in found.records]


def test_a_small_file_is_counted_and_sampled_at_even_distances(lines):
    found = sample_file(lines, num_records=4)
    assert (found.num_rows, found.is_counted, found.is_whole) == (1000, True, False)
    assert questions(found) == [0, 250, 500, 750]


def test_a_file_with_fewer_rows_than_requested_is_sampled_completely(lines):
    found = sample_file(lines, num_records=2000)
    assert found.is_whole
    assert questions(found) == list(range(1000))


def test_a_large_file_of_lines_is_sampled_from_beginning_to_end_and_its_rows_are_estimated(lines, monkeypatch):
    monkeypatch.setattr(sample, "_MAX_WHOLE_BYTES", 100)
    found = sample_file(lines, num_records=10)
    assert (found.is_counted, found.is_whole) == (False, False)
    assert found.num_rows == pytest.approx(1000)
    assert questions(found) == [0, 101, 201, 301, 401, 501, 601, 701, 801, 901]


def test_only_the_beginning_of_a_compressed_file_is_sampled_and_its_rows_are_estimated(lines):
    packed = lines.with_name("law.jsonl.gz")
    packed.write_bytes(gzip.compress(lines.read_bytes()))
    found = sample_file(packed, num_records=10)
    assert not found.is_counted
    assert questions(found) == list(range(10))
