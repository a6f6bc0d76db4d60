"""Downloads resume after a restart, stop when they are cancelled, and share the cache with other processes."""

from __future__ import annotations

import errno
import time

import pytest
from remote_files import CONTENT, HALF, KEY, find

from versatune_ds.data.remote import cache, fetch, partial_file, stores
from versatune_ds.data.remote.errors import RemoteDeniedError, RemoteError
from versatune_ds.data.remote.remote_file import RemoteFile
from versatune_ds.progress import ByteWork
from versatune_ds.run_folder import file_lock


class KilledError(BaseException):
    """The end of a process, as far as a test can show it."""


def test_a_restarted_process_resumes_from_the_bytes_that_are_certainly_on_disk(server, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(stores, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(partial_file, "SYNC_BYTES", 4000)

    class KilledFile(partial_file.PartialFile):
        def write(self, block):
            super().write(block)
            if self.num_bytes >= HALF:
                self._sync = lambda: None
                raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(fetch, "PartialFile", KilledFile)
        with pytest.raises(KilledError):
            find(server, tmp_path)
    (partial,) = (tmp_path / "remote").glob("*/.*/law.jsonl")
    content, num_recorded = partial.read_bytes(), HALF // 4000 * 4000
    partial.write_bytes(content[:num_recorded] + bytes(len(content) - num_recorded))  # zeros, as after a power cut
    assert find(server, tmp_path)[0].read_bytes() == CONTENT
    assert f"resuming after {num_recorded:,} bytes" in caplog.text
    assert not list((tmp_path / "remote").glob("*/.*"))


def test_a_download_that_was_complete_but_for_its_name_is_not_read_again(server, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(partial_file.PartialFile, "finish", lambda self: _raise(KilledError()))
        with pytest.raises(KilledError):
            find(server, tmp_path)
    assert find(server, tmp_path)[0].read_bytes() == CONTENT
    assert server.num_reads == {"/law.jsonl": 1}


def _raise(error):
    raise error


def test_what_arrived_of_another_version_is_not_used(server, tmp_path):
    server.breaks_after = [HALF] + [0] * 3
    with pytest.raises(ValueError, match="cannot be read"):
        find(server, tmp_path)
    server.files["/law.jsonl"] = (CONTENT[::-1], '"two"')
    assert find(server, tmp_path)[0].read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("has_version", [True, False])
def test_without_a_version_or_a_lock_nothing_is_kept_to_be_resumed(server, tmp_path, monkeypatch, has_version):
    if has_version:
        monkeypatch.setattr(file_lock, "try_lock", lambda stream: _raise(OSError("no locks")))
    else:
        server.files["/law.jsonl"] = (CONTENT, None)
    server.breaks_after = [HALF] + [0] * 3
    with pytest.raises(ValueError, match="cannot be read"):
        find(server, tmp_path)
    assert not list((tmp_path / "remote").glob("*/.*"))
    assert find(server, tmp_path)[0].read_bytes() == CONTENT


def test_a_disk_that_fills_is_one_line_with_the_key_and_what_to_do(server, tmp_path, monkeypatch):
    error = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(partial_file.PartialFile, "write", lambda self, block: _raise(error))
    line = (
        r"law.jsonl cannot be written into .*remote \(No space left on device\); make room there, or set data.cache_dir"
    )
    with pytest.raises(ValueError, match=f"^{KEY}: http://.*{line}"):
        find(server, tmp_path)


def test_bytes_that_are_stored_already_need_no_room(server, tmp_path, monkeypatch):
    file = RemoteFile(address=f"{server.address}/law.jsonl", num_bytes=len(CONTENT), version='etag="one"')
    path = fetch.cached_path(file, folder=tmp_path / "remote")
    stored = partial_file.partial_folder(path) / path.name
    stored.parent.mkdir(parents=True)
    stored.write_bytes(CONTENT[:-10])  # by another process, which is still at it
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 10})())
    assert find(server, tmp_path)[0].read_bytes() == CONTENT


def test_an_error_of_one_file_ends_the_others_that_are_on_their_way(server, tmp_path, monkeypatch):
    def fetch_one(file, *, work, **_):
        if file.name == "b.jsonl":
            time.sleep(0.2)  # the caller is waiting by then
            raise RemoteDeniedError("403")
        end = time.monotonic() + 20
        while not work.is_cancelled and time.monotonic() < end:
            time.sleep(0.01)
        assert work.is_cancelled, "the error of the second file was noticed after the first file only"

    monkeypatch.setattr(cache, "fetch", fetch_one)
    source = cache.RemoteSource(address=f"{server.address}/law.jsonl", key=KEY, cache_dir=tmp_path)
    files = [*cache.remote_files(source), RemoteFile(address=f"{server.address}/b.jsonl", num_bytes=1, version="b")]
    with pytest.raises(ValueError, match=r"b.jsonl: access denied"):
        cache.fetch_files(source, files)


def test_waiting_for_another_process_ends_when_the_work_is_cancelled(tmp_path, monkeypatch):
    monkeypatch.setattr(file_lock, "try_lock", lambda stream: False)
    file = RemoteFile(address="http://host/law.jsonl", num_bytes=1, version="1")
    work = ByteWork("fetching", num_bytes=None)
    work.is_cancelled = True
    with pytest.raises(RemoteError, match="stopped"):
        fetch.fetch(file, store=None, folder=tmp_path / "remote", work=work)


@pytest.mark.parametrize(("is_recorded_now", "content"), [(True, CONTENT), (False, CONTENT * 2)])
def test_the_first_process_of_another_node_uses_what_rank_0_recorded_in_this_job(
    server, tmp_path, monkeypatch, is_recorded_now, content
):
    find(server, tmp_path)
    server.files["/law.jsonl"] = (CONTENT * 2, '"two"')
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(cache, "_STARTED", time.time() + (-60 if is_recorded_now else 60))
    assert find(server, tmp_path)[0].read_bytes() == content
