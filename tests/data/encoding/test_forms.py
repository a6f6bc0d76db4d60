"""Every known form of record becomes turns or text; a record that cannot be trained on is refused with the reason."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from versatune_ds.data.encoding.forms import Example, parse_example
from versatune_ds.data.encoding.turns import BadRowError

USER, ASSISTANT = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}
CALL = {"name": "look_up", "arguments": {"word": "tort"}}
TOOL = {"name": "look_up", "description": "Find a word", "parameters": {"type": "object"}}


def parse(record, **options):
    return parse_example(json.dumps(record), **options)


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


def test_plain_text_stays_unchanged():
    row = parse({"text": " Once.\n", "url": "x"})
    assert (row.text, row.turns) == (" Once.\n", ())


def test_system_text_and_earlier_turns_come_before_the_question():
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


def test_a_turn_with_weight_zero_bears_no_loss():
    row = parse(
        {"messages": [{**USER, "loss_weight": 0.0}, {**ASSISTANT, "weight": 0}, USER, {**ASSISTANT, "weight": 1}]}
    )
    assert [turn.get("loss", True) for turn in row.turns] == [False, False, True, True]


def test_only_the_completion_of_a_conversational_pair_bears_loss():
    row = parse({"prompt": [USER, ASSISTANT, USER], "completion": [ASSISTANT]})
    assert [turn.get("loss", True) for turn in row.turns] == [False, False, False, True]


def test_columns_of_a_recipe_decide_what_is_question_and_answer():
    row = parse({"Frage": "Why?", "Antwort": "Because."}, columns={"prompt": "Frage", "answer": "Antwort"})
    assert row.turns == (USER, ASSISTANT)
    assert parse({"body": "Once."}, columns={"text": "body"}).text == "Once."
    assert parse({"talk": [USER, ASSISTANT]}, columns={"messages": "talk"}).turns == (USER, ASSISTANT)


@pytest.mark.parametrize("nothing", ["NaN", "Infinity", "-Infinity", "1e999", "null", '""'])
def test_nan_and_infinity_count_as_missing_like_null_and_empty_text(nothing):
    row = parse_example('{"instruction": "Why?", "input": ' + nothing + ', "output": "Because."}')
    assert row.turns == (USER, ASSISTANT)
    with pytest.raises(BadRowError, match=r"^the answer is empty$"):
        parse_example('{"instruction": "Why?", "output": ' + nothing + "}")
    with pytest.raises(BadRowError, match=r"^turn 2 \(assistant\) is empty$"):
        parse_example(
            '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ' + nothing + "}]}"
        )


def test_nan_within_texts_and_calls_counts_as_missing():
    assert parse({"question": "Why?", "contexts": ["One.", float("nan")], "answer": "x"}).turns[0]["content"] == (
        "Why?\n\nOne."
    )
    call = {"name": "f", "arguments": {"x": float("nan"), "y": [1, {"z": float("inf")}]}}
    (turn,) = parse({"messages": [{"role": "assistant", "tool_calls": [call]}]}).turns
    assert turn["tool_calls"][0]["function"]["arguments"] == {"y": [1, {}]}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3"),
        (3.0, "3"),
        (2.5, "2.5"),
        (-0.0, "0"),
        (1e22, "1e+22"),
        (True, "True"),
        (False, "False"),
        ("nan", "nan"),
    ],
)
def test_scalars_become_text(value, text):
    assert parse({"question": "Why?", "answer": value}).turns[1]["content"] == text


@pytest.mark.parametrize("key", ["system", "system_prompt", "System_Message", "sys"])
def test_the_system_text_is_read_under_its_usual_names(key):
    for record in ({"question": "Why?", "response": "Because."}, {"messages": [USER, ASSISTANT]}):
        row = parse({key: "Be kind.", **record})
        assert row.turns == ({"role": "system", "content": "Be kind."}, USER, ASSISTANT)
        assert row.unread == row.unread_labels == ()
    pair = parse({key: "Be kind.", "prompt": [USER], "completion": [ASSISTANT]})
    assert pair.turns[0]["content"] == "Be kind."


def test_a_passage_is_a_context():
    row = parse({"question": "Is 4 even?", "passage": "4 leaves 0 when halved.", "answer": True})
    assert [turn["content"] for turn in row.turns] == ["Is 4 even?\n\n4 leaves 0 when halved.", "True"]
    both = parse({"question": "Why?", "input": "", "context": "It rained.", "answer": "x"})
    assert both.turns[0]["content"] == "Why?\n\nIt rained."


@pytest.mark.parametrize(
    "key", ["Complex_CoT", "cot", "chain_of_thought", "thinking", "reasoning", "reasoning_content"]
)
def test_reasoning_in_a_column_belongs_to_the_assistants_turn(key):
    reasoned = {**ASSISTANT, "reasoning_content": "Let me think."}
    for record in ({"Question": "Why?", "Response": "Because."}, {"messages": [USER, ASSISTANT]}):
        row = parse({**record, key: "Let me think."})
        assert row.turns == (USER, reasoned)
        assert row.unread == ()


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking", "thought", "thoughts"])
def test_reasoning_within_a_message_is_read_under_its_usual_names(key):
    row = parse({"messages": [USER, {**ASSISTANT, key: "Let me think."}]})
    assert row.turns == (USER, {**ASSISTANT, "reasoning_content": "Let me think."})
    assert row.unread == ()


def test_thinking_parts_before_the_text_are_reasoning():
    parts = [
        {"type": "thinking", "thinking": "Let me think.", "signature": "Er8B"},
        {"type": "text", "text": "Because."},
    ]
    row = parse({"messages": [USER, {"role": "assistant", "content": parts}]})
    assert row.turns == (USER, {**ASSISTANT, "reasoning_content": "Let me think."})
    inner = [{"type": "thinking", "thinking": [{"type": "text", "text": "Let me think."}]}, parts[1]]
    assert parse({"messages": [USER, {"role": "assistant", "content": inner}]}).turns == row.turns
    for bad in ([parts[1], parts[0]], [{"type": "redacted_thinking", "data": "x"}, parts[1]]):
        with pytest.raises(BadRowError, match=r"turn 2 \(assistant\) has (redacted_)?thinking content; only text"):
            parse({"messages": [USER, {"role": "assistant", "content": bad}]})


@pytest.mark.parametrize("value", ["on", "off", "High", True, 1, {"effort": "low"}])
def test_a_switch_that_asks_for_reasoning_is_not_reasoning(value):
    assert parse({"messages": [USER, ASSISTANT], "reasoning": value}).turns == (USER, ASSISTANT)
    assert parse({"question": "Why?", "thinking": value, "answer": "Because."}).turns == (USER, ASSISTANT)
    assert parse({"messages": [USER, {**ASSISTANT, "thinking": value}]}).turns == (USER, ASSISTANT)


def test_reasoning_repeated_in_the_answer_is_not_written_twice():
    answer = "<think>\nLet me think.\n</think>\n\nBecause."
    row = parse({"question": "Why?", "answer": answer, "reasoning": "Let me think."})
    assert row.turns[1] == {"role": "assistant", "content": answer}
    row = parse({"question": "Why?", "answer": "Because.", "reasoning": "Because"})
    assert row.turns[1]["reasoning_content"] == "Because"


def test_reasoning_that_could_belong_to_several_turns_is_listed_as_unread():
    row = parse({"messages": [USER, ASSISTANT, USER, ASSISTANT], "cot": "Let me think."})
    assert all("reasoning_content" not in turn for turn in row.turns)
    assert row.unread == ("cot",)
    row = parse({"history": [["Hi", "Hello"]], "question": "Why?", "answer": "Because.", "cot": "Let me think."})
    assert [turn.get("reasoning_content") for turn in row.turns] == [None, None, None, "Let me think."]


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "Why?", "completion": "No.", "label": False},
        {"prompt": "Why?", "completion": "No.", "label": "False"},
        {"prompt": "Why?", "completion": "No.", "label": "rejected"},
        {"prompt": "Why?", "completion": "No.", "accepted": False},
        {"prompt": "Why?", "completion": "No.", "label": 0},
        {"prompt": [USER], "completion": [ASSISTANT], "label": False},
        {"messages": [USER, ASSISTANT], "label": False},
        {"conversations": [USER, ASSISTANT], "kto_tag": False},
        {"question": "Why?", "answer": "No.", "chosen": False},
    ],
    ids=lambda record: "-".join(record),
)
def test_an_answer_marked_as_bad_is_refused(record):
    refused = r"^rejected answer \((label|kto_tag|chosen|accepted): .*KTO .*not for supervised"
    with pytest.raises(BadRowError, match=refused):
        parse(record)


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "Why?", "completion": "Because.", "label": True},
        {"prompt": "Why?", "completion": "Because.", "label": 1},
        {"question": "Why?", "answer": "Because.", "label": 0},
        {"question": "Why?", "answer": "Because.", "label": "law"},
        {"question": "Why?", "answer": "Because.", "label": None},
    ],
)
def test_good_answers_and_class_labels_are_not_refused(record):
    assert parse(record).turns == (USER, ASSISTANT)
    assert parse({"text": "Once.", "label": False}).text == "Once."


def test_null_keys_and_integers_of_calls_and_tools_are_the_same_in_every_format():
    call = {
        "name": "f",
        "arguments": {"city": "Oslo", "day": None, "at": {"hour": 3.0, "zone": None}, "or": [1.5, None]},
    }
    tool = {"name": "f", "parameters": {"properties": {"city": {"type": "string"}, "day": None}}, "strict": None}
    row = parse(
        {"messages": [USER, {"role": "assistant", "tool_calls": [call]}], "tools": [{**tool, "function": None}]}
    )
    assert row.turns[1]["tool_calls"][0]["function"]["arguments"] == {
        "city": "Oslo",
        "at": {"hour": 3},
        "or": [1.5, None],
    }
    described = {"name": "f", "parameters": {"properties": {"city": {"type": "string"}}}}
    assert row.tools == ({"type": "function", "function": described},)


def test_functions_are_read_as_tools_if_they_describe_tools():
    assert parse({"messages": [USER, ASSISTANT], "functions": [TOOL]}).tools == (
        {"type": "function", "function": TOOL},
    )
    assert parse({"messages": [USER, ASSISTANT], "functions": "of many kinds"}).unread == ("functions",)


def test_arguments_given_as_text_keep_their_nulls():
    call = {"name": "f", "arguments": '{"city": "Oslo", "day": null, "n": 3.0}'}
    row = parse({"messages": [USER, {"role": "assistant", "tool_calls": [call]}]})
    assert row.turns[1]["tool_calls"][0]["function"]["arguments"] == {"city": "Oslo", "day": None, "n": 3.0}


def test_columns_of_a_recipe_may_give_system_text_and_reasoning():
    columns = {"prompt": "Q", "answer": "A", "system": "S", "reasoning": "R"}
    record = {"Q": "Why?", "A": "Because.", "S": "Be kind.", "R": "Let me think.", "why": "it is so simple"}
    row = parse(record, columns=columns)
    assert row.turns == (
        {"role": "system", "content": "Be kind."},
        USER,
        {**ASSISTANT, "reasoning_content": "Let me think."},
    )
    assert (row.unread, row.unread_labels) == ((), ("why",))


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference pair .* not for supervised fine-tuning"),
        ({"question": "a", "choices": ["b", "c"], "answer": 1}, "multiple-choice question: made for evaluation"),
        ({"prompt": "a", "chosen_response": "b", "rejected_response": "c"}, "preference pair"),
        ({"instruction": "a", "output": ["good", "bad"]}, "output: a list of 2 answers; keep the right one"),
        ({"instruction": "a", "output": None}, "^the answer is empty$"),
        ({"instruction": None, "output": "a"}, "^the prompt is empty$"),
        ({"text": None, "url": "x"}, "^text is empty$"),
        ({"messages": None}, "^messages is empty$"),
        (
            {"title": "a", "body": "b"},
            "form not recognised; columns: title, body; name the columns to use under `columns`",
        ),
        ({}, "form not recognised; columns: none"),
        ([1, 2], "expected a JSON object with named columns, found list"),
        ({"messages": []}, "messages: expected a list with at least one message"),
        ({"messages": [USER]}, "no assistant turn, so nothing to learn"),
        ({"messages": [USER, {"role": "wizard", "content": "x"}]}, "turn 2: unknown role 'wizard'"),
        ({"messages": [USER, {"role": "assistant", "content": " "}]}, r"turn 2 \(assistant\) is empty"),
        ({"messages": [{**USER, "content": [{"type": "image"}]}, ASSISTANT]}, "has image content; only text"),
        ({"messages": [USER, {**ASSISTANT, "weight": 0.5}]}, "turn 2: weight 0.5; expected 0 or 1"),
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
def test_the_error_for_a_record_that_cannot_be_trained_on_gives_the_reason(record, reason):
    with pytest.raises(BadRowError, match=reason):
        parse(record)


def test_invalid_json_and_a_missing_column_are_errors():
    with pytest.raises(BadRowError, match="not valid JSON"):
        parse_example('{"messages": [')
    with pytest.raises(BadRowError, match="no column 'Antwort'; columns: Frage"):
        parse({"Frage": "Why?"}, columns={"prompt": "Frage", "answer": "Antwort"})


@pytest.mark.parametrize(
    ("record_json", "reason"),
    [
        ('{"text": ' + "7" * 5000 + "}", "^contains a number with too many digits; write it as text$"),
        ("[" * 200_000, "^nested too deeply to be read$"),
        ('{"text": ' * 200_000, "^nested too deeply to be read$"),
    ],
    ids=["digits", "lists", "objects"],
)
def test_json_that_python_cannot_represent_is_a_bad_record(record_json, reason):
    with pytest.raises(BadRowError, match=reason):
        parse_example(record_json)


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
def test_any_record_becomes_an_example_or_a_bad_record(record):
    with contextlib.suppress(BadRowError):
        assert isinstance(parse(record), Example)


def test_nan_is_absent_from_tool_arguments_given_as_text_or_as_objects():
    text = '{"limit": Infinity, "keep": null, "sizes": [1.5, NaN], "far": 1e999}'
    call = {"function": {"name": "search", "arguments": text}}
    messages = [USER, {"role": "assistant", "content": "", "tool_calls": [call]}]
    (_, answer) = parse({"messages": messages}).turns
    assert answer["tool_calls"][0]["function"]["arguments"] == {"keep": None, "sizes": [1.5, None]}
