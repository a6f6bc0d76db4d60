"""A folder is built once or not at all, also by two at once and where the file system has no locks."""

import errno
import fcntl
import os
import socket
import subprocess

import pytest

from versatune_ds.run_folder.whole_folder import building, locked


def test_without_locks_the_work_is_done_all_the_same_and_one_warning_is_logged(tmp_path, monkeypatch, caplog):
    def no_locks(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    for name in ("law", "code"):
        with locked(tmp_path / "locks" / name):
            pass
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith(f"{tmp_path}/locks: no file can be locked there ([Errno")


def test_of_two_that_build_the_same_the_first_gives_it_its_name_and_the_other_uses_it(tmp_path):
    with building(tmp_path / "law") as place:
        (place / "tokens").write_text("mine")
        (tmp_path / "law").mkdir()
        (tmp_path / "law" / "tokens").write_text("theirs")
    assert (tmp_path / "law" / "tokens").read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["law"]


def test_what_a_dead_process_left_is_removed_and_what_a_living_one_is_writing_stays(tmp_path):
    living = subprocess.Popen(["sleep", "60"])
    dead = subprocess.Popen(["true"])
    dead.wait()
    prefix = f".building-law-{socket.gethostname()}-"
    for pid in (living.pid, dead.pid):
        (tmp_path / f"{prefix}{pid}").mkdir()
    with building(tmp_path / "law"):
        assert sorted(os.listdir(tmp_path)) == sorted(f"{prefix}{pid}" for pid in (living.pid, os.getpid()))
    living.kill()
    living.wait()


def test_a_folder_that_cannot_get_its_name_is_an_error(tmp_path):
    (tmp_path / "law").write_text("a file")
    with pytest.raises(OSError, match="law"), building(tmp_path / "law"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["law"]
