"""Every validation example is seen once over all ranks, in fixed rows, in as many micro-batches on every rank."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from fake_shards import FakeShards, fake_domain, fake_domains, source_of

from versatune_ds.data.batch import IGNORE_INDEX
from versatune_ds.data.validation_loader import ValidationLoader
from versatune_ds.domains import DomainSet


def make_loader(shards: list[FakeShards], *, rank: int = 0, world_size: int = 1, rows: int = 2) -> ValidationLoader:
    return ValidationLoader(
        shards,
        domain_set=DomainSet(tuple(shard.name for shard in shards)),
        rows_per_micro_batch=rows,
        row_tokens=32,
        rank=rank,
        world_size=world_size,
    )


def test_examples_are_numbered_domain_by_domain():
    loader = make_loader([fake_domain(0, [4, 6]), fake_domain(1, [8])])
    assert loader.num_examples == 3
    assert loader.example_domain_ids.tolist() == [0, 0, 1]
    assert loader.example_num_loss_tokens.tolist() == [2, 3, 4]


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_every_example_is_seen_once_and_ranks_have_equally_many_micro_batches(world_size: int):
    shards = fake_domains([20, 7, 1], longest=32, seed=3)
    loaders = [make_loader(shards, rank=rank, world_size=world_size) for rank in range(world_size)]
    tokens, losses = Counter(), np.zeros(28, dtype=np.int64)
    for loader in loaders:
        assert len(list(loader)) == loader.num_micro_batches == loaders[0].num_micro_batches
        for batch, example_ids in loader:
            tokens.update(example_ids[example_ids >= 0].tolist())
            np.add.at(losses, example_ids[batch.labels != IGNORE_INDEX].numpy(), 1)
    lengths = np.concatenate([shard.lengths for shard in shards])
    assert [tokens[e] for e in range(28)] == lengths.tolist()
    assert losses.tolist() == loaders[0].example_num_loss_tokens.tolist()


def test_the_example_of_a_token_is_the_one_it_comes_from():
    shards = fake_domains([5, 4], longest=32)
    for batch, example_ids in make_loader(shards):
        for token, example in zip(batch.input_ids[example_ids >= 0], example_ids[example_ids >= 0], strict=True):
            domain_id, index, _ = source_of(int(token))
            assert int(example) == domain_id * 5 + index


def test_rows_are_the_same_in_every_pass_and_loss_tokens_are_counted_over_all_ranks():
    loader = make_loader(fake_domains([9, 9], longest=32))
    for (first, first_ids), (second, second_ids) in zip(loader, loader, strict=True):
        assert torch.equal(first.input_ids, second.input_ids)
        assert torch.equal(first_ids, second_ids)
        assert first.num_loss_tokens_global == loader.example_num_loss_tokens.sum()


def test_without_examples_there_are_no_micro_batches():
    loader = make_loader([fake_domain(0, [])])
    assert (loader.num_examples, list(loader)) == (0, [])


def test_an_example_longer_than_a_row_is_an_error_with_its_index():
    with pytest.raises(ValueError, match="domain 'domain0', validation example 1: 33 tokens"):
        make_loader([fake_domain(0, [3, 33])])
