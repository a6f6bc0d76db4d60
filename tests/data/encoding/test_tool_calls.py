"""Tool calls and their results keep their ids, or get ids that the chat template accepts, and stay paired."""

from __future__ import annotations

import json

import pytest
from chat_data import tiny_tokenizer
from model_templates import MISTRAL, NO_REASONING

from versatune_ds.data.encoding.forms import parse_example
from versatune_ds.data.encoding.loss_spans import render_example
from versatune_ds.data.encoding.template_abilities import fit_to_template, probe_template
from versatune_ds.data.encoding.templates import BUILT_IN_TEMPLATE
from versatune_ds.data.encoding.tool_calls import results_in_call_order, shortened, with_call_ids
from versatune_ds.data.encoding.turns import BadRowError
from versatune_ds.data.prepare.encode_records import content_hash

QUESTION = {"role": "user", "content": "Look up both."}
ANSWER = {"role": "assistant", "content": "Done."}


def call(name, call_id=None):
    made = {"type": "function", "function": {"name": name, "arguments": {"word": f"{name}-word"}}}
    return made if call_id is None else {"id": call_id, **made}


def result(content, call_id=None, **more):
    made = {"role": "tool", "content": content, **more}
    return made if call_id is None else {**made, "tool_call_id": call_id}


def exchange(calls, results):
    return [QUESTION, {"role": "assistant", "content": "", "tool_calls": calls}, *results, ANSWER]


def ids_of(turns):
    """Return the ids of all calls and of all results."""
    calls = [call.get("id") for turn in turns for call in turn.get("tool_calls", ())]
    return calls, [turn.get("tool_call_id") for turn in turns if turn["role"] == "tool"]


def rendered(turns, template):
    """Return an example's text as it is trained on, and the warnings about it."""
    row = parse_example(json.dumps({"messages": turns}))
    abilities = probe_template(template, tokenizer=tiny_tokenizer())
    fitted, warnings = fit_to_template(row, abilities=abilities)
    text = render_example(list(fitted.turns), tokenizer=tiny_tokenizer(), template=template).text
    return text, warnings


def test_ids_and_names_are_read_from_every_spelling():
    turns = exchange([call("f", "call_1"), {**call("g"), "call_id": 7}], [result("one", "call_1", name="f")])
    kept = parse_example(json.dumps({"messages": [{**turns[0], "name": "Ann"}, *turns[1:]]})).turns
    assert ids_of(kept) == (["call_1", "7"], ["call_1"])
    assert (kept[0]["name"], kept[2]["name"]) == ("Ann", "f")
    sharegpt = [
        {"from": "human", "value": "Look."},
        {"from": "function_call", "value": json.dumps({"id": "x1", "name": "f", "arguments": {}})},
        {"from": "observation", "value": "one", "tool_call_id": "x1"},
        {"from": "gpt", "value": "Done."},
    ]
    assert ids_of(parse_example(json.dumps({"conversations": sharegpt})).turns) == (["x1"], ["x1"])


def test_calls_and_results_in_typed_content_are_recognised():
    use = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"word": "x"}}
    answer = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "one"}]}
    messages = [
        QUESTION,
        {"role": "assistant", "content": [{"type": "text", "text": "I look."}, use]},
        {"role": "user", "content": [answer, {"type": "text", "text": "And?"}]},
        ANSWER,
    ]
    call_made = {"id": "toolu_1", "type": "function", "function": {"name": "f", "arguments": {"word": "x"}}}
    assert parse_example(json.dumps({"messages": messages})).turns == (
        QUESTION,
        {"role": "assistant", "content": "I look.", "tool_calls": [call_made]},
        {"role": "tool", "content": "one", "tool_call_id": "toolu_1"},
        {"role": "user", "content": "And?"},
        ANSWER,
    )
    messages[1]["content"].reverse()  # no template can print text after a call
    with pytest.raises(BadRowError, match=r"turn 2 \(assistant\) has tool_use content"):
        parse_example(json.dumps({"messages": messages}))


