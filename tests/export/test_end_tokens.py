"""An exported model stops at the tokens that ended answers in training."""

import json

import numpy as np
import pytest
from chat_data import encode_text
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from versatune_ds.data.encoding.encode import encode_messages
from versatune_ds.training.end_tokens import ends_of_examples, ends_of_template, stop_at_ends, stops_of

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QUESTION, ANSWER = {"role": "user", "content": "why?"}, {"role": "assistant", "content": "so."}


@pytest.fixture(scope="module")
def tokenizer():
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    backend.train_from_iterator(["why? so."], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>", chat_template=CHATML)


@pytest.mark.parametrize("loss_on", ["assistant", "all"])
def test_the_token_that_ends_a_turn_is_found_among_the_loss_tokens(tokenizer, loss_on):
    example = encode_messages([QUESTION, ANSWER], tokenizer=tokenizer, template=CHATML, loss_on=loss_on)
    assert ends_of_examples([example], tokenizer=tokenizer) == [2]


def test_plain_text_ends_with_the_end_of_text_token(tokenizer):
    assert ends_of_examples([encode_text("so it is", tokenizer=tokenizer)], tokenizer=tokenizer) == [0]


def test_the_end_tokens_of_chats_and_plain_texts_are_found_and_rare_ones_ignored(tokenizer):
    chat = encode_messages([QUESTION, ANSWER], tokenizer=tokenizer, template=CHATML)
    text = encode_text("so it is", tokenizer=tokenizer)
    odd = (np.array([5, 1]), np.array([False, True]))
    assert ends_of_examples([chat] * 150 + [text] * 150 + [odd], tokenizer=tokenizer) == [0, 2]


def test_an_example_that_ends_in_a_word_has_no_end_token(tokenizer):
    assert ends_of_examples([(np.array([5, 6]), np.array([False, True]))], tokenizer=tokenizer) == []
    assert ends_of_examples([], tokenizer=tokenizer) == []


def test_the_end_token_of_a_template_is_found_by_rendering_a_turn(tokenizer):
    assert ends_of_template(tokenizer, CHATML) == [2]
    assert ends_of_template(tokenizer, "{% for m in messages %}{{ m['content'] }}{% endfor %}") == []
    assert ends_of_template(tokenizer, "{{ raise_exception('no') }}") == []


@pytest.mark.parametrize(("before", "after"), [(0, [0, 2]), ([0, 2], [0, 2]), ([7, 0], [7, 0, 2]), (None, 2)])
def test_end_tokens_are_added_to_the_existing_ones(tmp_path, tokenizer, before, after):
    for name in ("generation_config.json", "config.json"):
        (tmp_path / name).write_text(json.dumps({"eos_token_id": before, "temperature": 0.0, "do_sample": False}))
    stop_at_ends(tmp_path, [2], tokenizer=tokenizer)
    for name in ("generation_config.json", "config.json"):
        values = json.loads((tmp_path / name).read_text())
        assert (values["eos_token_id"], values["temperature"]) == (after, 0.0)  # though invalid


def test_stop_tokens_are_collected_from_all_settings():
    class Settings:
        def __init__(self, ids):
            self.eos_token_id = ids

    assert stops_of(Settings(3), Settings([1, 3]), Settings(None), None) == [3, 1]
