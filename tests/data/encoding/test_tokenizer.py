"""A trained tokenizer loads through transformers, and its digest changes exactly when token ids could."""

from __future__ import annotations

import pytest
from chat_data import CHATML, tiny_tokenizer
from model_templates import DATED
from transformers import AutoTokenizer

from versatune_ds import log
from versatune_ds.data.encoding.templates import BUILT_IN_TEMPLATE, choose_template, has_fixed_date, template_digest
from versatune_ds.data.encoding.tokenizer import load_tokenizer, render_conversation, tokenizer_digest, train_tokenizer

TEXTS = ["the court held that the clause is void", "what is the answer", "def add(a, b): return a + b"] * 5


def test_a_trained_tokenizer_loads_as_any_other(tmp_path):
    train_tokenizer(TEXTS, vocab_size=300, folder=tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == 300
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<|begin|>", "<|end|>", "<|pad|>")
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3
    assert tokenizer.chat_template == BUILT_IN_TEMPLATE


@pytest.mark.parametrize("text", ["plain", " two  spaces ", "Größe 漢字 😀\r\n\ttab", "\x00\x7f"])
def test_any_text_comes_back_from_its_tokens(text):
    tokenizer = tiny_tokenizer()
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_role_markers_are_single_tokens():
    tokenizer = tiny_tokenizer()
    for marker in ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"):
        assert len(tokenizer(marker)["input_ids"]) == 1


def test_the_same_texts_give_the_same_tokenizer(tmp_path):
    digests = {tokenizer_digest(train_tokenizer(TEXTS, vocab_size=300, folder=tmp_path / str(i))) for i in range(2)}
    assert len(digests) == 1


def test_the_digest_changes_with_the_vocabulary_and_not_with_padding_or_template(tmp_path):
    tokenizer = train_tokenizer(TEXTS, vocab_size=300, folder=tmp_path / "a")
    before = tokenizer_digest(tokenizer)
    tokenizer(["a", "a b c"], padding=True, truncation=True, max_length=2)
    tokenizer.chat_template = CHATML
    assert tokenizer_digest(tokenizer) == before
    assert tokenizer_digest(load_tokenizer(tmp_path / "a")) == before
    assert tokenizer_digest(train_tokenizer(TEXTS, vocab_size=299, folder=tmp_path / "b")) != before
    tokenizer.add_tokens(["<|extra|>"])
    assert tokenizer_digest(tokenizer) != before


def test_a_name_that_loads_nothing_is_reported_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"^model.tokenizer: cannot load '.*nothing_here': ") as caught:
        load_tokenizer(tmp_path / "nothing_here")
    assert "\n" not in str(caught.value)


CONVERSATION = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]


def dated(tmp_path, template):
    """Return the text of a conversation, rendered with a template given as a file."""
    (tmp_path / "dated.jinja").write_text(template)
    log._warn.cache_clear()  # a warning is logged once in a process
    tokenizer = tiny_tokenizer()
    chosen = choose_template(tokenizer, path=tmp_path / "dated.jinja")
    return render_conversation(CONVERSATION, tokenizer=tokenizer, template=chosen)[0]


def test_a_template_that_prints_the_date_prints_the_same_on_every_day(tmp_path, caplog):
    assert dated(tmp_path, DATED) == ("<|system|>Today Date: 26 Jul 2024\n<|user|>Hi<|end|><|assistant|>Hello.<|end|>")
    assert "it is always rendered as of 26 Jul 2024" in caplog.text


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("{{ strftime_now('%Y-%m-%d') }}", "2024-07-26"),
        ("{{ strftime_now('%A, %B %-d, %y at %H:%M') }}", "Friday, July 26, 24 at 00:00"),
        ("{% macro day() %}{{ strftime_now('%d.%m.') }}{% endmacro %}{{ day() }}", "26.07."),
        ("\n  {% set d = strftime_now('%j') %}\n {{ d ~ (100 * 5) }}%", "\n 208500%"),
        ("{% if strftime_now is defined %}{{ strftime_now ('%Y').split('0') }}{% endif %}", "['2', '24']"),
    ],
)
def test_every_spelling_of_a_date_is_fixed_and_nothing_else_changes(tmp_path, written, expected):
    assert dated(tmp_path, written) == expected


def test_a_template_without_a_date_is_left_as_it_is(tmp_path):
    (tmp_path / "other.jinja").write_text("{% if strftime_now is defined %}{% endif %}" + CHATML)
    assert choose_template(tiny_tokenizer(), path=tmp_path / "other.jinja").startswith("{% if")
    assert not has_fixed_date(CHATML)


def test_a_template_that_draws_at_random_is_warned_of(tmp_path, caplog):
    dated(tmp_path, "{{ ['a', 'b'] | random }}")
    assert "the chat template draws at random" in caplog.text


def test_the_given_template_comes_before_the_tokenizers_own_and_the_built_in_one(tmp_path):
    tokenizer = load_tokenizer(train_tokenizer(TEXTS, vocab_size=300, folder=tmp_path).name_or_path)
    (tmp_path / "given.jinja").write_text("given")
    tokenizer.chat_template = CHATML
    assert choose_template(tokenizer, path=tmp_path / "given.jinja") == "given"
    assert choose_template(tokenizer) == CHATML
    tokenizer.chat_template = {"default": "one of several", "tool_use": "another"}
    assert choose_template(tokenizer) == "one of several"
    tokenizer.chat_template = None
    assert choose_template(tokenizer) == BUILT_IN_TEMPLATE
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="neither a chat template nor an end-of-text token"):
        choose_template(tokenizer)
    with pytest.raises(ValueError, match=r"data.chat_template: no such file .*absent.jinja"):
        choose_template(tokenizer, path=tmp_path / "absent.jinja")


def test_template_digests_tell_templates_apart():
    assert template_digest(CHATML) == template_digest(str(CHATML))
    assert template_digest(CHATML) != template_digest(CHATML + " ")
