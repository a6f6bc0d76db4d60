"""Repeated contents are counted exactly, whether their hashes fit into memory or lie in files."""

from __future__ import annotations

import tempfile
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from versatune_ds.data.prepare import content_hashes
from versatune_ds.data.prepare.content_hashes import ContentHashes

_LARGEST = 2**64 - 1
_HASHES = st.lists(st.sampled_from([0, 1, 2, 2**56 - 1, 2**56, 2**63, _LARGEST - 1, _LARGEST]), max_size=30)


def hashes_of(folder, batches):
    hashes = ContentHashes(folder)
    for batch in batches:
        hashes.add(np.array(batch, dtype=np.uint64))
    return hashes


def test_three_records_of_one_content_are_two_duplicates(tmp_path):
    assert hashes_of(tmp_path / "a", [[7, 8], [7, 7]]).num_duplicates() == 2


def test_every_held_out_record_with_a_content_of_train_is_counted(tmp_path):
    train = hashes_of(tmp_path / "train", [[7, 7, _LARGEST]])
    assert hashes_of(tmp_path / "valid", [[7, 5], [7, _LARGEST]]).num_in(train) == 3


def test_a_split_without_records_has_no_duplicates(tmp_path):
    assert hashes_of(tmp_path / "a", []).num_duplicates() == 0
    assert hashes_of(tmp_path / "a", []).num_in(hashes_of(tmp_path / "b", [[1]])) == 0


def test_hashes_beyond_the_buffer_are_in_files_until_they_are_deleted(tmp_path, monkeypatch):
    monkeypatch.setattr(content_hashes, "_NUM_BUFFERED", 2)
    hashes = hashes_of(tmp_path / "a", [[7, 8], [7, 2**63]])
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["000.hashes", "128.hashes"]
    assert hashes.num_duplicates() == 1
    hashes.delete()
    assert not (tmp_path / "a").exists()


@settings(max_examples=25)
@given(
    train=st.lists(_HASHES, max_size=3), valid=st.lists(_HASHES, max_size=3), num_buffered=st.sampled_from([1, 3, 1000])
)
def test_counts_equal_those_of_all_hashes_at_once(train, valid, num_buffered):
    all_train, all_valid = list(chain(*train)), list(chain(*valid))
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(content_hashes, "_NUM_BUFFERED", num_buffered)
        in_train, in_valid = hashes_of(Path(folder, "t"), train), hashes_of(Path(folder, "v"), valid)
        assert in_train.num_duplicates() == len(all_train) - len(set(all_train))
        assert in_valid.num_in(in_train) == sum(value in set(all_train) for value in all_valid)
