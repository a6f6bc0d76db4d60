"""Rows become tensors whose labels never cross an example and whose loss tokens are counted correctly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fake_shards import FakeShards, fake_domain

from versatune_ds.data.batch import IGNORE_INDEX, Batch, padded_valid_index, segment_bounds
from versatune_ds.data.collate import collate_rows
from versatune_ds.data.order.plan import Placement


def placement_of(*examples: tuple[int, int, int, int, int, int]) -> Placement:
    """Return a placement of (domain, index, length, loss_length, row, offset)."""
    columns = np.array(examples, dtype=np.int64).T
    names = ("domain_id_E", "index_E", "length_E", "loss_length_E", "row_E", "offset_E")
    return Placement(**dict(zip(names, columns, strict=True)))


def collate(placement: Placement, shards: list[FakeShards], **where) -> Batch:
    shape = {"first_row": 0, "num_rows": 2, "row_tokens": 6, **where}
    return collate_rows(placement, **shape, shards=shards, pad_token_id=9)


@pytest.fixture
def shards() -> list[FakeShards]:
    return [fake_domain(0, [3, 2]), fake_domain(1, [4])]


@pytest.fixture
def placement() -> Placement:
    return placement_of((0, 0, 3, 1, 0, 0), (0, 1, 2, 1, 0, 3), (1, 0, 4, 2, 1, 0))


def test_columns_restart_with_every_example_of_a_row(placement: Placement, shards: list[FakeShards]):
    batch = collate(placement, shards)
    long = 1_000_000_000
    assert batch.input_ids.tolist() == [[0, 1, 2, 1000, 1001, 9], [long, long + 1, long + 2, long + 3, 9, 9]]
    no = IGNORE_INDEX
    assert batch.labels.tolist() == [[no, 2, no, 1001, no, no], [no, long + 2, long + 3, no, no, no]]
    assert batch.positions.tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 0, 1]]
    assert batch.domain_ids.tolist() == [[0] * 6, [1, 1, 1, 1, 0, 0]]
    assert batch.segment_ids.tolist() == [[0, 0, 0, 1, 1, 2], [0, 0, 0, 0, 1, 1]]
    assert batch.num_valid == 4
    assert batch.valid_index.tolist() == [1, 3, 7, 8] + [0] * 124
    assert batch.cu_seqlens.tolist() == [0, 3, 5, 6, 10, 12]
    assert (batch.cu_seqlens.dtype, batch.longest_segment) == (torch.int32, 4)
    assert batch.num_loss_tokens_global == 4
    assert {column.dtype for column in (batch.input_ids, batch.labels, batch.valid_index)} == {torch.int64}


def test_the_first_token_of_an_example_is_never_a_target():
    class AllLoss(FakeShards):
        def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
            input_ids, is_loss = super().read(index)
            return input_ids, np.ones_like(is_loss)

    lengths = np.array([3, 2], dtype=np.int32)
    batch = collate(
        placement_of((0, 0, 3, 2, 0, 0), (0, 1, 2, 1, 0, 3)), [AllLoss("law", 0, lengths, lengths - 1)], num_rows=1
    )
    assert batch.labels.tolist() == [[1, 2, IGNORE_INDEX, 1001, IGNORE_INDEX, IGNORE_INDEX]]


def test_rows_after_the_last_planned_one_are_padding(placement: Placement, shards: list[FakeShards]):
    batch = collate(placement, shards, first_row=1)
    assert batch.input_ids[1].tolist() == [9] * 6
    assert batch.positions[1].tolist() == [0, 1, 2, 3, 4, 5]
    assert (batch.labels[1] == IGNORE_INDEX).all()
    empty = collate(placement, shards, first_row=2)
    assert (empty.num_valid, empty.valid_index.tolist()) == (0, [0] * 128)


def test_segments_end_with_their_row_also_where_it_is_full_and_where_it_is_empty():
    full, empty = np.array([[0, 1, 0]]), np.array([[0, 1, 2]])
    bounds, longest = segment_bounds(np.concatenate([full, empty, full]))
    assert (bounds.tolist(), longest) == ([0, 2, 3, 6, 8, 9], 3)


def test_valid_index_is_padded_with_an_ignored_position():
    labels_N = np.array([5, IGNORE_INDEX, 6] + [7] * 126 + [IGNORE_INDEX])
    valid_index, num_valid = padded_valid_index(labels_N)
    assert (num_valid, len(valid_index)) == (128, 128)
    valid_index, num_valid = padded_valid_index(np.array([5, 5, 5, IGNORE_INDEX] * 43))
    assert (num_valid, len(valid_index)) == (129, 256)
    assert set(valid_index[129:].tolist()) == {3}


def test_an_example_longer_or_shorter_than_planned_is_an_error_with_its_index(shards: list[FakeShards]):
    with pytest.raises(RuntimeError, match="domain 'domain0', example 1: 2 tokens, expected 3 as in the index"):
        collate(placement_of((0, 1, 3, 1, 0, 0)), shards)


def test_an_example_with_other_loss_tokens_than_planned_is_an_error_with_its_index(shards: list[FakeShards]):
    with pytest.raises(RuntimeError, match="domain 'domain1', example 0: 2 tokens bear loss, expected 3"):
        collate(placement_of((0, 0, 3, 1, 0, 0), (1, 0, 4, 3, 1, 0)), shards)
