"""A file or folder is complete or absent, also after a failure, with two writers, and without file locks."""

import errno
import fcntl
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from versatune_ds.run_folder.atomic import atomic_file, atomic_folder, write_json, write_text
from versatune_ds.run_folder.file_lock import locked


def test_without_file_locks_the_block_runs_and_one_warning_is_logged(tmp_path, monkeypatch, caplog):
    def no_locks(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    for name in ("law", "code"):
        with locked(tmp_path / "locks" / name, what="it"):
            pass
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith(f"{tmp_path}/locks: no file can be locked there ([Errno")


HOLD = (
    "import pathlib, sys, time\nfrom versatune_ds.run_folder.file_lock import locked\n"
    "with locked(pathlib.Path(sys.argv[1]), what='it'):\n    print('locked', flush=True)\n    sys.stdin.readline()\n"
)


def test_who_waits_for_a_lock_is_told_for_what_and_whose_it_is(tmp_path, caplog):
    caplog.set_level("INFO")
    path = tmp_path / "locks" / "law"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", HOLD, path], stdin=pipe, stdout=pipe, text=True) as other:
        other.stdout.readline()
        threading.Timer(0.3, lambda: (other.stdin.write("\n"), other.stdin.flush())).start()
        with locked(path, what="the prepared data of law"):
            assert f'"pid": {os.getpid()},' in path.read_text()
        assert path.read_text() == ""
    expected = f"waiting for the prepared data of law, in use by pid {other.pid} on {socket.gethostname()} since "
    (message,) = caplog.messages
    assert message.startswith(expected)
    assert message.endswith(f" ({path})")


def test_of_two_processes_that_build_the_same_folder_the_first_one_names_it(tmp_path):
    with atomic_folder(tmp_path / "law") as place:
        (place / "tokens").write_text("mine")
        (tmp_path / "law").mkdir()
        (tmp_path / "law" / "tokens").write_text("theirs")
    assert (tmp_path / "law" / "tokens").read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["law"]


def test_the_unfinished_folder_of_a_dead_process_is_removed_and_that_of_a_living_one_stays(tmp_path):
    living = subprocess.Popen(["sleep", "60"])
    dead = subprocess.Popen(["true"])
    dead.wait()
    prefix = f".building-law-{socket.gethostname()}-"
    for pid in (living.pid, dead.pid):
        (tmp_path / f"{prefix}{pid}").mkdir()
    with atomic_folder(tmp_path / "law"):
        assert sorted(os.listdir(tmp_path)) == sorted(f"{prefix}{pid}" for pid in (living.pid, os.getpid()))
    living.kill()
    living.wait()


def test_a_folder_that_cannot_be_renamed_is_an_error(tmp_path):
    (tmp_path / "law").write_text("a file")
    with pytest.raises(OSError, match="law"), atomic_folder(tmp_path / "law"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["law"]


def test_a_failed_write_leaves_the_earlier_file_and_nothing_else(tmp_path):
    write_json(tmp_path / "a.json", {"law": 1})
    assert (tmp_path / "a.json").read_text() == '{\n "law": 1\n}\n'
    with pytest.raises(ZeroDivisionError), atomic_file(tmp_path / "a.json") as stream:
        stream.write(b"%d" % (1 / 0))
    assert (tmp_path / "a.json").read_text() == '{\n "law": 1\n}\n'
    assert os.listdir(tmp_path) == ["a.json"]


def test_of_two_writers_at_once_each_file_is_complete_and_the_last_one_wins(tmp_path):
    with atomic_file(tmp_path / "a") as first:
        first.write(b"first, ")
        write_text(tmp_path / "a", "second")
        assert (tmp_path / "a").read_text() == "second"
        first.write(b"still first")
    assert (tmp_path / "a").read_text() == "first, still first"


def test_an_error_names_the_target_file(tmp_path):
    with pytest.raises(FileNotFoundError) as raised:
        write_text(tmp_path / "missing" / "a.json", "text")
    assert raised.value.filename == f"{tmp_path}/missing/a.json"


def test_a_device_is_written_to_and_not_replaced():
    write_text(Path("/dev/null"), "text")
    assert Path("/dev/null").is_char_device()
