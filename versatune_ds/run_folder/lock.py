"""Let one process at a time own a folder: a second start is refused, and one that died stands in nobody's way.

Two things together say who owns a folder. A record lock of the operating system ends with its process, also over NFS
where the server passes locks on. A file beside it names the owner (host, pid, start, Slurm job) and is touched every
few seconds, which is all there is where a file system passes no locks from one machine to another. Both lie beside the
folder, in `.locks`, so that `--fresh`, a copy of the folder and a listing of it never meet them.

An owner on this machine is looked up by its pid and start time, so a pid that was given to another process deceives
nobody. One on another machine counts as gone once its file has been silent for `SILENT_SECONDS`.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from versatune_ds.run_folder.owner import Owner, this_process

__all__ = ["SILENT_SECONDS", "FolderLock", "find_owner", "own_folder", "owning", "release_all"]

logger = logging.getLogger(__name__)

SILENT_SECONDS = 120.0
"""How long an owner on another machine may be silent while nothing but its file speaks for it."""
_SILENT_LOCKED_SECONDS = 600.0
"""The same while the file system says that its lock is held: servers keep the locks of a machine that crashed."""
_BEAT_SECONDS = 15.0
_STARTING_SECONDS = 2.0
"""How long a lock without a living owner is waited for: another process is just looking, or starting."""


class FolderLock:
    """A folder owned by this process, until `release` or its end.

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
            _record_path(folder).write_text(self._owner.to_json(), encoding="utf-8")
            threading.Thread(target=self._beat, name="versatune-owner", daemon=True).start()

    @property
    def is_mine(self) -> bool:
        """Return whether this process holds it: a forked child inherits the object, but not the lock."""
        return self._owner.pid == os.getpid() and not self._ended.is_set()

    def release(self) -> None:
        """Give the folder up; a second call, and one in a forked child, does nothing."""
        if not self.is_mine:
            return
        self._ended.set()
        _HELD.pop(self.folder, None)
        with contextlib.suppress(OSError):
            if self._is_on_record():
                _record_path(self.folder).unlink()
        if self._stream is not None:
            with contextlib.suppress(OSError):
                _lock_path(self.folder).unlink()  # before it is unlocked: nobody else has it by its name then
            self._stream.close()
        with contextlib.suppress(OSError):  # not empty: others are locked
            _lock_path(self.folder).parent.rmdir()

    def _is_on_record(self) -> bool:
        """Return whether the owner's file still names this process."""
        owner = _read_owner(self.folder)
        return owner is not None and owner.is_same_process(self._owner)

    def _beat(self) -> None:
        """Touch the owner's file every few seconds; end the process if another one has taken the folder over."""
        path = _record_path(self.folder)
        while not self._ended.wait(_BEAT_SECONDS):
            with contextlib.suppress(OSError):  # a server that does not answer now may answer at the next beat
                owner = _read_owner(self.folder)
                if owner is not None and not owner.is_same_process(self._owner) and not self._ended.is_set():
                    self._leave_to(owner)
                os.utime(path)

    def _leave_to(self, owner: Owner) -> None:
        """End this process at once: it was silent for so long that another one owns the folder now."""
        logger.error("%s: taken over by %s while this process was stopped; it ends, unsaved", self.folder, owner)
        logging.shutdown()
        os._exit(1)


_HELD: dict[Path, FolderLock] = {}
"""This process's locks: a record lock is lost when its process closes the file a second time, so it is opened once."""


def own_folder(folder: Path, *, way_out: str) -> FolderLock:
    """Take a folder, which need not exist, for this process; where that cannot be, one warning and no protection.

    Args:
        folder: The folder; links to it are followed, so that all its names meet in one lock.
        way_out: What a user may do instead of waiting, for the message.

    Raises:
        ValueError: If another process owns it, naming that.
    """
    real = folder.resolve()
    if (held := _HELD.get(real)) is not None and held.is_mine:
        return held
    stream, is_busy = None, False
    try:
        stream, is_busy = _open_locked(real)
    except OSError as error:
        logger.warning("%s: cannot be locked (%s), so a second start at the same time may go unnoticed", folder, error)
    try:
        owner = _read_owner(real)
        if is_busy:
            _check_busy(folder, owner, way_out=way_out)
        elif owner is not None:
            _check_gone(folder, owner, way_out=way_out)
    except ValueError:
        if stream is not None:
            stream.close()
        raise
    lock = _HELD[real] = FolderLock(real, stream=stream)
    atexit.register(lock.release)
    return lock


@contextlib.contextmanager
def owning(folder: Path, *, way_out: str) -> Iterator[None]:
    """Own a folder within a block; see `own_folder`."""
    lock = own_folder(folder, way_out=way_out)
    try:
        yield
    finally:
        lock.release()


