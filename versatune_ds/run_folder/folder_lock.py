"""Let one process at a time use a folder: a second start is refused; the lock of a dead process is ignored.

Two things together tell whether a folder is in use. A record lock of the operating system ends with its process, also
over NFS where the server passes locks on. A record beside it describes the owner (host, pid, start, Slurm job) and is
touched every few seconds, which is all there is where a file system passes no locks from one machine to another. Both
are beside the folder, in `.locks`, so that `--fresh`, a copy of the folder and a listing of it do not include them.

An owner on this machine is looked up by its pid and start time, so a pid that another process has got since is not
mistaken for it. One on another machine counts as gone once its record was not touched for `SILENT_SECONDS`.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
import time
from pathlib import Path
from typing import BinaryIO

from versatune_ds.run_folder.atomic import write_text
from versatune_ds.run_folder.file_lock import try_lock
from versatune_ds.run_folder.owner import Owner, lock_path, read_owner, record_path, seconds_of_silence, this_process

logger = logging.getLogger(__name__)

SILENT_SECONDS = 120.0
"""How long an owner on another machine may be silent where only its record shows that it lives."""
_SILENT_LOCKED_SECONDS = 600.0
"""The same while the file system reports its lock: servers keep the locks of a machine that crashed."""
_BEAT_SECONDS = 15.0
_STARTING_SECONDS = 2.0
"""How long to wait for a lock without a living owner: its process is only looking, or just starting."""


class FolderInUseError(ValueError):
    """Another process uses a folder: who, since when, and what to do."""

    def __init__(self, folder: Path, owner: Owner, way_out: str) -> None:
        super().__init__(folder, owner, way_out)  # all arguments, so that it can be pickled
        self.folder = folder
        self.found = f"in use by {owner}"
        self.todo = f"wait until it ends, stop it ({owner.way_to_stop}), or {way_out}"

    def __str__(self) -> str:
        return f"{self.folder}: {self.found}; {self.todo}"


class FolderLock:
    """A folder used by this process only, until `release` or the end of the process.

    Args:
        folder: The folder, without links.
        stream: The open lock file; None where the file system has no locks.
    """

    def __init__(self, folder: Path, *, stream: BinaryIO | None) -> None:
        self.folder = folder
        self._stream = stream
        self._owner = this_process()
        self._ended = threading.Event()
        with contextlib.suppress(OSError):  # no room, or no right to write: the lock alone has to do
            write_text(record_path(folder), self._owner.to_json())
            threading.Thread(target=self._beat, name="versatune-owner", daemon=True).start()

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    @property
    def is_mine(self) -> bool:
        """Return whether this process has the lock: a forked child inherits the object, but not the lock."""
        return self._owner.pid == os.getpid() and not self._ended.is_set()

    def release(self) -> None:
        """Unlock the folder; a second call, and a call in a forked child, does nothing."""
        if not self.is_mine:
            return
        self._ended.set()
        _LOCKS.pop(self.folder, None)
        with contextlib.suppress(OSError):
            owner = read_owner(self.folder)
            if owner is not None and owner.is_same_process(self._owner):
                record_path(self.folder).unlink()
        if self._stream is not None:
            with contextlib.suppress(OSError):
                lock_path(self.folder).unlink()  # before unlocking: nobody else can have locked this file yet
            self._stream.close()
        with contextlib.suppress(OSError):  # not empty: other folders are locked
            lock_path(self.folder).parent.rmdir()

    def _beat(self) -> None:
        """Touch the record every few seconds; end the process if another one uses the folder by now."""
        path = record_path(self.folder)
        while not self._ended.wait(_BEAT_SECONDS):
            with contextlib.suppress(OSError):  # a server that does not answer now may answer at the next beat
                owner = read_owner(self.folder)
                if owner is not None and not owner.is_same_process(self._owner) and not self._ended.is_set():
                    self._leave_to(owner)
                os.utime(path)

    def _leave_to(self, owner: Owner) -> None:
        """End this process at once: it was silent for so long that another one uses the folder now."""
        logger.error(
            "%s: taken over by %s while this process was stopped; this process ends without saving", self.folder, owner
        )
        logging.shutdown()
        os._exit(1)


_LOCKS: dict[Path, FolderLock] = {}
"""This process's locks: a record lock is lost when its process closes the file a second time, so it is opened once."""


