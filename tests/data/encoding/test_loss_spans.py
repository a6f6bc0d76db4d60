"""Loss spans are found exactly in what real chat templates print, or the conversation is refused."""

from __future__ import annotations

import copy

import pytest
from chat_data import CHATML, tiny_tokenizer

from versatune_ds.data.encoding.loss_spans import TemplateMismatchError, render_example
from versatune_ds.data.encoding.template_abilities import probe_template

CALL = {"type": "function", "function": {"name": "look_up", "arguments": {"word": "tort"}}}
TWO_TURNS = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "More?"},
    {"role": "assistant", "content": "Fine."},
]
TURN = "{{ '<|im_start|>' + message['role'] + '\\n' }}"
END = "{{ '<|im_end|>\\n' }}"
PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"


def learned(messages, template, **options):
    """Return the text of every span that bears loss."""
    row = render_example(messages, tokenizer=tiny_tokenizer(), template=template, **options)
    return [row.text[start:end] for start, end in row.loss_spans]


def loop(body):
    """Return a template that prints every message with a body."""
    return "{% for message in messages %}" + body + "{% endfor %}"


def test_a_prompt_that_opens_thinking_is_not_part_of_the_header():
    template = loop(TURN + "{{ message['content'] }}" + END) + PROMPT.replace("assistant\\n", "assistant\\n<think>\\n")
    assert learned(TWO_TURNS, template) == ["Hello.<|im_end|>", "Fine.<|im_end|>"]


def test_an_end_of_text_token_after_the_last_turn_only_does_not_hide_the_others():
    template = loop(TURN + "{{ message['content'] }}" + END) + (
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% else %}{{ eos_token }}{% endif %}"
    )
    assert learned(TWO_TURNS, template) == ["Hello.<|im_end|>", "Fine.<|im_end|>\n<|end|>"]


def test_a_thinking_block_before_the_last_call_only_does_not_hide_earlier_calls():
    thinking = "{% if message['role'] == 'assistant' and loop.last %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    calls = "{% for call in message['tool_calls'] %}{{ call['function'] | tojson }}{% endfor %}"
    template = loop(TURN + thinking + "{{ message['content'] }}" + calls + END) + PROMPT
    messages = [TWO_TURNS[0], {"role": "assistant", "content": "", "tool_calls": [CALL]}, *TWO_TURNS[2:]]
    first, last = learned(messages, template)
    assert first == '{"name": "look_up", "arguments": {"word": "tort"}}<|im_end|>'
    assert last == "<think>\n\n</think>\n\nFine.<|im_end|>"


@pytest.mark.parametrize("loss_on", ["assistant", "all"])
def test_a_template_that_omits_a_turn_is_refused(loss_on):
    users_only = loop("{% if message['role'] == 'user' %}" + TURN + "{{ message['content'] }}" + END + "{% endif %}")
    with pytest.raises(TemplateMismatchError, match=r"turn 2.*(leaves its text out|its loss cannot be placed)"):
        learned(TWO_TURNS, users_only + PROMPT, loss_on=loss_on)


def test_a_template_that_rewrites_an_earlier_turn_is_refused():
    shouting = loop(TURN + "{{ message['content'] if loop.last else message['content'] | upper }}" + END) + PROMPT
    with pytest.raises(TemplateMismatchError, match=r"turn 2: .* its loss cannot be placed; give data.chat_template"):
        learned(TWO_TURNS, shouting)


def test_extra_marks_are_allowed_unless_a_turn_bears_no_loss():
    marked = loop(
        "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}{% endgeneration %}"
        "{% generation %}{{ '<|im_end|>' }}{% endgeneration %}{% else %}{{ message['content'] }}{% endif %}"
    )
    assert "".join(learned(TWO_TURNS, marked)) == "Hello.<|im_end|>Fine.<|im_end|>"
    with pytest.raises(TemplateMismatchError, match="marks 4 generated parts for 2 assistant turns"):
        learned([TWO_TURNS[0], {**TWO_TURNS[1], "loss": False}, *TWO_TURNS[2:]], marked)


def test_a_template_that_does_not_end_turns_is_detected():
    assert probe_template(CHATML, tokenizer=tiny_tokenizer()).closes_turns
    assert not probe_template(loop("{{ message['content'] }}"), tokenizer=tiny_tokenizer()).closes_turns


def test_a_template_cannot_escape_its_sandbox():
    escape = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(TemplateMismatchError, match="refuses the conversation"):
        learned(TWO_TURNS, escape)


MARKED = (
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}{% endgeneration %}"
    "{% else %}{{ message['content'] }}{% endif %}"
)