def test_ids_that_the_template_accepts_are_printed_unchanged():
    turns = exchange([call("f", "abcdef001"), call("g", "ghijkl001")], [result("2", "ghijkl001")])
    text, changed = rendered(turns, MISTRAL)
    assert '"name": "f", "arguments": {"word": "f-word"}, "id": "abcdef001"}' in text
    assert '[TOOL_RESULTS]{"content": 2, "call_id": "ghijkl001"}' in text
    assert changed == []


def test_ids_of_another_length_are_shortened_to_nine_characters_in_calls_and_results_alike():
    turns = exchange(
        [call("f", "call_abc1234567890"), call("g", "c2")], [result("2", "c2"), result("1", "call_abc1234567890")]
    )
    text, changed = rendered(turns, MISTRAL)
    first, second = shortened("call_abc1234567890"), shortened("c2")
    assert (len(first), len(second)) == (9, 9)
    assert f'"f-word"}}, "id": "{first}"' in text
    assert f'"content": 2, "call_id": "{second}"' in text
    assert f'"content": 1, "call_id": "{first}"' in text
    assert changed == ["ids_changed"]


def test_calls_without_ids_are_numbered_if_the_template_requires_ids():
    text, changed = rendered(exchange([call("f"), call("g")], [result("1"), result("2")]), MISTRAL)
    assert '"f-word"}, "id": "call00001"' in text
    assert '"content": 2, "call_id": "call00002"' in text
    assert changed == ["ids_changed"]


@pytest.mark.parametrize(
    ("calls", "results", "expected"),
    [
        ([call("f"), call("g")], [result("2", name="g"), result("1", name="f")], ["call00002", "call00001"]),
        ([call("f"), call("g")], [result("1", "x"), result("2", "y")], ["x", "y"]),
        ([call("f", "x"), call("g")], [result("2"), result("1", "x")], ["call00001", "x"]),
        ([call("f", "call00001"), call("g")], [result("1"), result("2")], ["call00001", "call00002"]),
        ([call("f")], [result("1"), result("more")], ["call00001", "call00002"]),
    ],
    ids=["by name", "by the results' ids", "by what is left", "no number twice", "more results than calls"],
)
def test_a_result_without_an_id_gets_that_of_its_call(calls, results, expected):
    turns = with_call_ids(exchange(calls, results), is_accepted=lambda call_id: True)
    call_ids, result_ids = ids_of(turns)
    assert result_ids == expected
    assert set(call_ids) == set(expected[: len(calls)])
    assert "id" not in call("f")


def test_results_follow_the_order_of_their_calls_if_ids_are_not_printed():
    turns = exchange([call("f", "x"), call("g", "y")], [result("2", "y"), result("1", "x")])
    assert [turn["content"] for turn in results_in_call_order(turns) if turn["role"] == "tool"] == ["1", "2"]
    text, changed = rendered(turns, BUILT_IN_TEMPLATE)
    assert text.index("<|tool|>\n1") < text.index("<|tool|>\n2")
    assert changed == ["results_reordered"]
    unknown = exchange([call("f", "x")], [result("2", "other"), result("1", "x")])
    assert results_in_call_order(unknown) == unknown


def test_a_template_may_require_arguments_as_text_and_content_of_none():
    text, changed = rendered(exchange([call("f")], [result("1")]), NO_REASONING)
    assert '[call]f\n{"word": "f-word"}[/call]<|end|>' in text
    assert changed == []


@pytest.mark.parametrize("template", [MISTRAL, NO_REASONING], ids=["drops content", "drops calls"])
def test_calls_beside_text_are_written_as_text_if_the_template_prints_only_one_of_them(template):
    turns = exchange([call("f", "abcdef001")], [result("1", "abcdef001")])
    assert rendered(turns, template)[1] == []
    turns[1]["content"] = "I look."
    text, changed = rendered(turns, template)
    assert 'I look.\n<tool_call>\n{"name": "f", "arguments": {"word": "f-word"}}\n</tool_call>' in text
    assert changed == ["calls_as_text", "results_as_text"]


def test_examples_that_differ_only_in_their_ids_are_duplicates():
    rows = [
        parse_example(json.dumps({"messages": exchange([call("f", call_id)], [result("1", call_id)])}))
        for call_id in ("x", "y", None)
    ]
    assert len({content_hash(row) for row in rows}) == 1
