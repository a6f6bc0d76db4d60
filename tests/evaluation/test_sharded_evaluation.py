"""A model whose weights are divided over the ranks (ZeRO-3) is evaluated to the result of one process."""

import numpy as np
import pytest
import torch
from chat_data import tiny_tokenizer, write_domains, write_jsonl
from ranks import run_ranks
from tiny_run import tiny_config
from transformers import LlamaConfig, LlamaForCausalLM

from versatune_ds.engine.sharded_model import sharded_config
from versatune_ds.evaluation.choices import read_choices
from versatune_ds.evaluation.data import Request, evaluation_data
from versatune_ds.evaluation.equal_batches import batches_of, num_batches_of_every_rank
from versatune_ds.evaluation.measure import measure
from versatune_ds.evaluation.subject import Subject, load_subject

WORLD_SIZE = 2


@pytest.fixture(scope="module")
def request_of_two(tmp_path_factory):
    folder = write_domains(tmp_path_factory.mktemp("data"), domains=("law", "code"))
    rows = [
        {"question": "what is 1 plus 1?" * (1 + i), "choices": ["It is 2.", "It is 3, or more."], "answer": i % 2}
        for i in range(3)
    ]
    choices = write_jsonl(folder / "choices" / "sums.jsonl", rows)
    config = tiny_config(folder, "data.synthetic=null", f"data.folder={folder}")
    return Request(config=config, split="valid", choices=read_choices([choices]), num_exact=3)


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    torch.manual_seed(0)
    folder = str(tmp_path_factory.mktemp("model"))
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer()), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return Subject(name="model", folder=folder, tokenizer=folder)


def test_sharded_evaluation_gives_the_losses_answers_and_choices_of_one_process(subject, request_of_two, tmp_path):
    data = evaluation_data(request_of_two, tokenizer=tiny_tokenizer())
    causal_lm, tokenizer = load_subject(subject, request_of_two.config)
    num_weights = sum(part.numel() for part in causal_lm.parameters())
    expected = measure(causal_lm, tokenizer, data, rows_per_micro_batch=1)

    def evaluated(world):
        ds_config = sharded_config(request_of_two.config.train)
        sharded, _ = load_subject(subject, request_of_two.config, zero3_config=ds_config)
        # After loading, before the first pass: placeholders, and this rank's part of each weight.
        stored = sum(part.numel() + part.ds_tensor.numel() for part in sharded.parameters())
        share = measure(
            sharded, tokenizer, data, rows_per_micro_batch=1, rank=world.rank, world_size=world.world_size,
            ds_config=ds_config,
        )  # fmt: skip
        return share, stored

    shares = run_ranks(evaluated, world_size=WORLD_SIZE, folder=tmp_path)
    np.testing.assert_allclose(sum(share for share, _ in shares), expected, rtol=1e-5)
    assert all(stored <= num_weights // WORLD_SIZE + 64 for _, stored in shares)
    assert expected[len(expected) - 6 :].min() > 0  # the options' losses


@pytest.mark.parametrize(
    ("num_questions", "expected"), [(0, [[], []]), (1, [[[0]], [()]]), (5, [[[0, 2], [4]], [[1, 3], ()]])]
)
def test_in_sharded_evaluation_every_rank_has_the_same_number_of_batches(num_questions, expected):
    count = num_batches_of_every_rank(num_questions, world_size=2, batch_size=2)
    found = [batches_of(list(range(rank, num_questions, 2)), batch_size=2, num_batches=count) for rank in range(2)]
    assert found == expected
