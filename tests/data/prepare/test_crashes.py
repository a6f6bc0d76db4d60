"""Preparation survives kills, a second preparation at the same time, and corrupt files."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from chat_data import write_domains
from prepare_data import prepare_folder, prepare_rows, small_blocks

from versatune_ds.data import shards
from versatune_ds.data.prepare import domains, one_domain, record_blocks, shard_writer
from versatune_ds.data.prepare.encode_records import RecordEncoder
from versatune_ds.data.shards import DomainShards
from versatune_ds.run_folder import atomic

_STAGES = {
    "while reading": (record_blocks, "read_records"),
    "while writing shards": (shard_writer.ShardWriter, "close"),
    "before the summary": (one_domain, "_first_problems"),
    "before the rename": (atomic, "_sync_tree"),
}


@pytest.mark.parametrize("stage", _STAGES)
def test_a_killed_preparation_leaves_no_folder_of_shards(tmp_path, monkeypatch, stage):
    folder = write_domains(tmp_path / "data", num_rows=30, domains=["law"])
    expected = prepare_folder(write_domains(tmp_path / "undisturbed" / "data", num_rows=30, domains=["law"])).digest
    with monkeypatch.context() as patch:
        patch.setattr(*_STAGES[stage], lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL))
        assert exit_codes_of(prepare_folder, folder) == [-signal.SIGKILL]
    assert not list((tmp_path / "cache").glob("law-*"))
    assert list((tmp_path / "cache").glob(".building-law-*"))

    assert prepare_folder(folder).digest == expected
    assert not list((tmp_path / "cache").glob(".building-*"))


def test_two_preparations_at_once_build_every_domain_once(tmp_path, monkeypatch):
    folder = write_domains(tmp_path / "data", num_rows=400)
    log = tmp_path / "builds"
    build_domain = domains.build_domain

    def logged_build(place, **options):
        with log.open("a") as stream:
            stream.write(options["task"].name + "\n")
        return build_domain(place, **options)

    monkeypatch.setattr(domains, "build_domain", logged_build)
    assert exit_codes_of(prepare_folder, folder, num_processes=4) == [0] * 4
    assert sorted(log.read_text().split()) == ["code", "law"]
    for built in prepare_folder(folder).train:
        DomainShards(built.folder, verify=True)


def test_a_failed_preparation_leaves_no_folder_of_shards_behind(tmp_path):
    with pytest.raises(ValueError, match="bad rows"):
        prepare_rows(tmp_path, ["{broken"])
    folders = [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir() and "law" in path.name]
    assert [name.rpartition("-")[0] for name in folders] == [".parts-law"]


def test_the_error_for_a_corrupt_shard_gives_the_file_and_what_to_do(tmp_path):
    folder = write_domains(tmp_path / "data", num_rows=5)
    path = prepare_folder(folder).train[1].folder / "tokens-00000.arrow"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RuntimeError, match=r"tokens-00000.arrow: corrupt shard: .* delete .* and prepare again"):
        prepare_folder(folder)


def test_the_error_for_a_changed_byte_in_a_prepared_shard_gives_the_file_and_what_to_do(tmp_path, monkeypatch):
    folder = write_domains(tmp_path / "data", num_rows=5)
    path = prepare_folder(folder).valid[1].folder / "tokens-00000.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(RuntimeError, match=r"tokens-00000.arrow: corrupt shard: digest .* delete .* and prepare again"):
        prepare_folder(folder)
    monkeypatch.setattr(domains, "_MAX_VERIFIED_BYTES", 1)
    assert len(prepare_folder(folder).domain_set) == 2, "large shards are not read completely at every start"


def test_shards_just_built_are_not_read_again(tmp_path, monkeypatch):
    read_again = []
    monkeypatch.setattr(shards, "digest_of_file", lambda path: read_again.append(path) or "")
    prepare_folder(write_domains(tmp_path / "data", num_rows=5))
    assert read_again == []


def exit_codes_of(function, *args, num_processes=1):
    """Run a function in forked processes at once and return their exit codes."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=function, args=args) for _ in range(num_processes)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    return [process.exitcode for process in processes]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills children with their parent")
def test_workers_end_with_a_killed_preparation_and_free_its_lock(tmp_path, monkeypatch):
    folder = write_domains(tmp_path / "data", num_rows=40, domains=["law"])
    small_blocks(monkeypatch, num_records=1)
    with monkeypatch.context() as patch:
        patch.setattr(
            RecordEncoder,
            "__call__",
            lambda self, batch: (tmp_path / f"worker-{os.getpid()}").touch() or time.sleep(60),
        )
        process = multiprocessing.get_context("fork").Process(target=lambda: prepare_folder(folder, num_processes=2))
        process.start()
        wait_until(lambda: len(list(tmp_path.glob("worker-*"))) == 2)
        process.kill()
        process.join()
    workers = [int(path.name.partition("-")[2]) for path in tmp_path.glob("worker-*")]
    try:
        wait_until(lambda: not any(is_running(pid) for pid in workers))
    finally:
        for pid in filter(is_running, workers):
            os.kill(pid, signal.SIGKILL)
    assert prepare_folder(folder, num_processes=2).counts[0].num_rows == 40


def wait_until(condition, *, seconds=30):
    """Wait for a condition; fail if it does not become true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_running(pid):
    """Return whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
