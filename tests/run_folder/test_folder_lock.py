"""A folder has one owner: a second one is refused while the first lives, and a dead one is ignored."""

import dataclasses
import errno
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_run import ROOT

from versatune_ds.run_folder import folder_lock
from versatune_ds.run_folder.folder_lock import find_owner, lock_folder
from versatune_ds.run_folder.owner import Owner, process_start_of, this_process

OWNER_PROGRAM = """
import sys, time
from pathlib import Path
from versatune_ds.run_folder.folder_lock import lock_folder
try:
    lock = lock_folder(Path(sys.argv[1]), way_out="choose another")
except ValueError as error:
    sys.exit(str(error))
print("owned", flush=True)
time.sleep(float(sys.argv[2]))
"""


def start_owner(folder, *, seconds):
    """Start a process that locks a folder for some seconds, and wait until it has."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", OWNER_PROGRAM, str(folder), str(seconds)]
    process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "owned\n", process.stderr.read()
    return process


def lock_here(folder):
    return lock_folder(folder, way_out="choose another")


def write_owner_record(folder, **changes):
    """Write the record of a folder's owner as another process, or another machine, would."""
    (folder.parent / ".locks").mkdir(exist_ok=True)
    owner = dataclasses.replace(this_process(), **changes)
    path = folder.parent / ".locks" / f"{folder.name}.owner.json"
    path.write_text(owner.to_json())
    return path


@pytest.fixture
def living():
    """Start a process that does nothing."""
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


@pytest.mark.slow
def test_a_second_process_is_refused_while_the_first_lives_and_locks_the_folder_after_its_kill(tmp_path, caplog):
    folder, link = tmp_path / "run", tmp_path / "link"
    folder.mkdir()
    link.symlink_to(folder)
    first = start_owner(link, seconds=60)
    assert find_owner(folder).pid == first.pid
    who, todo = rf"in use by pid {first.pid} on \S+ since [\d: -]+ UTC", rf"stop it \(kill {first.pid}\)"
    with pytest.raises(ValueError, match=rf"^{folder}: {who}; wait until it ends, {todo}, or choose another$"):
        lock_here(folder)
    first.kill()
    first.wait()
    assert find_owner(folder) is None
    with caplog.at_level("INFO", logger="versatune_ds"):
        lock = lock_here(folder)
    assert f"{folder}: taken over from pid {first.pid} on" in caplog.text
    lock.release()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "run"]


def test_the_owner_may_lock_its_folder_again_and_a_forked_child_does_not_release_it(tmp_path):
    lock = lock_here(tmp_path / "run")
    assert lock_here(tmp_path / "run") is lock
    if (child := os.fork()) == 0:
        lock.release()
        os._exit(0)
    os.waitpid(child, 0)
    assert sorted(path.name for path in (tmp_path / ".locks").iterdir()) == ["run.lock", "run.owner.json"]
    lock.release()
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_a_pid_that_another_process_has_now_is_not_mistaken_for_the_owner(tmp_path, living):
    write_owner_record(tmp_path / "run", pid=living.pid, process_start=process_start_of(living.pid) - 1)
    assert find_owner(tmp_path / "run") is None
    lock_here(tmp_path / "run").release()
    write_owner_record(tmp_path / "run", pid=living.pid, process_start=process_start_of(living.pid))
    assert find_owner(tmp_path / "run").pid == living.pid
    with pytest.raises(ValueError, match=f"in use by pid {living.pid}"):
        lock_here(tmp_path / "run")


def test_a_zombie_process_counts_as_ended(tmp_path, living):
    start = process_start_of(living.pid)
    living.kill()
    os.waitid(os.P_PID, living.pid, os.WEXITED | os.WNOWAIT)
    write_owner_record(tmp_path / "run", pid=living.pid, process_start=start)
    assert find_owner(tmp_path / "run") is None


def test_an_owner_on_another_machine_counts_while_its_record_is_touched(tmp_path, monkeypatch, caplog):
    path = write_owner_record(tmp_path / "run", host="elsewhere", boot_id="another")
    monkeypatch.setattr(time, "sleep", lambda seconds: os.utime(path, (time.time() + 5, time.time() + 5)))
    with caplog.at_level("INFO", logger="versatune_ds"), pytest.raises(ValueError, match=r"elsewhere.* on elsewhere\)"):
        lock_here(tmp_path / "run")
    assert "waiting up to 1" in caplog.text


