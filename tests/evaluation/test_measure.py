"""A model evaluated by one process or by several: the losses equal those of transformers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from chat_data import chat_rows, tiny_tokenizer, write_domains, write_jsonl
from tiny_run import tiny_config
from transformers import LlamaConfig, LlamaForCausalLM

from versatune_ds.evaluation.choices import read_choices
from versatune_ds.evaluation.data import Request, evaluation_data
from versatune_ds.evaluation.measure import as_evaluation, measure
from versatune_ds.training.held_out import subsets


@pytest.fixture(scope="module")
def causal_lm():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer()), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def request_of_three(tmp_path_factory):
    folder = write_domains(tmp_path_factory.mktemp("data"), domains=("law", "code", "art"))
    (folder / "valid" / "art.jsonl").unlink()
    write_jsonl(folder / "valid" / "code.jsonl", chat_rows(1, topic="one row"))
    row = {"question": "what is 1 plus 1?", "choices": ["It is 2.", "It is 3."], "answer": 0}
    choices = write_jsonl(folder / "choices" / "sums.jsonl", [row, {**row, "answer": 1}])
    config = tiny_config(folder, "data.synthetic=null", f"data.folder={folder}")
    return Request(config=config, split="valid", choices=read_choices([choices]), num_exact=3)


@pytest.fixture(scope="module")
def data(request_of_three):
    return evaluation_data(request_of_three, tokenizer=tiny_tokenizer())


def loss_of_transformers(causal_lm, input_ids, is_loss):
    labels = torch.where(torch.from_numpy(is_loss), torch.tensor(input_ids).long(), -100)
    loss = causal_lm(input_ids=torch.tensor(input_ids).long()[None], labels=labels[None]).loss
    return float(loss) * int(is_loss.sum())


def evaluated(causal_lm, data):
    return as_evaluation(measure(causal_lm, tiny_tokenizer(), data, rows_per_micro_batch=4), data)


@torch.no_grad()
def test_the_loss_of_every_example_equals_that_of_transformers(causal_lm, data):
    examples = [part.read(i) for part in data.held_out for i in range(part.num_examples)]
    expected = [loss_of_transformers(causal_lm, *example) for example in examples]
    found = evaluated(causal_lm, data)
    np.testing.assert_allclose(found.losses.loss_sum_E, expected, rtol=1e-5)
    assert found.losses.sum_by_domain(found.losses.num_loss_tokens_E > 0).tolist() == [0, 1, 5]
    assert data.domain_set.names == ("art", "code", "law")
    numbers = found.to_dict()
    assert numbers["art"]["loss"] is None
    assert numbers["code"]["loss"] == pytest.approx(expected[0] / data.held_out[1].loss_lengths[0], rel=1e-5)


@torch.no_grad()
def test_the_option_that_transformers_finds_likelier_per_byte_is_chosen(causal_lm, data):
    losses = [loss_of_transformers(causal_lm, *option) for option in data.choices.options]
    found = evaluated(causal_lm, data)
    assert found.choices.is_right_Q.tolist() == [losses[0] <= losses[1], losses[3] < losses[2]]
    assert found.choices.is_right_Q.sum() == 1  # the same options twice, each marked as right once


def test_the_text_that_bears_loss_is_counted_in_bytes(data):
    assert data.num_bytes_K.tolist() == [0, len("It is 0."), sum(len(f"It is {2 * i}.") for i in range(5))]


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_shares_of_all_processes_add_up_to_the_result_of_one(causal_lm, data, world_size):
    of_one_process = measure(causal_lm, tiny_tokenizer(), data, rows_per_micro_batch=1)
    shares = [
        measure(causal_lm, tiny_tokenizer(), data, rows_per_micro_batch=1, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert all((share == 0).any() for share in shares)
    np.testing.assert_allclose(np.sum(shares, axis=0), of_one_process, rtol=1e-6)
    assert as_evaluation(np.sum(shares, axis=0), data).exact.num_questions().tolist() == [0, 1, 3]


def test_the_model_still_returns_logits_after_its_evaluation(causal_lm, data):
    ids = torch.arange(5)[None]
    before = causal_lm(input_ids=ids).logits
    evaluated(causal_lm, data)
    assert torch.equal(causal_lm(input_ids=ids).logits, before)
    assert not causal_lm.training


def test_a_limit_keeps_the_examples_that_a_run_of_so_many_measures(request_of_three, data):
    limited = evaluation_data(replace(request_of_three, limit=2), tokenizer=tiny_tokenizer())
    assert [part.num_examples for part in limited.held_out] == [0, 1, 2]
    law, seed = data.held_out[2], request_of_three.config.run.seed
    (measured,) = subsets([law], max_examples=2, seed=seed)
    for place, index in enumerate(measured.indices):
        np.testing.assert_array_equal(limited.held_out[2].read(place)[0], law.read(int(index))[0])
    assert limited.num_bytes_K[2] < data.num_bytes_K[2]
    one = evaluation_data(replace(request_of_three, limit=1), tokenizer=tiny_tokenizer())
    assert (len(one.choices.answer_Q), len(data.choices.answer_Q)) == (1, 2)
