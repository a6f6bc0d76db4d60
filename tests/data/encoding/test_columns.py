"""Columns whose text is in no turn are listed by name: text separately from labels, which only describe the record."""

from __future__ import annotations

import json

import pytest

from versatune_ds.data.encoding.columns import Columns, UnreadColumn, UnreadCounter, describe_labels, describe_text
from versatune_ds.data.encoding.forms import parse_example

QUESTION = {"question": "Why?", "answer": "Because."}
USER, ASSISTANT = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}


def unread(record):
    row = parse_example(json.dumps(record))
    return row.unread, row.unread_labels


def test_columns_with_text_and_columns_with_labels_are_listed_separately():
    record = {
        "id": "a-1",
        "Explanation": "It is so.",
        **QUESTION,
        "source_url": "http://x.org/a b",
        "subject": "physics",
    }
    assert unread(record) == (("Explanation",), ("id", "source_url", "subject"))


@pytest.mark.parametrize("value", [None, "", "  ", 7, 0.5, "12.5", True, "false", "nan", [], {}, [None], {"n": 3}])
def test_a_column_without_text_is_not_listed(value):
    assert unread({**QUESTION, "hint": value}) == ((), ())


@pytest.mark.parametrize("value", ["two words", ["two words"], {"a": [{"b": "two words"}]}, "你好", "x" * 60])
def test_text_is_found_at_any_depth(value):
    assert unread({**QUESTION, "hint": value}) == (("hint",), ())


def test_a_single_word_counts_as_a_label():
    assert unread({**QUESTION, "hint": "law"}) == ((), ("hint",))


def test_a_second_question_context_or_system_text_is_listed():
    record = {"instruction": "Answer briefly.", "question": "How old?", "output": "Nine.", "answer": "It is 9 years."}
    assert unread(record) == (("question", "answer"), ())
    assert unread({**QUESTION, "context": "It rained.", "passage": "It snowed."}) == (("passage",), ())
    system = {"role": "system", "content": "Be kind."}
    assert unread({"messages": [system, USER, ASSISTANT], "system": "Be very brief."}) == (("system",), ())
    assert unread({"text": "Once.", "summary": "It was once."}) == (("summary",), ())


def test_a_column_that_repeats_the_examples_texts_is_not_listed():
    assert unread({"messages": [USER, ASSISTANT], "prompt": "Why?"}) == ((), ())
    rendered = "Below is an instruction.\n\n### Instruction:\nDo it.\n\n### Input:\nNow.\n\n### Response:\nDone."
    assert unread({"instruction": "Do it.", "input": "Now.", "output": "Done.", "text": rendered}) == ((), ())


def test_unread_keys_of_messages_and_of_their_parts_are_listed():
    noted = {**USER, "note": "said with a smile", "lang": "en"}
    assert unread({"messages": [noted, ASSISTANT]}) == (("messages[].note",), ("messages[].lang",))
    part = {"type": "text", "text": "Why?", "caption": "a bold question"}
    assert unread({"messages": [{**USER, "content": [part]}, ASSISTANT]}) == (("messages[].content[].caption",), ())
    assert unread({"messages": [{**USER, "value": "And how?"}, ASSISTANT]}) == (("messages[].value",), ())
    assert unread({"messages": [{**USER, "thinking": "I wonder."}, ASSISTANT]}) == (("messages[].thinking",), ())
    pair = {"prompt": [noted], "completion": [ASSISTANT]}
    assert unread(pair) == (("messages[].note",), ("messages[].lang",))


def test_a_verdict_of_zero_is_listed_although_it_is_not_text():
    assert unread({**QUESTION, "label": 0}) == (("label",), ())
    assert unread({**QUESTION, "is_correct": False}) == (("is_correct",), ())
    assert unread({**QUESTION, "label": 1, "correct": True}) == ((), ())


def test_two_columns_that_differ_in_case_do_not_hide_each_other():
    columns = Columns({"Question": "Who are you?", "question": "Why?", "ANSWER": "Because."})
    assert (columns.take("question"), columns.take("answer")) == ("Why?", "Because.")
    assert columns.unread([]) == (["Question"], [])


def test_unread_columns_are_counted_with_the_place_of_the_first():
    counter = UnreadCounter()
    for line in (3, 5):
        counter.add(["hint"], is_label=False, place=f"a.jsonl:{line}")
    counter.add(["id", "hint"], is_label=True, place="a.jsonl:7")
    hint, name = counter.columns()
    assert hint == UnreadColumn(name="hint", num_rows=3, place="a.jsonl:3", is_label=False)
    assert name == UnreadColumn(name="id", num_rows=1, place="a.jsonl:7", is_label=True)
    assert describe_text([hint, name]) == "hint (3 rows, first a.jsonl:3)"
    assert describe_labels([hint, name]) == "id"


def test_long_lists_are_shortened_and_control_characters_escaped():
    columns = [UnreadColumn(name=f"c{i}", num_rows=1, place="a:1", is_label=True) for i in range(15)]
    assert describe_labels(columns).endswith("c11 and 3 more")
    evil = UnreadColumn(name="\x1b[2J" + "x" * 100, num_rows=1, place="a:1", is_label=True)
    assert describe_labels([evil]) == "\\x1b[2J" + "x" * 53 + "..."
    assert describe_text(columns) == ""
