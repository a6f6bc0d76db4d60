"""Loss falls on the assistant's text and its end-of-turn token, in every turn and with every kind of template."""

from __future__ import annotations

import pytest
from chat_data import CHATML, COUNTING, INST, THINKING, encode_text, tiny_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from versatune_ds.data.encoding.encode import encode_messages
from versatune_ds.data.encoding.loss_spans import TemplateMismatchError
from versatune_ds.data.encoding.templates import BUILT_IN_TEMPLATE

SYSTEM = {"role": "system", "content": "Be brief."}
TWO_TURNS = [
    {"role": "user", "content": "What colour is the sky?"},
    {"role": "assistant", "content": "Blue."},
    {"role": "user", "content": "And at night?"},
    {"role": "assistant", "content": "Black, mostly."},
]


def loss_texts(messages, template, **options):
    """Return the text of every stretch of tokens that bears loss."""
    tokenizer = tiny_tokenizer()
    input_ids, is_loss = encode_messages(messages, tokenizer=tokenizer, template=template, **options)
    assert len(input_ids) == len(is_loss)
    assert not is_loss[0]
    stretches, open_stretch = [], []
    for token, bears in [*zip(input_ids.tolist(), is_loss.tolist(), strict=True), (None, False)]:
        if bears:
            open_stretch.append(token)
        elif open_stretch:
            stretches.append(tokenizer.decode(open_stretch))
            open_stretch = []
    return stretches


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (BUILT_IN_TEMPLATE, ["Blue.<|end|>", "Black, mostly.<|end|>"]),
        (CHATML, ["Blue.<|im_end|>", "Black, mostly.<|im_end|>"]),
        (INST, [" Blue.<|end|>", " Black, mostly.<|end|>"]),
        (THINKING, ["Blue.<|im_end|>", "<think>\n\n</think>\n\nBlack, mostly.<|im_end|>"]),
    ],
    ids=["marked", "chatml", "inst", "thinking"],
)
def test_every_assistant_turn_bears_loss_to_its_end_token(template, expected):
    assert loss_texts(TWO_TURNS, template) == expected


@pytest.mark.parametrize("template", [BUILT_IN_TEMPLATE, CHATML], ids=["marked", "nested"])
def test_system_and_closing_user_turns_bear_no_loss(template):
    messages = [SYSTEM, *TWO_TURNS, {"role": "user", "content": "Thanks."}]
    assert [text[:5] for text in loss_texts(messages, template)] == ["Blue.", "Black"]


@pytest.mark.parametrize("template", [BUILT_IN_TEMPLATE, CHATML], ids=["marked", "nested"])
def test_a_turn_with_loss_false_bears_no_loss(template):
    messages = [TWO_TURNS[0], {**TWO_TURNS[1], "loss": False}, *TWO_TURNS[2:]]
    assert [text[:5] for text in loss_texts(messages, template)] == ["Black"]


def test_loss_on_all_covers_every_token_but_the_first():
    input_ids, is_loss = encode_messages(TWO_TURNS, tokenizer=tiny_tokenizer(), template=CHATML, loss_on="all")
    assert is_loss.tolist() == [False] + [True] * (len(input_ids) - 1)


def test_the_tokens_are_those_of_the_complete_conversation():
    tokenizer = tiny_tokenizer()
    input_ids, _ = encode_messages(TWO_TURNS, tokenizer=tokenizer, template=CHATML)
    expected = tokenizer.apply_chat_template(TWO_TURNS, chat_template=CHATML, tokenize=True, return_dict=False)
    assert input_ids.tolist() == expected


def test_the_loss_mask_of_a_template_with_marks_equals_that_of_transformers():
    tokenizer = tiny_tokenizer()
    _, is_loss = encode_messages(TWO_TURNS, tokenizer=tokenizer, template=BUILT_IN_TEMPLATE)
    expected = tokenizer.apply_chat_template(
        TWO_TURNS, chat_template=BUILT_IN_TEMPLATE, return_dict=True, return_assistant_tokens_mask=True
    )
    assert is_loss.tolist() == [bool(bit) for bit in expected["assistant_masks"]]


def test_a_mark_that_ends_before_the_end_token_is_extended_over_it():
    short = BUILT_IN_TEMPLATE.replace(
        "{{- eos_token }}\n{%- endgeneration %}", "{%- endgeneration %}\n{{- eos_token }}"
    )
    assert short != BUILT_IN_TEMPLATE
    assert loss_texts(TWO_TURNS, short) == ["Blue.<|end|>", "Black, mostly.<|end|>"]


def test_a_template_whose_prefixes_do_not_nest_is_refused():
    with pytest.raises(TemplateMismatchError, match=r"turn 2: the chat template renders .* differently"):
        loss_texts(TWO_TURNS, COUNTING)


def test_the_error_for_a_conversation_that_the_template_refuses_gives_the_reason():
    with pytest.raises(TemplateMismatchError, match="refuses the conversation: Only user and assistant roles"):
        loss_texts([SYSTEM, *TWO_TURNS], INST)


def test_marks_that_miss_a_turn_are_refused():
    one_mark = "{% generation %}{{ message['content'] }}{% endgeneration %}"
    template = "{% for message in messages %}{% if loop.last %}" + one_mark + "{% else %}{{ message['content'] }}"
    with pytest.raises(TemplateMismatchError, match="marks 1 generated parts for 2 assistant turns, so some of them"):
        loss_texts(TWO_TURNS, template + "{% endif %}{% endfor %}")


def test_the_first_token_bears_no_loss_even_if_it_is_the_assistants():
    marked = "{% for message in messages %}{% generation %}{{ message['content'] }}{% endgeneration %}{% endfor %}"
    messages = [{"role": "assistant", "content": "the answer is seven"}]
    input_ids, is_loss = encode_messages(messages, tokenizer=tiny_tokenizer(), template=marked)
    assert is_loss.tolist() == [False] + [True] * (len(input_ids) - 1)


@pytest.mark.parametrize("answer", ["ok 😀", "漢字", "ok 😀 "])
def test_every_byte_of_a_last_character_bears_loss(answer):
    unclosed = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] }}{% endfor %}"
    unclosed += "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    messages = [{"role": "user", "content": "Why? "}, {"role": "assistant", "content": answer}]
    assert "".join(loss_texts(messages, unclosed)).strip() == answer.strip()


def test_plain_text_bears_loss_everywhere_and_ends_with_the_end_token():
    tokenizer = tiny_tokenizer()
    input_ids, is_loss = encode_text("the sky", tokenizer=tokenizer)
    assert tokenizer.decode(input_ids) == "the sky<|end|>"
    assert is_loss.tolist() == [False] + [True] * (len(input_ids) - 1)


_CONTENT = st.text(min_size=1, max_size=30).filter(lambda text: text.strip() and "<|" not in text)


@given(st.lists(st.tuples(_CONTENT, _CONTENT), min_size=1, max_size=4))
def test_loss_falls_exactly_on_the_answers_for_any_texts_and_number_of_turns(turns):
    messages = []
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    tokenizer = tiny_tokenizer()
    for template, end in ((BUILT_IN_TEMPLATE, "<|end|>"), (CHATML, "<|im_end|>")):
        input_ids, is_loss = encode_messages(messages, tokenizer=tokenizer, template=template)
        found = tokenizer.decode(input_ids[is_loss])
        expected = "".join(answer + end for _, answer in turns)
        # A token across the border (line ends merge) counts as the answer's, so white space may lead.
        assert "".join(found.split()) == "".join(expected.split())
