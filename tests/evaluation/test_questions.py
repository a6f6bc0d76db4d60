"""Questions are made from examples, and answers compared as text."""

from types import SimpleNamespace

import numpy as np
import torch
from chat_data import chat_row, encode_text, tiny_tokenizer

from versatune_ds.data.encoding.encode import encode_messages
from versatune_ds.evaluation.questions import answer_greedily, find_questions, text_of_answer


class ExamplesInMemory:
    """Stand-in for the shards of one domain, with the examples in memory."""

    def __init__(self, name, examples):
        self.name, self.read, self.num_examples = name, examples.__getitem__, len(examples)
        self.lengths = np.array([len(input_ids) for input_ids, _ in examples])


def shards(name, *rows):
    tokenizer = tiny_tokenizer()
    return ExamplesInMemory(
        name,
        [
            encode_text(row, tokenizer=tokenizer)
            if isinstance(row, str)
            else encode_messages(row["messages"], tokenizer=tokenizer, template=tokenizer.chat_template)
            for row in rows
        ],
    )


def found(*parts, max_per_domain=10, row_tokens=64):
    return find_questions(parts, max_per_domain=max_per_domain, row_tokens=row_tokens)


def text(ids):
    return tiny_tokenizer().decode(list(map(int, ids)))


def test_a_question_ends_before_the_last_answer():
    two_turns = {"messages": chat_row("one", "1")["messages"] + chat_row("two", "2")["messages"]}
    (question,) = found(shards("law", two_turns))
    assert text(question.prompt_ids) == (
        "<|begin|><|user|>\none\n<|assistant|>\n1<|end|>\n<|user|>\ntwo\n<|assistant|>\n"
    )
    assert text(question.answer_ids) == "2<|end|>"


def test_plain_text_and_examples_as_long_as_a_row_give_no_question():
    part = shards("law", "just a text", chat_row("q", "a"))
    assert [text(question.answer_ids) for question in found(part)] == ["a<|end|>"]
    assert found(part, row_tokens=int(part.lengths[1])) == ()


def test_the_same_questions_are_chosen_every_time():
    parts = [shards(name, *(chat_row(f"{name} {i}", f"{i}") for i in range(20))) for name in ("law", "code")]
    first, second = found(*parts, max_per_domain=5), found(*parts, max_per_domain=5)
    assert [question.domain_id for question in first] == [0] * 5 + [1] * 5
    assert [text(q.prompt_ids) for q in first] == [text(q.prompt_ids) for q in second]
    assert found(*parts, max_per_domain=0) == ()


class Parrot:
    """Stand-in for a model: answers known prompts with given tokens, then padding."""

    device = torch.device("cpu")
    config = SimpleNamespace(_attn_implementation="sdpa", get_text_config=lambda decoder: SimpleNamespace())

    def __init__(self, known):
        self.known = known
        self.asked = []

    def generate(self, ids, *, attention_mask, max_new_tokens, eos_token_id, pad_token_id, **settings):
        assert settings["do_sample"] is False
        self.asked.append((tuple(ids.shape), max_new_tokens))
        new = torch.full((len(ids), max_new_tokens), pad_token_id)
        for b, (row, mask) in enumerate(zip(ids, attention_mask, strict=True)):
            answer = self.known[text(row[mask.bool()])][:max_new_tokens]
            new[b, : len(answer)] = torch.tensor(answer)
        return torch.cat([ids, new], dim=1)


def test_answers_are_in_the_order_of_the_questions_and_stop_at_the_end_of_the_turn():
    questions = found(
        shards("law", chat_row("a long long question", "yes"), chat_row("q", "no"), chat_row("qq", "maybe"))
    )
    stop = tiny_tokenizer().eos_token_id
    replies = [" yes \n", "now", "maybe"]
    known = {
        text(question.prompt_ids): [*tiny_tokenizer()(reply, add_special_tokens=False).input_ids, stop, 7]
        for question, reply in zip(questions, replies, strict=True)
    }
    model = Parrot(known)
    written = answer_greedily(model, questions, tokenizer=tiny_tokenizer(), batch_size=2)
    expected = [text_of_answer(question.answer_ids, tokenizer=tiny_tokenizer()) for question in questions]
    assert expected == ["yes", "no", "maybe"]
    assert written[0] == "yes"
    assert [given == wanted for given, wanted in zip(written, expected, strict=True)] == [True, False, True]
    assert [shape[0] for shape, _ in model.asked] == [2, 1]


def test_an_answer_that_continues_after_the_right_one_is_wrong():
    (question,) = found(shards("law", chat_row("q", "no")))
    endless = np.tile(question.answer_ids[:-1], 9).tolist()
    (written,) = answer_greedily(Parrot({text(question.prompt_ids): endless}), [question], tokenizer=tiny_tokenizer())
    assert written.startswith("no")
    assert written != "no"
