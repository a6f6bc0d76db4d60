"""Digests of files are cached until the files may have changed."""

from __future__ import annotations

import os
import time

import pytest

from versatune_ds.data.sources import source_digests
from versatune_ds.data.sources.source_digests import SourceDigests


@pytest.fixture(autouse=True)
def later(monkeypatch):
    """Set the clock half a minute ahead: a file's ctime cannot be set."""
    monkeypatch.setattr(source_digests.time, "time", lambda now=time.time: now() + 30)


def written(path, text, *, age_seconds):
    """Write a file that was last changed some time ago."""
    path.write_text(text)
    changed = path.stat().st_mtime - age_seconds
    os.utime(path, (changed, changed))
    return path


def test_a_settled_file_is_read_once(tmp_path, monkeypatch):
    path = written(tmp_path / "law.jsonl", "a", age_seconds=60)
    first = SourceDigests(tmp_path / "cache").of([path])
    monkeypatch.setattr(source_digests, "digest_of_file", lambda path: pytest.fail("read again"))
    assert SourceDigests(tmp_path / "cache").of([path]) == first


def test_a_file_changed_just_now_is_not_cached_whatever_its_mtime(tmp_path, monkeypatch):
    monkeypatch.undo()  # no time passes
    path = written(tmp_path / "law.jsonl", "a", age_seconds=60)
    SourceDigests(tmp_path / "cache").of([path])
    assert not (tmp_path / "cache" / "source_digests.json").exists()


def test_a_digest_depends_on_name_and_content_not_on_place_or_age(tmp_path):
    (tmp_path / "b").mkdir()
    paths = [
        written(tmp_path / "law.jsonl", "a", age_seconds=60),
        written(tmp_path / "b" / "law.jsonl", "a", age_seconds=90),
        written(tmp_path / "tax.jsonl", "a", age_seconds=60),
        written(tmp_path / "b" / "tax.jsonl", "b", age_seconds=60),
    ]
    law, same, other_name, other_content = SourceDigests(tmp_path / "cache").of(paths)
    assert law == same
    assert len({law, other_name, other_content}) == 3


def test_a_corrupt_cache_counts_as_empty(tmp_path):
    path = written(tmp_path / "law.jsonl", "a", age_seconds=60)
    expected = SourceDigests(tmp_path / "cache").of([path])
    (tmp_path / "cache" / "source_digests.json").write_text("{broken")
    assert SourceDigests(tmp_path / "cache").of([path]) == expected


def test_a_rewrite_that_sets_the_time_of_change_back_is_noticed(tmp_path):
    path = written(tmp_path / "law.jsonl", "a", age_seconds=60)
    before, stat = SourceDigests(tmp_path / "cache").of([path]), path.stat()
    with path.open("r+") as stream:
        stream.write("b")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (stat.st_mtime_ns, stat.st_ino)
    assert SourceDigests(tmp_path / "cache").of([path]) != before
