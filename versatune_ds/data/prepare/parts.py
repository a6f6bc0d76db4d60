"""Keep what a preparation has encoded so far, so that a killed one continues where it was.

Every encoded block of records becomes a part: an Arrow file whose name has its number, where it begins and ends and a
digest of its bytes. A part whose bytes do not match its name is encoded again, so parts need not be forced to disk. One
that does not begin where the part before it ends is not used either: blocks of another version may have another size.

Parts of a domain lie beside its folder of shards, under the same fingerprint, until the shards are complete.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from versatune_ds.data.manifest import digest_of_file, digest_of_texts
from versatune_ds.data.prepare.encode_records import OUTPUT_SCHEMA
from versatune_ds.data.prepare.record_blocks import Place
from versatune_ds.data.sources import line_ranges
from versatune_ds.run_folder.atomic import read_json, write_json
from versatune_ds.run_folder.disk_errors import DiskError, is_full_disk
from versatune_ds.run_folder.file_lock import try_lock

_logger = logging.getLogger(__name__)

_PREFIX = ".parts-"
_NAME = re.compile(r"(\d{6,})-(\d+)-(\d+)-(\d+)-(\d+)-(\d+)-([0-9a-f]{32})\.arrow")
_PARTS_VERSION = 2  # raise it whenever a part between the same two places would have another content
_MAX_AGE_SECONDS = 30 * 24 * 3600
_NUM_THREADS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """An encoded block of records."""

    number: int
    num_records: int
    start: Place
    end: Place
    path: Path

    def read(self) -> Iterator[pa.RecordBatch]:
        """Yield its output lines, mapped."""
        reader = pa.ipc.open_file(pa.memory_map(str(self.path)))
        for i in range(reader.num_record_batches):
            yield reader.get_batch(i)


class PartsFolder:
    """The parts of one split of one domain."""

    def __init__(self, folder: Path, *, split: str) -> None:
        """Open the parts of a split in the folder of a domain's parts, made if absent.

        Parts that an earlier version wrote in another form are deleted.
        """
        self.folder = folder / f"{split}-{_form_of_parts()}"
        for other in folder.glob(f"{split}-*"):
            if other != self.folder:
                _logger.info("deleting %s, encoded by another version", other)
                shutil.rmtree(other)
        self.folder.mkdir(parents=True, exist_ok=True)

    def write(self, lines: pa.Table, *, number: int, num_records: int, start: Place, end: Place) -> Part:
        """Write the output lines of a block as a part; a kill leaves a file that is no part.

        Raises:
            DiskError: If it cannot be written.
        """
        partial = self.folder / f".{number:06d}.{os.getpid()}.partial"
        try:
            with pa.OSFile(str(partial), "wb") as stream, pa.ipc.new_file(stream, lines.schema) as writer:
                writer.write_table(lines)
            digest = digest_of_file(partial)
            places = f"{start.file}-{start.position}-{end.file}-{end.position}"
            path = self.folder / f"{number:06d}-{num_records}-{places}-{digest}.arrow"
            partial.replace(path)
        except OSError as error:  # pyarrow's does not name the file
            with contextlib.suppress(OSError):
                partial.unlink()
            way_out = "free space there and start again" if is_full_disk(error) else "start again once it can be"
            raise DiskError(
                f"{self.folder}: a block of tokenised rows could not be written ({error}); {way_out}: finished blocks "
                f"are kept"
            ) from error
        return Part(number=number, num_records=num_records, start=start, end=end, path=path)

    def find(self) -> dict[Place, Part]:
        """Return the parts by where they begin; every other file of an interrupted preparation is deleted."""
        paths = [*self.folder.glob("*.arrow"), *self.folder.glob(".*.partial")]
        with ThreadPoolExecutor(max_workers=_NUM_THREADS) as pool:
            found = list(pool.map(_part_of, paths))
        for path, part in zip(paths, found, strict=True):
            if part is None:
                path.unlink()
        return {part.start: part for part in found if part is not None}

    def num_records_of_files(self) -> list[int] | None:
        """Return the number of records of each file as an interrupted preparation counted them, or None."""
        with contextlib.suppress(ValueError):
            return read_json(self.folder / "num_records.json")
        return None

    def keep_num_records(self, num_records: Sequence[int]) -> None:
        """Keep the number of records of each file."""
        write_json(self.folder / "num_records.json", list(num_records))


def _part_of(path: Path) -> Part | None:
    """Return the part that a file is; None if it is incomplete."""
    match = _NAME.fullmatch(path.name)
    if match is None or digest_of_file(path) != match[7]:
        return None
    number, num_records, *places = map(int, match.groups()[:6])
    return Part(number=number, num_records=num_records, start=Place(*places[:2]), end=Place(*places[2:]), path=path)


def _form_of_parts() -> str:
    """Return 8 hexadecimal digits of what the meaning of a part depends on, beside the domain's fingerprint."""
    return digest_of_texts([str(_PARTS_VERSION), str(OUTPUT_SCHEMA), str(line_ranges.MIN_BYTES)])[:8]


@contextlib.contextmanager
def parts_beside(folder: Path, *, locks: Path) -> Iterator[Path]:
    """Yield the folder for the parts of a folder of shards; it may exist, and is not made here.

    It is deleted when the block ends. If it raises, the folder stays for the next start: the reason may be a disk that
    failed once, or a limit that the fingerprint does not contain. Parts of other fingerprints of the domain, and those
    of any domain that nobody has added to for 30 days, are deleted first, unless they are in use.

    Args:
        folder: Where the shards will be, named DOMAIN-FINGERPRINT.
        locks: Folder of lock files; the parts of DOMAIN-FINGERPRINT are in use while the file of this name is locked.
    """
    _delete_stale(folder, locks=locks)
    yield _folder_of_parts(folder)
    delete_parts(folder)


def delete_parts(folder: Path) -> None:
    """Delete the parts of a folder of shards, if there are any."""
    shutil.rmtree(_folder_of_parts(folder), ignore_errors=True)


def _folder_of_parts(folder: Path) -> Path:
    return folder.with_name(f"{_PREFIX}{folder.name}")


def _delete_stale(folder: Path, *, locks: Path) -> None:
    """Delete the parts of a domain's other fingerprints, and old ones of any, that no process is working on."""
    domain = folder.name.rpartition("-")[0]
    for parts in folder.parent.glob(f"{_PREFIX}*"):
        name = parts.name.removeprefix(_PREFIX)
        if name == folder.name:
            continue
        with contextlib.suppress(OSError):
            is_of_domain = name.rpartition("-")[0] == domain
            if is_of_domain or time.time() - _time_of_last_part(parts) > _MAX_AGE_SECONDS:
                _delete_unless_locked(parts, lock=locks / name)


def _time_of_last_part(parts: Path) -> float:
    return max(path.stat().st_mtime for path in (parts, *parts.iterdir()))


def _delete_unless_locked(parts: Path, *, lock: Path) -> None:
    with lock.open("a+b") as stream:
        if try_lock(stream):
            _logger.info("deleting %s, left by an interrupted preparation of other files or settings", parts)
            shutil.rmtree(parts)