def test_an_owner_on_another_machine_counts_as_gone_once_its_record_is_no_longer_touched(tmp_path, monkeypatch, caplog):
    path = write_owner_record(tmp_path / "run", host="elsewhere", boot_id="another")
    long_ago = time.time() - folder_lock.SILENT_SECONDS - 5
    monkeypatch.setattr(time, "sleep", lambda seconds: os.utime(path, (long_ago, long_ago)))
    with caplog.at_level("INFO", logger="versatune_ds"):
        lock_here(tmp_path / "run").release()
    assert "on elsewhere" in caplog.text
    assert "which ended without unlocking it" in caplog.text


@pytest.mark.parametrize(("job", "restarts", "is_refused"), [("7", "1", False), ("7", None, True), ("8", "1", True)])
def test_a_requeued_job_resumes_at_once_also_on_another_node(tmp_path, monkeypatch, job, restarts, is_refused):
    path = write_owner_record(tmp_path / "run", host="elsewhere", boot_id="another", slurm_job_id="7")
    monkeypatch.setenv("SLURM_JOB_ID", job)
    if restarts is not None:
        monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
    monkeypatch.setattr(time, "sleep", lambda seconds: os.utime(path, (time.time() + 5, time.time() + 5)))
    if is_refused:
        with pytest.raises(ValueError, match=r"\(Slurm job 7\) since .* stop it \(scancel 7\)"):
            lock_here(tmp_path / "run")
    else:
        lock_here(tmp_path / "run").release()


@pytest.mark.slow
def test_a_lock_that_a_server_keeps_for_a_crashed_machine_is_ignored_with_a_warning(tmp_path, caplog):
    first = start_owner(tmp_path / "run", seconds=60)
    path = write_owner_record(tmp_path / "run", host="elsewhere", boot_id="another")
    with pytest.raises(ValueError, match=r"in use by pid .* on elsewhere"):
        lock_here(tmp_path / "run")
    os.utime(path, (0, 0))
    lock_here(tmp_path / "run").release()
    assert "its machine no longer answers, so its lock is ignored" in caplog.text
    first.kill()
    first.wait()


def test_without_file_locks_one_warning_is_logged_and_the_owners_record_still_counts(
    tmp_path, monkeypatch, caplog, living
):
    def no_locks(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    lock = lock_here(tmp_path / "run")
    (warning,) = [line.getMessage() for line in caplog.records if line.levelname == "WARNING"]
    assert "cannot be locked ([Errno" in warning
    lock.release()
    write_owner_record(tmp_path / "run", pid=living.pid, process_start=process_start_of(living.pid))
    with pytest.raises(ValueError, match=f"in use by pid {living.pid}"):
        lock_here(tmp_path / "run")


def test_a_folder_without_write_permission_gives_one_warning(tmp_path, caplog):
    (tmp_path / ".locks").write_text("a file")
    lock_here(tmp_path / "run").release()
    assert caplog.text.count("cannot be locked") == 1


def test_a_process_ends_at_once_when_another_one_has_locked_its_folder(tmp_path, monkeypatch):
    class Ended(BaseException):
        pass

    def leave(code):
        raise Ended(code)

    monkeypatch.setattr(folder_lock, "_BEAT_SECONDS", 0.0)
    monkeypatch.setattr(folder_lock.threading.Thread, "start", lambda thread: None)
    monkeypatch.setattr(os, "_exit", leave)
    lock = lock_here(tmp_path / "run")
    write_owner_record(tmp_path / "run", host="elsewhere")
    with pytest.raises(Ended):
        lock._beat()
    lock.release()
    assert (tmp_path / ".locks" / "run.owner.json").exists()  # it is the other's now


def test_an_incomplete_owners_record_counts_as_none(tmp_path):
    write_owner_record(tmp_path / "run").write_text('{"host": "a')
    lock_here(tmp_path / "run").release()
    with pytest.raises(ValueError, match=r"^not the record of an owner"):
        Owner.from_json('{"host": "a"}')


def test_looking_up_the_owner_creates_no_files(tmp_path):
    assert find_owner(tmp_path / "run") is None
    assert list(Path(tmp_path).iterdir()) == []
