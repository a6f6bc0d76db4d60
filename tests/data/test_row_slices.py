"""Rows that ranks share are cut without losing a token, a label or a position."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from one_batch import micro_batch
from tiny_models import pack

from versatune_ds.data.batch import IGNORE_INDEX
from versatune_ds.data.row_slices import RowShare, row_share, slice_batch

COLUMNS = ("input_ids", "labels", "positions", "domain_ids", "segment_ids")


def slices_of(batch, *, num_slices):
    return [
        slice_batch(batch, RowShare(group=0, num_groups=1, slice_index=i, num_slices=num_slices))
        for i in range(num_slices)
    ]


def test_sequence_parallel_labels_the_last_token_of_a_slice_with_the_first_of_the_next():
    row = pack([[11, 12, 13, 14], [21, 22]], row_tokens=6)
    left, right = slices_of(micro_batch([row], num_loss_tokens_global=4), num_slices=2)
    assert left.labels.tolist() == [[12, 13, 14]]
    assert right.labels.tolist() == [[IGNORE_INDEX, 22, IGNORE_INDEX]]
    assert right.positions.tolist() == [[3, 0, 1]]
    assert (left.num_valid, right.num_valid) == (3, 1)
    assert left.row_positions.tolist() == [[0, 1, 2, 3, 0, 1]]
    assert right.cu_seqlens.tolist() == [0, 4, 6]


def test_sequence_parallel_groups_neighbouring_ranks():
    shares = [row_share(rank=rank, world_size=6, num_slices=3) for rank in range(6)]
    assert [(share.group, share.slice_index) for share in shares] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert {share.num_groups for share in shares} == {2}


def test_sequence_parallel_refuses_ranks_that_do_not_divide_into_groups():
    with pytest.raises(ValueError, match=r"^train.sequence_parallel: 4 processes share a row, but 6 do not divide"):
        row_share(rank=0, world_size=6, num_slices=4)


@given(
    rows=st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=4), min_size=1, max_size=3),
    num_slices=st.sampled_from([1, 2, 3, 4, 6, 8]),
)
@settings(max_examples=50, deadline=None)
def test_sequence_parallel_slices_join_to_the_rows_and_cover_every_label_once(rows, num_slices):
    packed = [pack([list(range(3, 3 + length)) for length in lengths], row_tokens=48) for lengths in rows]
    batch = micro_batch(packed, num_loss_tokens_global=7)
    slices = slices_of(batch, num_slices=num_slices)
    for name in COLUMNS:
        assert torch.equal(torch.cat([getattr(part, name) for part in slices], dim=1), getattr(batch, name)), name
    assert sum(part.num_valid for part in slices) == batch.num_valid
    for part in slices:
        kept = part.labels.reshape(-1)[part.valid_index[: part.num_valid]]
        assert (kept != IGNORE_INDEX).all()
        assert part.num_loss_tokens_global == 7
        assert part.longest_segment == batch.longest_segment
