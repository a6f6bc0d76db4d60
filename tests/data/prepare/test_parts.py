"""A killed preparation continues where it was, and gives the bytes of an undisturbed one."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import random
import re
import signal
import sys
import tempfile
import time
from pathlib import Path

import pytest
from chat_data import chat_rows, write_domains, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st
from prepare_data import prepare_folder, small_blocks

from versatune_ds.data.prepare import domains, encode_files, parts, record_blocks
from versatune_ds.data.prepare.encode_files import BlockEncoder
from versatune_ds.data.prepare.encode_records import OUTPUT_SCHEMA, RecordEncoder
from versatune_ds.data.prepare.parts import Part, PartsFolder
from versatune_ds.data.prepare.record_blocks import Place, read_blocks
from versatune_ds.data.sources import line_ranges
from versatune_ds.run_folder import file_lock
from versatune_ds.run_folder.disk_errors import DiskError

_NUM_ROWS, _NUM_PER_BLOCK = 60, 10
PLACE_OF_BEGINNING = Place(0, 0)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A domain of 6 blocks of training rows and one of held-out rows."""
    small_blocks(monkeypatch, num_records=_NUM_PER_BLOCK)
    return write_domains(tmp_path / "data", num_rows=_NUM_ROWS, domains=["law"])


@pytest.fixture
def expected(tmp_path):
    """The digest of the domain, prepared undisturbed and in blocks of the usual size."""
    return prepare_folder(write_domains(tmp_path / "undisturbed" / "data", num_rows=_NUM_ROWS, domains=["law"])).digest


def killed_at(folder, monkeypatch, target, name, *, call=1, **options):
    """Prepare in a process that is killed when it enters a function for the n-th time."""
    original, calls = getattr(target, name), []

    def count(*args, **kwargs):
        calls.append(name)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(target, name, count)
        process = multiprocessing.get_context("fork").Process(target=prepare_folder, args=(folder,), kwargs=options)
        process.start()
        process.join(timeout=60)
    assert process.exitcode == -signal.SIGKILL


def numbers_encoded(monkeypatch):
    """Return a list to which the numbers of encoded blocks will be added."""
    numbers, encode = [], BlockEncoder.__call__
    monkeypatch.setattr(
        BlockEncoder, "__call__", lambda self, block: numbers.append(block.number) or encode(self, block)
    )
    return numbers


def parts_of(folder):
    return sorted((folder.parent / "cache").glob(".parts-law-*/*/*.arrow"))


def is_cleared(folder):
    return not list((folder.parent / "cache").glob(".parts-*"))


@pytest.mark.parametrize("call", [1, 4, 7])
def test_finished_blocks_are_not_encoded_again(folder, expected, monkeypatch, caplog, call):
    killed_at(folder, monkeypatch, BlockEncoder, "__call__", call=call)
    assert len(parts_of(folder)) == call - 1
    numbers = numbers_encoded(monkeypatch)
    with caplog.at_level("INFO"):
        assert prepare_folder(folder).digest == expected
    assert numbers == [0, 1, 2, 3, 4, 5, 0][call - 1 :]
    assert ("law: 30 of 60 rows already tokenised" in caplog.text) == (call == 4)
    assert is_cleared(folder)


def test_files_whose_records_are_all_encoded_are_not_read_again(folder, monkeypatch):
    for number in (1, 2):
        write_jsonl(folder / "train" / "law" / f"{number}.jsonl", chat_rows(30, topic=str(number)))
    (folder / "train" / "law.jsonl").unlink()
    killed_at(folder, monkeypatch, BlockEncoder, "__call__", call=5)
    files, read_records = [], record_blocks.read_records
    monkeypatch.setattr(record_blocks, "read_records", lambda path: files.append(path.name) or read_records(path))
    prepare_folder(folder)
    assert files == ["2.jsonl", "law.jsonl"], "held-out rows are encoded, and counted before the kill"


@pytest.mark.parametrize("stage", [(PartsFolder, "keep_num_records"), (os, "replace"), (domains, "_check_built")])
def test_a_kill_at_other_moments_loses_no_finished_block(folder, expected, monkeypatch, stage):
    killed_at(folder, monkeypatch, *stage)
    assert prepare_folder(folder).digest == expected
    assert is_cleared(folder)


def test_parts_left_by_a_kill_behind_the_last_step_are_deleted_at_the_next_start(folder, expected, monkeypatch):
    killed_at(folder, monkeypatch, parts, "delete_parts")
    assert list((folder.parent / "cache").glob("law-*"))
    assert len(parts_of(folder)) == 7
    assert prepare_folder(folder).digest == expected
    assert is_cleared(folder)


