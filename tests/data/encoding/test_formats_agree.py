"""The same records give the same tokens in every file format."""

from __future__ import annotations

import csv
import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chat_data import tiny_tokenizer
from prepare_data import texts_of

from versatune_ds.config import DataConfig
from versatune_ds.data.prepare.domains import prepare_domains


def tool(name, **properties):
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": f"To {name}", "parameters": parameters}}


def called(question, name, **arguments):
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "done"},
        {"role": "assistant", "content": "It is done.", "thinking": "That was easy."},
    ]


CONVERSATIONS = [
    {
        "messages": called("Weather?", "weather", city="Oslo"),
        "tools": [tool("weather", city={"type": "string", "enum": ["Oslo", "Bergen"]})],
    },
    {
        "messages": called("Dates?", "dates", day=3, span={"from": 1, "to": 2.5}),
        "tools": [
            tool("dates", day={"type": "integer", "minimum": 1}, span={"type": "object"}),
            tool("now"),
            {"name": "flat", "description": "To lie", "parameters": {"type": "object"}},
        ],
    },
    {"messages": called("And?", "dates", day=4.5, span={"from": 2})},
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}], "system": "Be kind."},
]
QUESTIONS = [
    {"question": "One?", "context": "It rained.", "answer": 1},
    {"question": "Half?", "context": None, "answer": 0.5},
    {"question": "Three?", "context": "", "answer": 3},
    {"question": "What is NaN?", "context": "nan", "answer": 7},
]


def write_csv(path, rows):
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def filled(rows):
    """Return records that all have all columns, as a table requires."""
    keys = dict.fromkeys(key for row in rows for key in row)
    return [{key: row.get(key) for key in keys} for row in rows]


def write_saved(path, rows):
    datasets.Dataset.from_list(filled(rows)).save_to_disk(path)


def write_arrow(path, rows):
    table = pa.Table.from_pylist(filled(rows))
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def write_parquet(path, rows):
    pq.write_table(pa.Table.from_pylist(filled(rows)), path)


def write_with_nan(path, rows):
    """Write JSON Lines as pandas does: a cell without a value is NaN."""
    lines = [json.dumps({key: float("nan") if value is None else value for key, value in row.items()}) for row in rows]
    path.write_text("\n".join(lines), encoding="utf-8")


WRITERS = {
    "a.jsonl": lambda path, rows: path.write_text("".join(json.dumps(row) + "\n" for row in rows)),
    "a.json": lambda path, rows: path.write_text(json.dumps(rows, indent=1)),
    "nan.jsonl": write_with_nan,
    "a.parquet": write_parquet,
    "a.arrow": write_arrow,
    "saved": write_saved,
    "a.csv": write_csv,
}


def prepared_texts(tmp_path, name, rows):
    path = tmp_path / name
    WRITERS[name](path, rows)
    data = DataConfig(domains={"law": {"train": str(path), "valid": []}}, row_tokens=4096, max_bad_rows=0)
    prepared = prepare_domains(data, tokenizer=tiny_tokenizer(), cache_dir=tmp_path / "cache")
    return texts_of(prepared.train[0])


@pytest.mark.parametrize("name", ["a.json", "nan.jsonl", "a.parquet", "a.arrow", "saved"])
def test_calls_tools_and_reasoning_give_the_same_tokens_in_every_format(tmp_path, name):
    expected = prepared_texts(tmp_path, "a.jsonl", CONVERSATIONS)
    assert "null" not in "".join(expected)
    assert '"day": 3,' in expected[1]
    assert prepared_texts(tmp_path, name, CONVERSATIONS) == expected


@pytest.mark.parametrize("name", ["a.json", "nan.jsonl", "a.parquet", "a.arrow", "saved", "a.csv"])
def test_questions_with_numbers_and_missing_cells_give_the_same_tokens_in_every_format(tmp_path, name):
    expected = prepared_texts(tmp_path, "a.jsonl", QUESTIONS)
    assert expected[0] == "<|begin|><|user|>\nOne?\n\nIt rained.\n<|assistant|>\n1<|end|>\n"
    assert prepared_texts(tmp_path, name, QUESTIONS) == expected
