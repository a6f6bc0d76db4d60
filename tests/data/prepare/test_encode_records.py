"""Each malformed record becomes one bad record with its line, and never stops the preparation."""

from __future__ import annotations

import json

import pytest
from chat_data import CHATML, chat_row, chat_rows, write_jsonl
from prepare_data import prepare_rows

from versatune_ds.config import DataConfig
from versatune_ds.data.encoding.forms import Example
from versatune_ds.data.encoding.tokenizer import train_tokenizer
from versatune_ds.data.prepare.encode_records import content_hash
from versatune_ds.data.sources.domain_files import iter_texts

TURNS = ({"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."})
TOOL = {"type": "function", "function": {"name": "look_up"}}
ITERATING = CHATML.replace(
    "message['content'] +",
    "message['content'] }}{% for call in message['tool_calls'] %}{{ call['function']['name'] }}"
    "{% for key, value in call['function']['arguments'] | items %}{{ key + value }}{% endfor %}{% endfor %}{{",
)


def tool_row(arguments):
    """Return a record whose assistant calls a tool with some arguments."""
    call = {"function": {"name": "look_up", "arguments": arguments}}
    return {"messages": [TURNS[0], {"role": "assistant", "content": "", "tool_calls": [call]}]}


def nested(depth):
    """Return nested lists."""
    value = []
    for _ in range(depth):
        value = [value]
    return value


def bad_lines(shards):
    """Return the lines of the bad rows of a prepared domain."""
    return [json.loads(line)["line"] for line in (shards.folder.parent / "bad_rows.jsonl").read_text().splitlines()]


def test_every_malformed_record_is_one_bad_record_with_its_line(tmp_path):
    odd = [
        {"instruction": "a", "output": "b", "history": 5},
        '{"text": ' + "7" * 5000 + "}",
        "[" * 200_000,
        '{"text": "\\ud83d"}',
    ]
    counts, shards = prepare_rows(tmp_path, [*chat_rows(2), *odd, *chat_rows(1, topic="later")], max_bad_rows=4)
    assert (counts.num_rows, counts.num_bad_rows, counts.num_examples) == (7, 4, 3)
    assert bad_lines(shards) == [3, 4, 5, 6]


def test_arguments_that_a_template_cannot_iterate_make_one_bad_record(tmp_path):
    (tmp_path / "iterating.jinja").write_text(ITERATING)
    rows = [tool_row({"word": "tort"}), tool_row(5), tool_row(["tort"]), tool_row({"word": 5})]
    counts, shards = prepare_rows(tmp_path, rows, max_bad_rows=3, chat_template=tmp_path / "iterating.jinja")
    assert (counts.num_rows, counts.num_bad_rows, counts.num_examples) == (4, 3, 1)
    assert bad_lines(shards) == [2, 3, 4]


def test_arguments_nested_at_any_depth_do_not_stop_the_preparation(tmp_path):
    rows = [chat_row("a", "b"), *(json.dumps(tool_row({"word": nested(depth)})) for depth in range(10, 900, 50))]
    counts, _ = prepare_rows(tmp_path, rows, max_bad_rows=len(rows))
    assert counts.num_rows == len(rows)
    assert counts.num_examples + counts.num_bad_rows + counts.num_without_loss + counts.num_duplicates == len(rows)


def test_half_a_surrogate_pair_is_skipped_when_a_tokenizer_is_trained(tmp_path):
    half = '{"question": "why", "answer": "\\ud83d"}'
    write_jsonl(tmp_path / "data" / "train" / "law.jsonl", [chat_row("a", "b"), half, "[" * 200_000, {"text": "c"}])
    texts = list(iter_texts(DataConfig(folder=tmp_path / "data"), cache_dir=tmp_path / "cache"))
    assert texts == ["a", "b", "why", "c"]
    assert len(train_tokenizer(texts, vocab_size=300, folder=tmp_path / "tokenizer")) > 256


def test_examples_that_differ_in_tools_or_reasoning_are_not_duplicates():
    reasoned = (TURNS[0], {**TURNS[1], "reasoning_content": "I think."})
    rows = [
        Example(turns=TURNS),
        Example(turns=TURNS, tools=(TOOL,)),
        Example(turns=TURNS, tools=(TOOL, TOOL)),
        Example(turns=reasoned),
        Example(turns=(TURNS[0], {**reasoned[1], "reasoning_content": "I guess."})),
    ]
    assert len({content_hash(row) for row in rows}) == len(rows)


@pytest.mark.parametrize("answer", ["because.", " Because. "])
def test_examples_that_differ_only_in_white_space_and_letter_case_are_duplicates(answer):
    assert content_hash(Example(turns=(TURNS[0], {**TURNS[1], "content": answer}))) == content_hash(
        Example(turns=TURNS)
    )