def test_a_part_with_a_changed_byte_is_encoded_again(folder, expected, monkeypatch):
    killed_at(folder, monkeypatch, BlockEncoder, "__call__", call=5)
    path = parts_of(folder)[1]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    numbers = numbers_encoded(monkeypatch)
    assert prepare_folder(folder).digest == expected
    assert numbers == [1, 4, 5, 0]


def test_parts_of_other_settings_are_deleted_unless_they_are_in_use(folder, monkeypatch):
    killed_at(folder, monkeypatch, BlockEncoder, "__call__", call=3)
    cache = folder.parent / "cache"
    (stale,) = cache.glob(".parts-law-*")
    other_domain = cache / ".parts-law-2-0123456789abcdef"
    other_domain.mkdir()
    with file_lock.locked(cache / "locks" / stale.name.removeprefix(".parts-"), what="it"):
        _in_a_process(prepare_folder, folder, row_tokens=100)
    assert stale.exists()
    _in_a_process(prepare_folder, folder, row_tokens=101)
    assert not stale.exists()
    assert other_domain.exists()


def _in_a_process(function, *args, **kwargs):
    process = multiprocessing.get_context("fork").Process(target=function, args=args, kwargs=kwargs)
    process.start()
    process.join(timeout=60)
    assert process.exitcode == 0


def test_refused_data_are_not_encoded_again_when_more_bad_rows_are_allowed(folder, monkeypatch):
    write_jsonl(folder / "train" / "law.jsonl", [*chat_rows(30), *["{broken"] * 30])
    with pytest.raises(ValueError, match="bad rows"):
        prepare_folder(folder)
    numbers = numbers_encoded(monkeypatch)
    assert prepare_folder(folder, max_bad_rows=0.5).counts[0].num_bad_rows == 30
    assert numbers == []
    assert is_cleared(folder)


def test_parts_of_refused_data_are_deleted_once_the_data_are_mended(folder):
    write_jsonl(folder / "train" / "law.jsonl", [*chat_rows(30), *["{broken"] * 30])
    with pytest.raises(ValueError, match="bad rows"):
        prepare_folder(folder)
    assert len(parts_of(folder)) == 7
    write_jsonl(folder / "train" / "law.jsonl", chat_rows(30))
    prepare_folder(folder)
    assert is_cleared(folder)


def test_parts_of_a_domain_that_is_gone_are_deleted_after_a_month(folder):
    ages = {"new": 29, "old": 31}
    for name, num_days in ages.items():
        old = folder.parent / "cache" / f".parts-{name}-0123456789abcdef" / "train-0"
        old.mkdir(parents=True)
        for path in (old, old.parent):
            os.utime(path, (0, time.time() - num_days * 24 * 3600))
    prepare_folder(folder)
    assert [path.name for path in (folder.parent / "cache").glob(".parts-*")] == [".parts-new-0123456789abcdef"]


@pytest.mark.parametrize("num_per_block", [7, 15, 20])
@pytest.mark.parametrize("is_divided", [False, True])
def test_parts_of_another_block_size_lose_and_repeat_no_row(folder, expected, monkeypatch, num_per_block, is_divided):
    monkeypatch.setattr(line_ranges, "MIN_BYTES", 1 if is_divided else 1 << 23)
    killed_at(folder, monkeypatch, BlockEncoder, "__call__", call=5)
    parts_of(folder)[1].unlink()
    small_blocks(monkeypatch, num_records=num_per_block)
    killed_at(folder, monkeypatch, BlockEncoder, "__call__", call=3)
    small_blocks(monkeypatch, num_records=_NUM_PER_BLOCK)
    prepared = prepare_folder(folder)
    assert prepared.counts[0].num_rows == _NUM_ROWS
    assert prepared.digest == expected


def test_a_part_that_begins_elsewhere_than_the_one_before_it_ends_is_not_used(folder, expected, monkeypatch):
    killed_at(folder, monkeypatch, BlockEncoder, "__call__", call=5)
    second = parts_of(folder)[1]
    second.rename(second.with_name(second.name.replace("000001-10-0-10-0-20-", "000001-10-0-15-0-20-")))
    numbers = numbers_encoded(monkeypatch)
    assert prepare_folder(folder).digest == expected
    assert numbers == [1, 4, 5, 0]


