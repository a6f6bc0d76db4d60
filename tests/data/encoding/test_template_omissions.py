"""What a chat template omits from a conversation is counted, or the example is refused."""

from __future__ import annotations

import pytest
from chat_data import CHATML, tiny_tokenizer
from model_templates import LAST_REASONING, MISTRAL, NO_REASONING

from versatune_ds.data.encoding.forms import Example
from versatune_ds.data.encoding.loss_spans import TemplateMismatchError, render_example
from versatune_ds.data.encoding.template_abilities import fit_to_template, probe_template

REFUSED = r"turn {} \(assistant, the last\): the chat template leaves its reasoning out"


def thinking(*thoughts, is_inline=False):
    """Return a conversation with reasoning before its answers; None is an answer without reasoning."""
    turns = []
    for number, thought in enumerate(thoughts):
        turns.append({"role": "user", "content": f"Question {number}?"})
        answer = f"Answer {number}."
        if thought is None:
            turns.append({"role": "assistant", "content": answer})
        elif is_inline:
            turns.append({"role": "assistant", "content": f"<think>\n{thought}\n</think>\n\n{answer}"})
        else:
            turns.append({"role": "assistant", "content": answer, "reasoning_content": thought})
    return turns


def warnings_of(turns, template, **options):
    abilities = probe_template(template, tokenizer=tiny_tokenizer())
    fitted, _ = fit_to_template(Example(turns=tuple(turns)), abilities=abilities)
    return render_example(list(fitted.turns), tokenizer=tiny_tokenizer(), template=template, **options).warnings


@pytest.mark.parametrize("loss_on", ["assistant", "all"])
@pytest.mark.parametrize("is_inline", [False, True], ids=["key", "inline"])
def test_reasoning_omitted_from_earlier_turns_is_counted(is_inline, loss_on):
    turns = thinking("I add.", "I halve.", is_inline=is_inline)
    assert warnings_of(turns, LAST_REASONING, loss_on=loss_on) == ("reasoning_left_out",)
    assert warnings_of(turns, CHATML, loss_on=loss_on) == ()
    assert warnings_of(turns[2:], LAST_REASONING, loss_on=loss_on) == ()


@pytest.mark.parametrize("loss_on", ["assistant", "all"])
def test_omitted_reasoning_is_counted_even_if_other_turns_contain_the_same_text(loss_on):
    assert warnings_of(thinking("I add.", "I add."), LAST_REASONING, loss_on=loss_on) == ("reasoning_left_out",)


def test_omitted_reasoning_is_counted_even_if_the_answer_repeats_it():
    with pytest.raises(TemplateMismatchError, match=REFUSED.format(2)):
        warnings_of(thinking("Answer", is_inline=True), NO_REASONING)


@pytest.mark.parametrize("is_inline", [False, True], ids=["key", "inline"])
def test_an_example_whose_last_turn_loses_its_reasoning_is_refused(is_inline):
    with pytest.raises(TemplateMismatchError, match=REFUSED.format(4)):
        warnings_of(thinking(None, "I halve.", is_inline=is_inline), NO_REASONING)
    assert warnings_of(thinking("I add.", None, is_inline=is_inline), NO_REASONING) == ("reasoning_left_out",)


def test_reasoning_without_an_opening_tag_is_recognised():
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "I add.\n</think>\n\nSo."}]
    assert warnings_of(turns, LAST_REASONING) == ()
    with pytest.raises(TemplateMismatchError, match=REFUSED.format(2)):
        warnings_of(turns, NO_REASONING)


def test_empty_reasoning_does_not_count_as_omitted():
    assert warnings_of(thinking("\n", is_inline=True), NO_REASONING) == ()


def test_a_turn_without_loss_may_lose_its_reasoning():
    turns = thinking("I add.")
    turns[-1]["loss"] = False
    assert warnings_of([*thinking(None), *turns], NO_REASONING) == ("reasoning_left_out",)


def test_reasoning_outside_the_generation_marks_is_counted_as_not_learned():
    marked = (
        "{% for m in messages %}{{ m['reasoning_content'] or '' }}{% if m['role'] == 'assistant' %}{% generation %}"
        "{{ m['content'] }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}{{ eos_token }}{% endfor %}"
    )
    assert warnings_of(thinking("I add.", "I halve."), marked) == ("reasoning_without_loss",)