def lock_folder(folder: Path, *, way_out: str) -> FolderLock:
    """Lock a folder, which need not exist, for this process; where that is impossible, log a warning and continue.

    Args:
        folder: The folder; links to it are followed, so that all its names mean one lock.
        way_out: What a user may do instead of waiting, for the message.

    Raises:
        ValueError: If another process uses it, describing that process.
    """
    real = folder.resolve()
    if (lock := _LOCKS.get(real)) is not None and lock.is_mine:
        return lock
    stream, is_locked_by_other = None, False
    try:
        stream, is_locked_by_other = _open_locked(real)
    except OSError as error:
        logger.warning("%s: cannot be locked (%s), so a second start at the same time may go unnoticed", folder, error)
    try:
        owner = read_owner(real)
        if is_locked_by_other:
            _check_lock_is_stale(folder, owner, way_out=way_out)
        elif owner is not None:
            _check_owner_is_gone(folder, owner, way_out=way_out)
    except ValueError:
        if stream is not None:
            stream.close()
        raise
    lock = _LOCKS[real] = FolderLock(real, stream=stream)
    atexit.register(lock.release)
    return lock


def release_all() -> None:
    """Unlock every folder of this process, where it ends without its exit handlers."""
    for lock in list(_LOCKS.values()):
        lock.release()


def find_owner(folder: Path) -> Owner | None:
    """Return the living process that uses a folder; None where there is none, or only waiting would tell."""
    real = folder.resolve()
    owner = read_owner(real)
    if owner is None or owner.is_same_process(this_process()):
        return None
    if owner.is_on_this_machine:
        return owner if owner.is_running() else None
    if _is_replaceable(real, owner):
        return None
    try:
        with lock_path(real).open("ab") as stream:
            return None if try_lock(stream) else owner
    except OSError:
        return None


def _is_replaceable(real: Path, owner: Owner) -> bool:
    """Return whether an owner on another machine is gone although its lock may still be reported."""
    return owner.is_former_start_of(this_process()) or seconds_of_silence(real) >= _SILENT_LOCKED_SECONDS


def _check_lock_is_stale(folder: Path, owner: Owner | None, *, way_out: str) -> None:
    """Raise ValueError unless a lock of another process was left over by a machine that crashed."""
    if owner is None:
        raise ValueError(f"{folder}: in use by another process that is just starting; try again, or {way_out}")
    if owner.is_on_this_machine or not _is_replaceable(folder.resolve(), owner):
        raise FolderInUseError(folder, owner, way_out)
    logger.warning("%s: taken over from %s; its machine no longer answers, so its lock is ignored", folder, owner)


def _check_owner_is_gone(folder: Path, owner: Owner, *, way_out: str) -> None:
    """Raise ValueError if the owner on record lives, log that it is gone otherwise; may wait for a silent one."""
    is_gone = owner.is_former_start_of(this_process())
    if not is_gone and owner.is_on_this_machine:
        is_gone = not owner.is_running()
    elif not is_gone:
        is_gone = _stays_silent(folder, owner)
    if not is_gone:
        raise FolderInUseError(folder, owner, way_out)
    logger.info("%s: taken over from %s, which ended without unlocking it", folder, owner)


def _stays_silent(folder: Path, owner: Owner) -> bool:
    """Watch the record of an owner on another machine; return whether it stays untouched for SILENT_SECONDS."""
    real = folder.resolve()
    silence = seconds_of_silence(real)
    if silence < SILENT_SECONDS:
        remaining = SILENT_SECONDS - silence
        logger.info("%s: last used by %s; waiting up to %.0f s to see whether it still is", folder, owner, remaining)
    while silence < SILENT_SECONDS:
        time.sleep(1.0)
        before, silence = silence, seconds_of_silence(real)
        if silence < before:
            return False
    return True


def _open_locked(real: Path) -> tuple[BinaryIO, bool]:
    """Open a folder's lock file and lock it; return it, and whether another process has the lock.

    Raises:
        OSError: If it cannot be made, or the file system has no locks.
    """
    path, end = lock_path(real), time.monotonic() + _STARTING_SECONDS
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            stream = path.open("ab")
        except FileNotFoundError:  # the process that released the last lock has just deleted `.locks`
            continue
        try:
            is_locked = try_lock(stream)
        except OSError:
            stream.close()
            raise
        if is_locked and _is_still_named(stream, path):
            return stream, False
        if not is_locked:
            owner = read_owner(real)
            is_owned = owner is not None and (not owner.is_on_this_machine or owner.is_running())
            if is_owned or time.monotonic() >= end:
                return stream, True
            time.sleep(0.05)
        stream.close()  # try again: the other is only looking, or it deleted the file before we locked it


def _is_still_named(stream: BinaryIO, path: Path) -> bool:
    """Return whether an open file is the one that has this path now."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except FileNotFoundError:
        return False