def chatml_tokenizer():
    """Return a tokenizer whose end-of-turn token is special and is not its end-of-text token."""
    tokenizer = copy.deepcopy(tiny_tokenizer())  # the other tests share it
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return tokenizer


def learned_by_chatml(messages, template):
    row = render_example(messages, tokenizer=chatml_tokenizer(), template=template)
    return [row.text[start:end] for start, end in row.loss_spans]


def test_a_mark_is_extended_over_an_end_of_turn_token_that_is_not_the_end_of_text():
    template = loop("{{ '<|im_start|>' }}" + MARKED + "{{ '<|im_end|>' }}")
    assert learned_by_chatml(TWO_TURNS, template) == ["Hello.<|im_end|>", "Fine.<|im_end|>"]
    assert learned_by_chatml([*TWO_TURNS, TWO_TURNS[0]], template) == ["Hello.<|im_end|>", "Fine.<|im_end|>"]


def test_a_mark_is_not_extended_over_the_header_of_the_next_turn():
    closed = MARKED.replace("{% endgeneration", "{{ '<|im_end|>' }}{% endgeneration")
    closing_user = [*TWO_TURNS, TWO_TURNS[0]]
    assert learned_by_chatml(closing_user, loop("{{ '<|im_start|>' }}" + closed)) == [
        "Hello.<|im_end|>",
        "Fine.<|im_end|>",
    ]
    assert learned_by_chatml(TWO_TURNS, loop("{{ '<|im_start|>' }}" + MARKED)) == ["Hello.", "Fine."]


@pytest.mark.parametrize("end", ["<|end|>", "<|im_end|>"])
def test_a_mark_is_not_extended_into_the_next_mark(end):
    marked_end = "{% generation %}{{ '" + end + "' }}{% endgeneration %}"
    template = loop(MARKED.replace("{% else %}", marked_end + "{% else %}"))
    assert learned_by_chatml(TWO_TURNS, template) == ["Hello.", end, "Fine.", end]


@pytest.mark.parametrize("role", ["system", "tool"])
def test_a_system_or_tool_turn_that_is_not_printed_is_refused(role):
    drops = "{% if message['role'] in ('user', 'assistant') or loop.first %}"
    template = loop(drops + TURN + "{{ message['content'] }}" + END + "{% endif %}") + PROMPT
    messages = [
        {"role": "system", "content": "Be kind."},
        TWO_TURNS[0],
        {"role": role, "content": "Never lie."},
        TWO_TURNS[1],
    ]
    with pytest.raises(TemplateMismatchError, match=rf"turn 3 \({role}\): the chat template leaves its text out"):
        learned(messages, template)
    assert learned([*messages[:2], messages[3]], template) == ["Hello.<|im_end|>"]


def test_a_tool_result_may_be_printed_as_json():
    as_json = "{{ message['content'] | tojson if message['role'] == 'tool' else message['content'] }}"
    messages = [TWO_TURNS[0], {"role": "tool", "content": 'A "wrong",\nGröße.'}, TWO_TURNS[1]]
    assert learned(messages, loop(TURN + as_json + END) + PROMPT) == ["Hello.<|im_end|>"]


def test_a_missing_assistant_turn_is_noticed_even_if_another_has_the_same_text():
    marks = "{% generation %}{{ message['content'] if loop.last else '' }}{% endgeneration %}"
    template = loop("{% if message['role'] == 'user' %}{{ message['content'] }}{% else %}" + marks + "{% endif %}")
    messages = [TWO_TURNS[0], TWO_TURNS[1], TWO_TURNS[2], TWO_TURNS[1]]
    with pytest.raises(TemplateMismatchError, match=r"turn 4 \(assistant\): the chat template leaves its text out"):
        learned(messages, template)


@pytest.mark.parametrize("arguments", [5, None, ["tort"]])
def test_arguments_the_template_cannot_iterate_are_refused_in_one_line(arguments):
    pairs = "{% for key, value in call['function']['arguments'] | items %}{{ key }}{% endfor %}"
    calls = "{% for call in message['tool_calls'] %}{{ call['function']['name'] }}" + pairs + "{% endfor %}"
    call = {"type": "function", "function": {"name": "look_up", "arguments": arguments}}
    messages = [TWO_TURNS[0], {"role": "assistant", "content": "", "tool_calls": [call]}]
    with pytest.raises(TemplateMismatchError, match=r"^the chat template refuses the conversation: [^\n]+$"):
        learned(messages, loop(TURN + "{{ message['content'] }}" + calls + END) + PROMPT)