def test_arguments_omitted_by_the_template_are_counted():
    calls = "{% for call in m['tool_calls'] or [] %}{{ call['function']['name'] ~ call['function']['arguments']['a'] }}"
    template = "{% for m in messages %}{{ m['role'] ~ m['content'] }}" + calls + "{% endfor %}\n{% endfor %}"
    template += "{% if add_generation_prompt %}assistant{% endif %}"

    def with_arguments(arguments):
        call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
        turns = [{"role": "user", "content": "Go."}, {"role": "assistant", "content": "", "tool_calls": [call]}]
        return render_example(turns, tokenizer=tiny_tokenizer(), template=template).warnings

    assert with_arguments({"a": "one"}) == ()
    assert with_arguments({"a": "one", "b": [{"c": "two"}]}) == ("arguments_left_out",)


@pytest.mark.parametrize("filters", ["tojson", "tojson(ensure_ascii=True)", "tojson | tojson", "string"])
def test_arguments_are_found_in_any_quoting(filters):
    template = "{% for m in messages %}{{ m['role'] ~ m['content'] }}{% for call in m['tool_calls'] or [] %}"
    template += (
        "{{ call['function']['name'] ~ call['function']['arguments'] | " + filters + " }}{% endfor %}\n{% endfor %}"
    )
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": 'Größe "x"', "b": ["漢字 und mehr", 5]}}}
    turns = [{"role": "assistant", "content": "", "tool_calls": [call]}]
    assert render_example(turns, tokenizer=tiny_tokenizer(), template=template, loss_on="all").warnings == ()


def test_a_system_text_that_the_template_drops_joins_the_first_question():
    abilities = probe_template(MISTRAL, tokenizer=tiny_tokenizer())
    assert not abilities.has_system
    turns = ({"role": "system", "content": "Be kind."}, *thinking(None, None))
    fitted, _ = fit_to_template(Example(turns=turns), abilities=abilities)
    row = render_example(list(fitted.turns), tokenizer=tiny_tokenizer(), template=MISTRAL)
    expected = "<|begin|>[INST]Be kind.\n\nQuestion 0?[/INST] Answer 0.<|end|>[INST]Question 1?[/INST] Answer 1.<|end|>"
    assert row.text == expected
    assert [row.text[start:end] for start, end in row.loss_spans] == [" Answer 0.<|end|>", " Answer 1.<|end|>"]


def test_tools_printed_only_before_the_last_question_are_written_as_text_if_there_are_several_questions():
    tool = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}
    abilities = probe_template(MISTRAL, tokenizer=tiny_tokenizer())

    def rendered(turns):
        fitted, _ = fit_to_template(Example(turns=tuple(turns), tools=(tool,)), abilities=abilities)
        tools = list(fitted.tools) or None
        return render_example(list(fitted.turns), tokenizer=tiny_tokenizer(), template=MISTRAL, tools=tools).text

    assert rendered(thinking(None)).startswith('<|begin|>[AVAILABLE_TOOLS][{"type": "function"')
    assert rendered(thinking(None, None)).startswith('<|begin|>[INST]Tools:\n[{"type": "function"')
    call = {"id": "abcdef001", "type": "function", "function": {"name": "look_up", "arguments": {"word": "x"}}}
    calling = {"role": "assistant", "content": "I look.", "tool_calls": [call]}  # written as text, so its result asks
    turns = [thinking(None)[0], calling, {"role": "tool", "content": "y"}, thinking(None)[1]]
    assert rendered(turns).startswith('<|begin|>[INST]Tools:\n[{"type": "function"')
    _, warnings = fit_to_template(Example(turns=tuple(thinking(None, None)), tools=(tool,)), abilities=abilities)
    assert warnings == ["tools_as_text"]


def test_tools_printed_only_before_a_closing_question_count_as_not_printed():
    template = (
        "{% for m in messages %}{% if loop.last and m['role'] == 'user' and tools %}{{ tools | tojson }}{% endif %}"
        "{{ m['role'] + m['content'] }}{% endfor %}"
    )
    assert not probe_template(template, tokenizer=tiny_tokenizer()).has_tools