def test_a_part_that_ends_elsewhere_than_its_block_is_deleted(folder, expected, monkeypatch):
    killed_at(folder, monkeypatch, BlockEncoder, "__call__", call=5)
    first, _, third, _ = parts_of(folder)
    first.unlink()
    wrong = third.rename(third.with_name(third.name.replace("000002-10-0-20-0-30-", "000002-11-0-20-0-31-")))
    numbers, deleted = numbers_encoded(monkeypatch), []
    monkeypatch.setattr(parts, "delete_parts", lambda _: deleted.append(not wrong.exists()))
    assert prepare_folder(folder).digest == expected
    assert (numbers, deleted) == ([0, 2, 4, 5, 0], [True])


def test_parts_in_the_form_of_another_version_are_deleted(folder, expected, monkeypatch, caplog):
    killed_at(folder, monkeypatch, BlockEncoder, "__call__", call=5)
    monkeypatch.setattr(parts, "_PARTS_VERSION", 99)
    numbers = numbers_encoded(monkeypatch)
    with caplog.at_level("INFO"):
        assert prepare_folder(folder).digest == expected
    assert numbers == [0, 1, 2, 3, 4, 5, 0]
    assert "encoded by another version" in caplog.text


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_a_full_disk_is_an_error_with_the_folder_and_what_to_do(tmp_path):
    kept = PartsFolder(tmp_path, split="train")
    (kept.folder / f".000003.{os.getpid()}.partial").symlink_to("/dev/full")
    with pytest.raises(DiskError) as caught:
        kept.write(OUTPUT_SCHEMA.empty_table(), number=3, num_records=0, start=Place(0, 0), end=Place(0, 0))
    assert str(kept.folder) in str(caught.value)
    assert "free space there and start again: finished blocks are kept" in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value), "it comes from another process"
    assert list(kept.folder.iterdir()) == []


def test_progress_counts_blocks_of_an_interrupted_call_as_done_but_not_as_work(folder, monkeypatch):
    killed_at(folder, monkeypatch, BlockEncoder, "__call__", call=6)
    parts_of(folder)[2].unlink()
    works, counting = [], encode_files.counting
    monkeypatch.setattr(encode_files, "counting", lambda *args, **kwargs: _noted(counting(*args, **kwargs), works))
    prepare_folder(folder)
    train = works[0]
    assert (train.num_done, train.num_before, train.num_items) == (60, 40, 60)


@contextlib.contextmanager
def _noted(manager, works):
    with manager as work:
        works.append(work)
        yield work


@pytest.mark.parametrize("name", ["50% law", "%s", "100%"])
def test_the_name_of_a_domain_may_have_a_percent_sign(tmp_path, monkeypatch, name):
    works, counting = [], encode_files.counting
    monkeypatch.setattr(encode_files, "counting", lambda *args, **kwargs: _noted(counting(*args, **kwargs), works))
    prepare_folder(write_domains(tmp_path / "data", num_rows=3, domains=[name]))
    assert works[0].line(works[0].started + 60).startswith(f"{name}: tokenising 3 of 3 rows  ")


@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_file_that_cannot_be_read_is_an_error_before_anything_is_encoded(folder, monkeypatch, split):
    (folder / split / "law.jsonl").rename(folder / split / "a.jsonl")
    (folder / split / "law").mkdir()
    (folder / split / "a.jsonl").rename(folder / split / "law" / "a.jsonl")
    (folder / split / "law" / "b.json").write_text('[{"text": "a"}')
    numbers = numbers_encoded(monkeypatch)
    with pytest.raises(ValueError, match="not closed"):
        prepare_folder(folder)
    assert numbers == []


def test_without_locks_no_part_outlives_its_process(folder, expected, monkeypatch):
    def no_locks(stream):
        raise OSError("no locks here")

    monkeypatch.setattr(file_lock, "try_lock", no_locks)
    killed_at(folder, monkeypatch, BlockEncoder, "__call__", call=3)
    assert is_cleared(folder)
    prepared = prepare_folder(folder)
    assert prepared.digest == expected
    assert not (prepared.train[0].folder.parent / "parts").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")
