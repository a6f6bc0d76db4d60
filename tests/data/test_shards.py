"""Shards are read as they were written, without copies, and an error gives the corrupt file."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from versatune_ds.data.prepare import shard_writer
from versatune_ds.data.prepare.shard_writer import ShardWriter
from versatune_ds.data.shards import DomainShards


def write_shards(folder, examples, *, max_tokens=64):
    """Write (input_ids, loss_spans) pairs and return the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = ShardWriter(folder, max_tokens=max_tokens)
    for number, (input_ids, loss_spans) in enumerate(examples):
        spans = np.array(loss_spans, dtype=np.int32)
        writer.add(np.array(input_ids, dtype=np.int32), loss_spans=spans, content_hash=2**63 + number)
    return writer.close(domain="law", split="train", settings={"row_tokens": max_tokens})


def test_examples_are_read_exactly_as_written(tmp_path):
    manifest = write_shards(tmp_path, [([5, 6, 7], [1, 3]), ([8], []), ([1, 2, 3, 4, 5], [1, 2, 3, 5])])
    shards = DomainShards(tmp_path, verify=True)

    assert (shards.name, shards.num_examples, len(shards)) == ("law", 3, 3)
    assert shards.lengths.tolist() == [3, 1, 5]
    assert shards.loss_lengths.tolist() == [2, 0, 3]
    assert shards.content_hashes.tolist() == [2**63, 2**63 + 1, 2**63 + 2]
    assert (manifest.num_tokens, manifest.num_loss_tokens, manifest.longest_tokens) == (9, 5, 5)
    input_ids, is_loss = shards.read(2)
    assert input_ids.tolist() == [1, 2, 3, 4, 5]
    assert is_loss.tolist() == [False, True, False, True, True]


def test_tokens_and_lengths_are_views_of_the_mapped_file(tmp_path):
    write_shards(tmp_path, [(range(50), [1, 50])])
    before = pa.total_allocated_bytes()
    shards = DomainShards(tmp_path)
    input_ids, is_loss = shards.read(0)

    for array in (input_ids, shards.lengths, shards.loss_lengths):
        assert array.dtype == np.int32
        assert not array.flags.owndata
        assert not array.flags.writeable
    assert is_loss.dtype == np.bool_
    assert pa.total_allocated_bytes() == before


def test_every_example_is_found_across_chunks_and_files(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_writer, "_TOKENS_PER_CHUNK", 0)  # the smallest chunk: 64 examples
    monkeypatch.setattr(shard_writer, "_BYTES_PER_FILE", 3000)
    manifest = write_shards(tmp_path, [([i, i + 1], [1, 2]) for i in range(1000)])
    shards = DomainShards(tmp_path, verify=True)

    assert len(manifest.files) > 2
    assert sum(file.num_examples for file in manifest.files) == 1000
    assert [shards.read(i)[0].tolist() for i in range(1000)] == [[i, i + 1] for i in range(1000)]


@given(
    st.lists(
        st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=20).flatmap(
            lambda ids: st.tuples(st.just(ids), st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
        ),
        max_size=12,
    )
)
def test_any_tokens_and_any_mask_are_read_as_written(tmp_path_factory, examples):
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, [(ids, spans_of([False, *mask[1:]])) for ids, mask in examples])
    shards = DomainShards(folder)

    assert shards.num_examples == len(examples)
    for i, (ids, mask) in enumerate(examples):
        input_ids, is_loss = shards.read(i)
        assert input_ids.tolist() == ids
        assert is_loss.tolist() == [False, *mask[1:]]
        assert shards.loss_lengths[i] == sum(mask[1:])


def spans_of(mask):
    """Return flat (start, end) pairs of the true stretches of a mask."""
    borders = np.flatnonzero(np.diff(np.array([False, *mask, False]).astype(int)))
    return borders.tolist()


@pytest.mark.parametrize("index", [-1, 2, 16384])
def test_an_index_out_of_range_is_refused(tmp_path, index):
    write_shards(tmp_path, [([1], []), ([2], [])])
    with pytest.raises(IndexError):
        DomainShards(tmp_path).read(index)


@pytest.mark.parametrize("name", ["tokens-00000.arrow", "index.arrow"])
def test_one_changed_byte_is_an_error_if_digests_are_checked(tmp_path, name):
    write_shards(tmp_path, [(range(60), [1, 60])] * 5)
    content = bytearray((tmp_path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / name).write_bytes(content)

    DomainShards(tmp_path)
    with pytest.raises(RuntimeError, match=rf"{name}: corrupt shard: digest .* delete .* prepare again"):
        DomainShards(tmp_path, verify=True)


def test_a_truncated_shard_is_an_error_when_it_is_opened(tmp_path):
    write_shards(tmp_path, [(range(60), [1, 60])] * 5)
    path = tmp_path / "tokens-00000.arrow"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(RuntimeError, match=r"tokens-00000.arrow: corrupt shard: \d+ bytes, expected \d+"):
        DomainShards(tmp_path)


def test_a_shard_whose_end_was_lost_in_a_crash_is_an_error_when_it_is_opened(tmp_path):
    write_shards(tmp_path, [(range(60), [1, 60])] * 5)
    path = tmp_path / "tokens-00000.arrow"
    path.write_bytes(path.read_bytes()[:-10] + bytes(10))
    with pytest.raises(RuntimeError, match=r"tokens-00000.arrow: corrupt shard: no Arrow header and footer"):
        DomainShards(tmp_path)


def test_a_folder_without_manifest_is_incomplete(tmp_path):
    write_shards(tmp_path, [([1], [])])
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(RuntimeError, match=r"manifest.json: missing, so these shards are incomplete"):
        DomainShards(tmp_path)


def test_another_format_version_is_refused(tmp_path):
    write_shards(tmp_path, [([1], [])])
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    with pytest.raises(RuntimeError, match="format 99, expected 1"):
        DomainShards(tmp_path)


def test_the_digest_depends_on_tokens_mask_and_order(tmp_path):
    one, two = ([1, 2], [1, 2]), ([3, 4], [1, 2])
    folders = {"same": [one, two], "again": [one, two], "order": [two, one], "mask": [one, ([3, 4], [])]}
    digests = {name: write_shards(tmp_path / name, examples).digest for name, examples in folders.items()}
    assert digests["same"] == digests["again"]
    assert len({digests["same"], digests["order"], digests["mask"]}) == 3


def test_the_files_are_plain_arrow_files(tmp_path):
    write_shards(tmp_path, [([5, 6, 7], [1, 3])])
    table = pa.ipc.open_file(tmp_path / "tokens-00000.arrow").read_all()
    assert table.to_pylist() == [{"input_ids": [5, 6, 7], "loss_spans": [1, 3]}]
