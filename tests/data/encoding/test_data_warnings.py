"""Warnings about examples are counted when they are prepared, logged at every start, and read from older summaries."""

from __future__ import annotations

import json
import logging

from chat_data import chat_row, chat_rows, tiny_tokenizer
from model_templates import LAST_REASONING, MISTRAL, NO_REASONING
from prepare_data import prepare_folder, prepare_rows

from versatune_ds.data.encoding.data_warnings import DATA_WARNINGS, cut_share, describe_warnings
from versatune_ds.data.encoding.template_abilities import probe_template
from versatune_ds.data.prepare.one_domain import read_summary

CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": {"a": "b"}}}
CALL_ROW = {
    "messages": [
        {"role": "user", "content": "Go."},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "ok", "tool_call_id": "call_1"},
        {"role": "assistant", "content": "Done."},
    ]
}


def thinking_row(number, *, is_long=False):
    turns = [("Why?", f"<think>I add {number}.</think>So."), ("And?", f"<think>I halve {number}.</think>Thus.")]
    messages = [message for pair in turns for message in chat_row(*pair)["messages"]]
    return {"messages": messages if is_long else messages[:2]}


def template_file(tmp_path, template):
    path = tmp_path / "template.jinja"
    path.write_text(template)
    return path


def test_examples_that_lose_reasoning_are_counted_and_logged_at_every_start(tmp_path, caplog):
    rows = [thinking_row(0), thinking_row(1, is_long=True), thinking_row(2, is_long=True), *chat_rows(3)]
    options = {"chat_template": template_file(tmp_path, LAST_REASONING)}
    counts, _ = prepare_rows(tmp_path, rows, **options)
    assert (counts.num_bad_rows, counts.remarks) == (0, {"reasoning_left_out": 2})
    caplog.clear()
    prepare_folder(tmp_path / "data", **options)
    assert "law: 2 of 7 rows: the chat template leaves the reasoning of earlier assistant turns out" in caplog.text
    assert "make a row of each assistant turn" in caplog.text


def test_an_example_whose_last_turn_loses_its_reasoning_is_a_bad_record(tmp_path):
    options = {"chat_template": template_file(tmp_path, NO_REASONING)}
    counts, _ = prepare_rows(tmp_path, [thinking_row(0), *chat_rows(3)], max_bad_rows=1, **options)
    assert (counts.num_bad_rows, counts.num_examples) == (1, 3)


def test_calls_written_as_text_are_logged_once_with_the_templates_reason(tmp_path, caplog):
    refusing = MISTRAL.replace("length != 9", "length != 10")
    rows = [CALL_ROW, *chat_rows(3)]
    counts, _ = prepare_rows(tmp_path, rows, chat_template=template_file(tmp_path, refusing))
    assert counts.remarks == {"calls_as_text": 1, "results_as_text": 1}
    lines = [record.getMessage() for record in caplog.records if "<tool_call> text" in record.getMessage()]
    (line,) = lines
    assert line.startswith("law: 1 of 5 rows: the chat template prints no tool calls in their form")
    assert "(it says: Tool call IDs should be alphanumeric strings with length 9!)" in line


def test_shortened_ids_are_logged_as_information(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    counts, _ = prepare_rows(tmp_path, [CALL_ROW], chat_template=template_file(tmp_path, MISTRAL))
    assert counts.remarks == {"ids_changed": 1}
    (record,) = [record for record in caplog.records if "ids of tool calls" in record.getMessage()]
    assert record.levelname == "INFO"


def test_control_tokens_are_counted_in_turns_and_in_plain_text(tmp_path):
    rows = [chat_row("a<|end|>b", "c"), {"text": "one<|end|>two"}, {"text": "three"}, *chat_rows(2)]
    counts, shards = prepare_rows(tmp_path, rows)
    assert counts.remarks == {
        "control_as_text": 1, "control_as_text <|end|>": 1, "control_in_text": 1, "control_in_text <|end|>": 1
    }  # fmt: skip
    end = tiny_tokenizer().eos_token_id
    assert [shards.read(i)[0].tolist().count(end) for i in range(3)] == [1, 2, 1]


def test_answers_that_already_end_with_an_end_token_are_counted(tmp_path):
    counts, _ = prepare_rows(tmp_path, [{"prompt": "Why?", "completion": "So.<|end|>\n"}, *chat_rows(2)])
    assert counts.remarks == {"ended_twice": 1, "ended_twice <|end|>": 1}


def test_too_many_tokens_cut_off_are_logged_with_what_to_do(tmp_path, caplog):
    prepare_rows(tmp_path, [chat_row("Why?", "because " * 100), *chat_rows(3)], row_tokens=64)
    assert "% of the tokens cut off; raise data.row_tokens from 64, or set data.long_examples=split" in caplog.text
    caplog.clear()
    prepare_rows(tmp_path, [chat_row("Why?", "because " * 100), *chat_rows(3)], row_tokens=64, long_examples="split")
    assert "cut off" not in caplog.text


def test_the_share_that_is_cut_off_is_relative_to_all_tokens():
    assert cut_share(num_cut_tokens=63, num_kept_tokens=37) == 0.63
    assert cut_share(num_cut_tokens=0, num_kept_tokens=0) == 0


def test_summaries_of_earlier_versions_are_read(tmp_path):
    _, shards = prepare_rows(tmp_path, chat_rows(3))
    folder = shards.folder.parent
    values = json.loads((folder / "summary.json").read_text())
    for row in values["rows"]:
        del row["remarks"]
    (folder / "summary.json").write_text(json.dumps(values))
    assert [row.remarks for row in read_summary(folder).rows] == [{}, {}]


def test_every_warning_completes_a_sentence_that_begins_with_a_count():
    abilities = probe_template(MISTRAL, tokenizer=tiny_tokenizer())
    described = list(describe_warnings(dict.fromkeys(DATA_WARNINGS, 2), num_rows=5, what="rows", abilities=abilities))
    assert len(described) == len(DATA_WARNINGS)
    assert all(found.startswith("2 of 5 rows: ") for found, _ in described)


def test_a_warning_shows_the_control_tokens_that_were_found_and_no_others():
    counts = {"control_in_text": 2, "control_in_text <|end|>": 2}
    abilities = probe_template(MISTRAL, tokenizer=tiny_tokenizer())
    (found, _), *_ = describe_warnings(counts, num_rows=5, what="rows", abilities=abilities)
    assert found.startswith("2 of 5 rows: ")
    assert found.endswith(" (<|end|>)")