def test_a_killed_worker_is_an_error_that_says_what_to_do_and_loses_no_finished_block(folder, expected, monkeypatch):
    encode = RecordEncoder.__call__

    def encode_or_die(self, batch):
        if batch["line"][0].as_py() == 41:
            os.kill(os.getpid(), signal.SIGKILL)
        return encode(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(RecordEncoder, "__call__", encode_or_die)
        with pytest.raises(RuntimeError, match=r"data.num_processes: .* was killed, .* finished blocks are kept"):
            prepare_folder(folder, num_processes=2)
    num_kept = len(parts_of(folder))
    numbers = numbers_encoded(monkeypatch)
    assert prepare_folder(folder).digest == expected
    assert num_kept >= 1
    assert len(numbers) == 7 - num_kept


@pytest.mark.slow
def test_kills_at_random_moments_give_the_same_bytes(tmp_path, monkeypatch):
    small_blocks(monkeypatch, num_records=20)
    undisturbed = prepare_folder(write_domains(tmp_path / "undisturbed" / "data", num_rows=1200, domains=["law"]))
    folder = write_domains(tmp_path / "data", num_rows=1200, domains=["law"])
    moments, num_kills = random.Random(5), 0
    for _ in range(12):
        process = multiprocessing.get_context("fork").Process(
            target=prepare_folder, args=(folder,), kwargs={"num_processes": 2}
        )
        process.start()
        process.join(timeout=moments.uniform(0.05, 0.6))
        process.kill()
        process.join()
        num_kills += process.exitcode != 0
    assert num_kills >= 1
    prepared = prepare_folder(folder, num_processes=2)
    assert prepared.digest == undisturbed.digest
    assert prepared.counts == undisturbed.counts
    assert is_cleared(folder)


def blocks_of(files, *, num_per_block, first=0, start=PLACE_OF_BEGINNING):
    num_records = [record_blocks.count_records(path) for path in files]
    return list(read_blocks(files, num_records=num_records, num_per_block=num_per_block, first=first, start=start))


@settings(max_examples=30)
@given(
    sizes=st.lists(st.integers(0, 7), max_size=4), num_per_block=st.integers(1, 5), min_bytes=st.sampled_from([1, 150])
)
def test_reading_can_begin_at_any_block(sizes, num_per_block, min_bytes):
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(line_ranges, "MIN_BYTES", min_bytes)
        files = [write_jsonl(Path(name) / f"{i}.jsonl", chat_rows(size, topic=str(i))) for i, size in enumerate(sizes)]
        blocks = blocks_of(files, num_per_block=num_per_block)
        records = [record for block in blocks for record in block.records()]
        assert [record[:2] for record in records] == [(i, k + 1) for i, size in enumerate(sizes) for k in range(size)]
        for i, block in enumerate(blocks):
            assert block.number == i
            rest = blocks_of(files, num_per_block=num_per_block, first=i + 1, start=block.end)
            assert rest == blocks[i + 1 :]


def test_a_block_ends_at_its_size_in_characters_too(tmp_path, monkeypatch):
    monkeypatch.setattr(record_blocks, "_SIZE_PER_BLOCK", 100)
    path = write_jsonl(tmp_path / "a.jsonl", ["x" * 60] * 5)
    blocks = blocks_of([path], num_per_block=1000)
    assert [block.num_records for block in blocks] == [2, 2, 1]
    assert [block.end for block in blocks] == [Place(0, 2), Place(0, 4), Place(0, 5)]


def test_few_long_records_are_as_many_blocks_as_many_short_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(record_blocks, "_SIZE_PER_BLOCK", 1000)
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path in files:
        path.write_bytes(b"x" * 2600)
    assert record_blocks.num_expected_blocks(files, num_records=3) == 5
    assert record_blocks.num_expected_blocks(files, num_records=14_000) == 7
    assert record_blocks.num_expected_blocks([], num_records=0) == 1


def test_small_files_share_a_block_and_a_large_one_has_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(line_ranges, "MIN_BYTES", 200)
    files = [write_jsonl(tmp_path / f"{i}.jsonl", ["x" * 59] * num) for i, num in enumerate([1, 1, 5, 1])]
    blocks = blocks_of(files, num_per_block=2)
    assert [block.num_records for block in blocks] == [2, 3, 2, 1]
    assert [block.end for block in blocks] == [Place(1, 1), Place(2, 180), Place(2, 300), Place(3, 1)]
    assert [record[:2] for record in blocks[2].records()] == [(2, 4), (2, 5)]


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_divided_file_gives_the_same_bytes_after_a_kill(folder, expected, monkeypatch, num_processes):
    monkeypatch.setattr(line_ranges, "MIN_BYTES", 1)
    killed_at(folder, monkeypatch, Part, "read", call=4, num_processes=num_processes)
    assert len(parts_of(folder)) >= 3
    assert prepare_folder(folder, num_processes=num_processes).digest == expected


def test_the_name_of_a_part_has_a_digest_of_its_bytes(folder, monkeypatch):
    killed_at(folder, monkeypatch, BlockEncoder, "__call__", call=2)
    (path,) = parts_of(folder)
    assert re.fullmatch(r"000000-10-0-0-0-10-[0-9a-f]{32}\.arrow", path.name)
