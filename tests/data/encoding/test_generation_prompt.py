"""Training text and the prompts of generation are compared, for small templates like those of known models."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_tokenizers import FAMILIES, tokenizer_of

from versatune_ds.data.encoding.forms import Example
from versatune_ds.data.encoding.generation_prompt import PromptComparer, added_system_text
from versatune_ds.data.encoding.loss_spans import TemplateMismatchError
from versatune_ds.data.encoding.prompt_differences import PromptDifference
from versatune_ds.data.encoding.template_abilities import probe_template
from versatune_ds.data.encoding.templates import choose_template

SYSTEM = {"role": "system", "content": "Be kind."}
TOOL = {"type": "function", "function": {"name": "look_up", "description": "", "parameters": {"type": "object"}}}
CALL = {"id": "abcdef001", "type": "function", "function": {"name": "look_up", "arguments": {"word": "x"}}}


def asked(*answers, **keys):
    """Return questions and answers; the last answer has some more keys."""
    turns = [
        turn
        for number, answer in enumerate(answers)
        for turn in ({"role": "user", "content": f"Question {number}?"}, {"role": "assistant", "content": answer})
    ]
    turns[-1] = {**turns[-1], **keys}
    return tuple(turns)


CONVERSATIONS = {
    "one answer": Example(turns=asked("the answer")),
    "two answers": Example(turns=asked("one", "two")),
    "system": Example(turns=(SYSTEM, *asked("one", "two"))),
    "reasoning": Example(turns=asked("one", "two", reasoning_content="I add.")),
    "tools": Example(
        turns=(
            *asked("", tool_calls=[CALL]), {"role": "tool", "content": "yes", "tool_call_id": "abcdef001"},
            {"role": "assistant", "content": "Done."},
        ),
        tools=(TOOL,),
    ),
}  # fmt: skip
ALL = tuple(CONVERSATIONS)
WRITTEN = {"tools": ("written_as_text",)}


@functools.cache
def comparer(name, *, loss_on="assistant", template=None):
    tokenizer = tokenizer_of(name)
    text = template or choose_template(tokenizer)
    return PromptComparer(
        tokenizer=tokenizer, template=text, loss_on=loss_on, abilities=probe_template(text, tokenizer=tokenizer)
    )


def verdicts(name, **options):
    """Return the kinds of differences of every conversation that has some."""
    found = {}
    for label, example in CONVERSATIONS.items():
        try:
            kinds = tuple(difference.kind for difference in comparer(name, **options).compare(example).differences)
        except TemplateMismatchError:
            kinds = ("not trainable",)
        if kinds:
            found[label] = kinds
    return found


OPENED = dict.fromkeys(("one answer", "two answers", "system"), ("opened_thinking",))
VERDICTS = {
    "llama3": {},
    "qwen2_5": {},
    "qwen3": WRITTEN,
    "gemma2": {"system": ("written_as_text",), **WRITTEN},
    "gemma3": WRITTEN,
    "mistral": {"system": ("written_as_text",), **WRITTEN},
    "mistral_with_space": {"one answer": ("tokens",), **WRITTEN},
    "deepseek_r1": {**OPENED, "reasoning": ("not trainable",), "tools": ("opened_thinking", "written_as_text")},
    "phi4": WRITTEN,
    "smollm2": WRITTEN,
}


@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_has_its_verdict_for_each_kind_of_conversation(name):
    assert verdicts(name) == VERDICTS[name]


def test_a_thinking_block_that_only_the_prompt_opens_is_shown_in_both_texts():
    (found,) = comparer("deepseek_r1").compare(CONVERSATIONS["one answer"]).differences
    assert found == PromptDifference(
        kind="opened_thinking",
        trained="Question 0?<|Assistant|>the answer<|end_of_sentence|>",
        prompt="Question 0?<|Assistant|><think>\n",
    )


def test_a_space_that_joins_the_answers_first_token_is_shown_in_both_texts():
    (found,) = comparer("mistral_with_space").compare(CONVERSATIONS["one answer"]).differences
    assert found == PromptDifference(
        kind="tokens", trained="ST] Question 0? [/INST] the answer</s>", prompt="ST] Question 0? [/INST] "
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("llama3", "Knowledge until: December 2023 Today: 26 Jul 2024"),
        ("qwen2_5", "You are Qwen, a helpful assistant."),
        ("smollm2", "You are SmolLM, a helpful assistant."),
        *((name, "") for name in ("qwen3", "gemma2", "gemma3", "mistral", "deepseek_r1", "phi4")),
    ],
)
def test_the_system_text_that_a_template_adds_is_found(name, text):
    assert added_system_text(choose_template(tokenizer_of(name)), tokenizer=tokenizer_of(name)) == text


def test_an_empty_thinking_block_is_learned_with_qwen_3_where_answers_have_no_reasoning():
    by_label = {label: comparer("qwen3").compare(example) for label, example in CONVERSATIONS.items()}
    assert {label for label, found in by_label.items() if found.adds_empty_thinking} == set(ALL) - {"reasoning"}
    found = by_label["one answer"]
    learned = comparer("qwen3").tokenizer.decode(found.trained.input_ids[len(found.prompt_ids) :])
    assert learned == "<think>\n\n</think>\n\nthe answer<|im_end|>\n"


def chatml(answer, *, prompt="<|im_start|>assistant\\n", start=""):
    """Return a template with marks: `answer` is what it prints of an answer."""
    return (
        "{{- '" + start + "' }}{%- for m in messages %}{% if m.role == 'assistant' %}" + answer + "{% else %}"
        "{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
        "{%- if add_generation_prompt %}{{ '" + prompt + "' }}{% endif %}"
    )


HEADER, BODY, END = "{{ '<|im_start|>assistant\\n' }}", "{{ m.content }}", "{{ '<|im_end|>' }}"
OPEN, CLOSE = "{% generation %}", "{% endgeneration %}"
MARKED = {
    "right": (chatml(HEADER + OPEN + BODY + END + CLOSE), ()),
    "without the end": (chatml(HEADER + OPEN + BODY + CLOSE + "{{ '\\n' }}" + END), ("end_not_trained",)),
    "with the header": (chatml(OPEN + HEADER + BODY + END + CLOSE), ("loss_early",)),
    "without the first word": (chatml(HEADER + "{{ 'So: ' }}" + OPEN + BODY + END + CLOSE), ("loss_late",)),
    "another header": (
        chatml(HEADER + OPEN + BODY + END + CLOSE, prompt="<|im_start|>assistant: "), ("text",)
    ),
    "a closed block in the prompt": (
        chatml(HEADER + OPEN + BODY + END + CLOSE, prompt="<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n"),
        ("closed_thinking",),
    ),
    "a prompt that is refused": (
        chatml(HEADER + OPEN + BODY + END + CLOSE).replace("{{- '' }}", "{{- messages[1].content[:0] }}"),
        ("refused",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("label", MARKED)
def test_marks_around_other_text_than_the_answer_are_found(label):
    template, kinds = MARKED[label]
    found = comparer("qwen2_5", template=template).compare(CONVERSATIONS["one answer"])
    assert tuple(difference.kind for difference in found.differences) == kinds


def test_loss_on_the_line_end_behind_the_end_token_is_no_difference_and_known():
    behind = comparer("qwen2_5", template=chatml(HEADER + OPEN + BODY + END + "{{ '\\n' }}" + CLOSE))
    found = [each.compare(CONVERSATIONS["two answers"]) for each in (behind, comparer("qwen2_5"))]
    assert [(each.differences, each.has_loss_behind_end) for each in found] == [((), True), ((), False)]


def test_two_start_tokens_and_a_missing_one_are_found():
    own = choose_template(tokenizer_of("gemma3"))
    twice = comparer("gemma3", template=own.replace("{{- bos_token }}", "{{- bos_token + bos_token }}"))
    missing = comparer("gemma3", template=own.replace("{{- bos_token }}", ""))
    kinds = [each.compare(CONVERSATIONS["one answer"]).differences[0].kind for each in (twice, missing)]
    assert kinds == ["start_twice", "start_missing"]


def test_loss_on_all_tokens_agrees_where_loss_on_answers_does():
    assert verdicts("qwen2_5", loss_on="all") == {}


def test_a_conversation_in_which_no_answer_bears_loss_is_not_compared():
    assert comparer("qwen2_5").compare(Example(turns=asked("one", loss=False))) is None


words = st.sampled_from(["the answer", " is", "seven\n", "\n\nwhat", "  ", "é", "a" * 9, "1 < 2", "[INST]"])
text = st.lists(words, min_size=1, max_size=4).map("".join).filter(str.strip)
thoughts = st.sampled_from(["", "", "<think>\nI add.\n</think>\n\n", "<think></think>"])


@st.composite
def conversations(draw):
    """Return messages: perhaps a system text, then questions and answers, some with reasoning."""
    turns = [{"role": "system", "content": draw(text)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        turns.append({"role": "user", "content": draw(text)})
        turns.append({"role": "assistant", "content": draw(thoughts) + draw(text)})
    return turns


@settings(max_examples=150)
@given(name=st.sampled_from(sorted(FAMILIES)), turns=conversations())
def test_where_nothing_differs_each_prompt_is_the_beginning_of_the_trained_tokens_and_the_loss_starts_behind_it(
    name, turns
):
    each = comparer(name)
    try:
        found = each.compare(Example(turns=tuple(turns)))
    except TemplateMismatchError:
        return
    if found.differences:
        return
    ids, is_loss = found.trained.input_ids, found.trained.is_loss
    for i in (i for i, turn in enumerate(turns) if turn["role"] == "assistant"):
        prompt = each.tokenizer.apply_chat_template(
            turns[:i], chat_template=each.template, add_generation_prompt=True, return_dict=False
        )
        assert np.array_equal(prompt, ids[: len(prompt)])
        assert is_loss[len(prompt)]
        assert not is_loss[len(prompt) - 1]