def release_all() -> None:
    """Give up every folder of this process, where it ends without its exit handlers."""
    for lock in list(_HELD.values()):
        lock.release()


def find_owner(folder: Path) -> Owner | None:
    """Return the living process that owns a folder; None where there is none, or only time would tell."""
    real = folder.resolve()
    owner = _read_owner(real)
    if owner is None or owner.is_same_process(this_process()):
        return None
    if owner.is_on_this_machine:
        return owner if owner.is_running() else None
    if owner.is_former_start_of(this_process()) or _silence(real) >= _SILENT_LOCKED_SECONDS:
        return None
    try:
        with _lock_path(real).open("ab") as stream:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return owner
    except OSError:
        return None
    return None


def refusal(folder: Path, owner: Owner, *, way_out: str) -> str:
    """Return in one line who owns a folder, since when, and what to do."""
    return f"{folder}: in use by {owner}; wait until it ends, stop it ({owner.way_to_stop}), or {way_out}"


def _check_busy(folder: Path, owner: Owner | None, *, way_out: str) -> None:
    """Raise ValueError where a lock that is held means a living owner, which it does unless a machine crashed."""
    if owner is None:
        raise ValueError(f"{folder}: in use by another process that is just starting; try again, or {way_out}")
    if owner.is_on_this_machine or not (
        owner.is_former_start_of(this_process()) or _silence(folder.resolve()) >= _SILENT_LOCKED_SECONDS
    ):
        raise ValueError(refusal(folder, owner, way_out=way_out))
    logger.warning("%s: taken over from %s, whose machine no longer answers though its lock is held", folder, owner)


def _check_gone(folder: Path, owner: Owner, *, way_out: str) -> None:
    """Raise ValueError where the owner on record lives; log that it is gone otherwise. May wait for a silent one."""
    is_gone = owner.is_former_start_of(this_process())
    if not is_gone and owner.is_on_this_machine:
        is_gone = not owner.is_running()
    elif not is_gone:
        is_gone = _falls_silent(folder, owner)
    if not is_gone:
        raise ValueError(refusal(folder, owner, way_out=way_out))
    logger.info("%s: taken over from %s, which is gone and did not close it", folder, owner)


def _falls_silent(folder: Path, owner: Owner) -> bool:
    """Watch the file of an owner on another machine; return whether it stays untouched for SILENT_SECONDS."""
    real = folder.resolve()
    silence = _silence(real)
    if silence < SILENT_SECONDS:
        left = SILENT_SECONDS - silence
        logger.info("%s: used last by %s; waiting up to %.0f s to see whether it still is", folder, owner, left)
    while silence < SILENT_SECONDS:
        time.sleep(1.0)
        before, silence = silence, _silence(real)
        if silence < before:
            return False
    return True


def _open_locked(real: Path) -> tuple[BinaryIO, bool]:
    """Open a folder's lock file and lock it; return it, and whether another process holds the lock.

    Raises:
        OSError: If it cannot be made, or the file system has no locks.
    """
    path, end = _lock_path(real), time.monotonic() + _STARTING_SECONDS
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            stream = path.open("ab")
        except FileNotFoundError:  # the owner of the last lock has just removed the folder
            continue
        try:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # which of the two is up to the system
            owner = _read_owner(real)
            is_owned = owner is not None and (not owner.is_on_this_machine or owner.is_running())
            if is_owned or time.monotonic() >= end:
                return stream, True
            stream.close()
            time.sleep(0.05)
            continue
        except OSError:
            stream.close()
            raise
        if _is_named(stream, path):
            return stream, False
        stream.close()  # its owner removed it between our opening and locking it


def _is_named(stream: BinaryIO, path: Path) -> bool:
    """Return whether an open file is still the one that has a name."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _silence(real: Path) -> float:
    """Return the seconds since the owner's file was touched, by the file server's clock: those of machines differ."""
    try:
        probe = _lock_path(real)
        os.utime(probe)
        with probe.open("rb") as now, _record_path(real).open("rb") as beat:  # NFS asks the server at an open
            return os.fstat(now.fileno()).st_mtime - os.fstat(beat.fileno()).st_mtime
    except OSError:
        return 0.0


def _read_owner(real: Path) -> Owner | None:
    """Return the owner on record, None without one or where a kill left it unfinished."""
    try:
        return Owner.from_json(_record_path(real).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _lock_path(real: Path) -> Path:
    """Return the file that is locked."""
    return real.parent / ".locks" / f"{real.name}.lock"


def _record_path(real: Path) -> Path:
    """Return the file that names the owner."""
    return real.parent / ".locks" / f"{real.name}.owner.json"
