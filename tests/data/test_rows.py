"""Every form of row that users bring becomes turns or text; what cannot be trained on says why."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from versatune_ds.data.rows import Row, parse_row
from versatune_ds.data.turns import BadRowError

USER, ASSISTANT = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}
CALL = {"name": "look_up", "arguments": {"word": "tort"}}
TOOL = {"name": "look_up", "description": "Find a word", "parameters": {"type": "object"}}


def parse(record, **options):
    return parse_row(json.dumps(record), **options)


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [USER, ASSISTANT]},
        {"messages": [{"role": "User", "content": "Why?"}, {"role": "model", "content": "Because."}]},
        {"messages": json.dumps([USER, ASSISTANT])},
        {"messages": [json.dumps(USER), json.dumps(ASSISTANT)]},
        {"messages": [{**USER, "content": [{"type": "text", "text": "Why?"}]}, ASSISTANT]},
        {"messages": [{**USER, "content": [{"type": "text", "value": "Wh"}, "y?"]}, ASSISTANT]},
        {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]},
        {"instruction": "Why?", "input": "", "output": "Because."},
        {"instruction": "Why?", "input": None, "response": "Because."},
        {"instruction": "Why?", "context": "", "response": "Because.", "category": "open_qa"},
        {"prompt": "Why?", "completion": "Because."},
        {"question": "Why?", "answer": "Because."},
        {"QUESTION": "Why?", "LONG_ANSWER": "Because.", "final_decision": "yes"},
    ],
    ids=lambda record: "-".join(record),
)
def test_every_form_gives_the_same_two_turns(record):
    assert parse(record).turns == (USER, ASSISTANT)


def test_a_context_follows_the_question_after_a_blank_line():
    row = parse({"instruction": "Name the verbs.", "input": "He ran.", "output": "ran"})
    assert row.turns[0]["content"] == "Name the verbs.\n\nHe ran."
    row = parse({"question": "Does it help?", "contexts": ["One.", "Two."], "long_answer": "Yes."})
    assert row.turns[0]["content"] == "Does it help?\n\nOne.\n\nTwo."


def test_plain_text_stays_text():
    row = parse({"text": " Once.\n", "url": "x"})
    assert (row.text, row.turns) == (" Once.\n", ())


def test_system_text_and_earlier_turns_lead_the_question():
    row = parse({"system": "Be kind.", "history": [["Hi", "Hello"]], "instruction": "Why?", "output": "Because."})
    assert [turn["role"] for turn in row.turns] == ["system", "user", "assistant", "user", "assistant"]
    assert [turn["content"] for turn in row.turns][:3] == ["Be kind.", "Hi", "Hello"]


def test_sharegpt_tool_calls_become_calls_with_arguments():
    conversation = [
        {"from": "human", "value": "What is a tort?"},
        {"from": "function_call", "value": json.dumps(CALL)},
        {"from": "observation", "value": "A wrong."},
        {"from": "gpt", "value": "A wrong."},
    ]
    row = parse({"conversations": conversation, "tools": json.dumps([TOOL])})
    assert [turn["role"] for turn in row.turns] == ["user", "assistant", "tool", "assistant"]
    assert row.turns[1]["tool_calls"] == [{"type": "function", "function": CALL}]
    assert row.tools == ({"type": "function", "function": TOOL},)


def test_openai_tool_calls_with_arguments_as_text_become_the_same():
    call = {"id": "1", "type": "function", "function": {**CALL, "arguments": json.dumps(CALL["arguments"])}}
    row = parse({"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [call]}]})
    assert row.turns[1] == {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "1", "type": "function", "function": CALL}],
    }


def test_weights_of_zero_take_a_turn_out_of_the_loss():
    row = parse(
        {"messages": [{**USER, "loss_weight": 0.0}, {**ASSISTANT, "weight": 0}, USER, {**ASSISTANT, "weight": 1}]}
    )
    assert [turn.get("loss", True) for turn in row.turns] == [False, False, True, True]


def test_only_the_completion_of_a_conversational_pair_bears_loss():
    row = parse({"prompt": [USER, ASSISTANT, USER], "completion": [ASSISTANT]})
    assert [turn.get("loss", True) for turn in row.turns] == [False, False, False, True]


def test_columns_say_which_is_which():
    row = parse({"Frage": "Why?", "Antwort": "Because."}, columns={"prompt": "Frage", "answer": "Antwort"})
    assert row.turns == (USER, ASSISTANT)
    assert parse({"body": "Once."}, columns={"text": "body"}).text == "Once."
    assert parse({"talk": [USER, ASSISTANT]}, columns={"messages": "talk"}).turns == (USER, ASSISTANT)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference pair .* not for supervised fine-tuning"),
        ({"question": "a", "choices": ["b", "c"], "answer": 1}, "multiple-choice question: made for evaluation"),
        ({"title": "a", "body": "b"}, "form not recognised; columns: title, body; say which is which with `columns`"),
        ({}, "form not recognised; columns: none"),
        ([1, 2], "expected an object with named columns, found list"),
        ({"messages": []}, "messages: expected a list with at least one message"),
        ({"messages": [USER]}, "no assistant turn, so nothing to learn"),
        ({"messages": [USER, {"role": "wizard", "content": "x"}]}, "turn 2: unknown role 'wizard'"),
        ({"messages": [USER, {"role": "assistant", "content": " "}]}, r"turn 2 \(assistant\) is empty"),
        ({"messages": [{**USER, "content": [{"type": "image"}]}, ASSISTANT]}, "holds image content; only text"),
        ({"messages": [USER, {**ASSISTANT, "weight": 0.5}]}, "turn 2: weight 0.5; only 0 and 1 are known"),
        ({"conversations": [{"from": "function_call", "value": "x("}]}, r"turn 1 \(tool call\): expected JSON"),
        ({"instruction": "a", "output": ""}, "the answer is empty"),
        ({"instruction": " ", "output": "a"}, "the prompt is empty"),
        ({"question": "a", "answer": {"b": 1}}, "answer: expected text, found dict"),
        ({"text": " \n"}, "text is empty"),
        ({"instruction": "a", "output": "b", "history": 5}, r"history: expected a list of \[question, answer\] pairs"),
        ({"instruction": "a", "output": "b", "history": {"a": "b"}}, "history: expected a list of"),
        ({"messages": "[" * 200_000}, "messages: expected JSON"),
    ],
)
def test_a_row_that_cannot_be_trained_on_says_why(record, reason):
    with pytest.raises(BadRowError, match=reason):
        parse(record)


def test_broken_json_and_a_missing_column_say_so():
    with pytest.raises(BadRowError, match="not valid JSON"):
        parse_row('{"messages": [')
    with pytest.raises(BadRowError, match="no column 'Antwort'; columns: Frage"):
        parse({"Frage": "Why?"}, columns={"prompt": "Frage", "answer": "Antwort"})


@pytest.mark.parametrize(
    ("record_json", "reason"),
    [
        ('{"text": ' + "7" * 5000 + "}", "^holds a number with too many digits; write it as text$"),
        ("[" * 200_000, "^nested too deep to be read$"),
        ('{"text": ' * 200_000, "^nested too deep to be read$"),
    ],
    ids=["digits", "lists", "objects"],
)
def test_json_that_python_cannot_hold_is_a_bad_row(record_json, reason):
    with pytest.raises(BadRowError, match=reason):
        parse_row(record_json)


_WORDS = st.sampled_from(["", "user", "assistant", "tool_call", "Why?", "{", "[]", '{"name": "f"}'])
_TURN_KEYS = ["role", "from", "content", "value", "text", "weight", "tool_calls", "function_call", "reasoning_content"]
_CALL_KEYS = ["type", "function", "name", "arguments"]
_ROW_KEYS = ["messages", "conversations", "instruction", "input", "output", "prompt", "completion"]
_KEYS = st.sampled_from([*_TURN_KEYS, *_CALL_KEYS, *_ROW_KEYS, "history", "system", "tools"])
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(_KEYS, _VALUES, max_size=5))
def test_any_record_becomes_a_row_or_a_bad_row(record):
    with contextlib.suppress(BadRowError):
        assert isinstance(parse(record), Row)
