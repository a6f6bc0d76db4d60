"""Parts that a template would silently drop are written as text."""

from __future__ import annotations

import pytest
from chat_data import CHATML, INST, tiny_tokenizer

from versatune_ds.data.encoding.encode import encode_messages
from versatune_ds.data.encoding.forms import Example
from versatune_ds.data.encoding.template_abilities import fit_to_template, probe_template
from versatune_ds.data.encoding.templates import BUILT_IN_TEMPLATE

CALL = {"type": "function", "function": {"name": "look_up", "arguments": {"word": "tort"}}}
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}
ROW = Example(
    turns=(
        {"role": "system", "content": "Be exact."},
        {"role": "user", "content": "What is a tort?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL], "reasoning_content": "I look."},
        {"role": "tool", "content": "A wrong."},
        {"role": "assistant", "content": "A wrong."},
    ),
    tools=(TOOL,),
)


def test_abilities_of_a_template_are_found_by_rendering():
    chatml = probe_template(CHATML, tokenizer=tiny_tokenizer())
    assert (chatml.has_system, chatml.has_tools, chatml.has_tool_calls, chatml.has_reasoning) == (
        True,
        False,
        False,
        False,
    )
    assert chatml.has_tool_turns
    built_in = probe_template(BUILT_IN_TEMPLATE, tokenizer=tiny_tokenizer())
    assert (built_in.has_tools, built_in.has_tool_calls, built_in.has_tool_turns) == (True, True, True)
    assert not probe_template(INST, tokenizer=tiny_tokenizer()).has_system


@pytest.mark.parametrize("template", [BUILT_IN_TEMPLATE, CHATML, INST], ids=["built-in", "chatml", "inst"])
def test_every_part_of_an_example_is_in_the_text_and_calls_bear_loss(template):
    tokenizer = tiny_tokenizer()
    fitted, _ = fit_to_template(ROW, abilities=probe_template(template, tokenizer=tokenizer))
    input_ids, is_loss = encode_messages(
        list(fitted.turns), tokenizer=tokenizer, template=template, tools=list(fitted.tools) or None
    )
    text, learned = tokenizer.decode(input_ids), tokenizer.decode(input_ids[is_loss])
    for part in ("Be exact.", "What is a tort?", "look_up", "parameters", "I look.", "A wrong."):
        assert part in text
    assert '"word": "tort"' in learned
    assert "I look." in learned
    assert "What is a tort?" not in learned


def test_an_example_that_the_template_prints_completely_is_unchanged():
    row = Example(turns=ROW.turns[:2] + ROW.turns[4:])
    assert fit_to_template(row, abilities=probe_template(CHATML, tokenizer=tiny_tokenizer())) == (row, [])
