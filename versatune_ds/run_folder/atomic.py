"""Write a file or a folder so that it is either complete or absent, whatever is killed meanwhile.

Everything is written under another name beside the target, forced to disk and renamed. A rename either happened or did
not. Whoever reads the target meanwhile sees the earlier content or the new one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from versatune_ds.run_folder.disk_errors import is_full_disk
from versatune_ds.run_folder.owner import is_pid_taken

_logger = logging.getLogger(__name__)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a binary file that becomes `path` when the block ends, and is deleted when the block raises.

    Its name is used by no other writer: of two at once, the last one to finish wins. A kill leaves a hidden file.

    Raises:
        OSError: If it cannot be written; the error names `path`.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and (error.filename == str(partial) or is_full_disk(error)):
            error.filename = str(path)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a small text file, complete or not at all; a device or a pipe is written as it is."""
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")
        return
    with atomic_file(path) as stream:
        stream.write(text.encode())


def read_json(path: Path) -> Any:
    """Return the value of a JSON file, None where there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def write_json(path: Path, values: Any) -> None:
    """Write a small JSON file that people read too, complete or not at all."""
    write_text(path, json.dumps(values, indent=1) + "\n")


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder to write into that becomes `folder` when the block ends, and is deleted when the block raises.

    What interrupted processes of this machine left behind is deleted first. Two processes may build the same folder at
    once where the file system has no locks: the first one to finish gives it its name.
    """
    prefix = f".building-{folder.name}-{socket.gethostname()}-"
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left_behind in folder.parent.glob(f"{prefix}*"):
        if not _is_running(left_behind.name.removeprefix(prefix)):
            _logger.info("Deleting %s, which an interrupted preparation left behind.", left_behind)
            shutil.rmtree(left_behind)
    partial = folder.parent / f"{prefix}{os.getpid()}"
    partial.mkdir()
    try:
        yield partial
        _sync_tree(partial)
        try:
            rename_folder(partial, folder)
        except OSError:
            if not folder.is_dir():  # if it is there, another process made it from the same input
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def rename_folder(partial: Path, folder: Path) -> None:
    """Give a folder whose files are on disk its final name, and force that name to disk."""
    _sync_entries(partial)
    partial.rename(folder)
    _sync_entries(folder.parent)


def _is_running(pid: str) -> bool:
    """Return whether another process of this machine has this pid."""
    return pid.isdigit() and int(pid) != os.getpid() and is_pid_taken(int(pid))


def sync_file(path: Path) -> None:
    """Force a file to disk; until then a power cut may still take it away."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def _sync_tree(folder: Path) -> None:
    """Force every file and folder below a folder to disk, so that the rename cannot reach it before them."""
    for root, _, names in os.walk(folder):
        for name in names:
            sync_file(Path(root) / name)
        _sync_entries(Path(root))


def _sync_entries(folder: Path) -> None:
    """Force the entries of a folder to disk, where its file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems refuse it for folders
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
