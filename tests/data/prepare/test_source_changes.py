"""A data file that changes while it is prepared ends the preparation, and nothing of it is used."""

from __future__ import annotations

import os

import pytest
from chat_data import chat_rows, write_domains, write_jsonl
from prepare_data import prepare_folder, small_blocks

from versatune_ds.data.prepare.encode_files import BlockEncoder
from versatune_ds.data.prepare.source_changes import check_unchanged, states_of
from versatune_ds.data.sources import line_ranges


def replaced(path):
    other = write_jsonl(path.with_name("other.jsonl"), chat_rows(1))
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(0, path.stat().st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes() + b" "),
        lambda path: os.utime(path, ns=(0, 1)),
        replaced,
    ],
    ids=["deleted", "longer", "written again", "another file of the same size and time"],
)
def test_a_change_of_any_file_is_found(tmp_path, change):
    files = [write_jsonl(tmp_path / name, chat_rows(2)) for name in ("a.jsonl", "b.jsonl")]
    states = states_of(files)
    check_unchanged(states)
    change(files[1])
    with pytest.raises(RuntimeError, match=r"b\.jsonl: was changed or replaced while it was prepared; start again"):
        check_unchanged(states)


@pytest.mark.parametrize("split", ["train", "valid"])
def test_nothing_of_a_file_that_is_replaced_between_two_blocks_is_stored(tmp_path, monkeypatch, split):
    small_blocks(monkeypatch, num_records=10)
    monkeypatch.setattr(line_ranges, "MIN_BYTES", 1)
    folder = write_domains(tmp_path / "data", num_rows=40, domains=["law"])
    expected = prepare_folder(write_domains(tmp_path / "undisturbed" / "data", num_rows=40, domains=["law"])).digest
    before, encode = (folder / split / "law.jsonl").read_bytes(), BlockEncoder.__call__

    def replace_then_encode(self, block):
        if block.number == 1:
            write_jsonl(folder / split / "law.jsonl", chat_rows(40, topic="other"))
        return encode(self, block)

    with monkeypatch.context() as patch:
        patch.setattr(BlockEncoder, "__call__", replace_then_encode)
        with pytest.raises(RuntimeError, match="changed or replaced"):
            prepare_folder(folder, max_bad_rows=1.0)
    cache = tmp_path / "cache"
    assert not list(cache.glob("law-*"))
    # With the first content again, the kept blocks are used; none of the other content is among them.
    (folder / split / "law.jsonl").write_bytes(before)
    assert prepare_folder(folder).digest == expected
