"""Keep what a preparation has encoded so far, so that a killed one continues where it was.

Every encoded block of records becomes a part: an Arrow file whose name has its number, the place where it ends and a
digest of its bytes. A part whose bytes do not match its name is encoded again, so parts need not be forced to disk.

Parts of a domain lie beside its folder of shards, under the same fingerprint, until the shards are complete.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from versatune_ds.data.manifest import digest_of_file
from versatune_ds.data.prepare.record_blocks import Place
from versatune_ds.run_folder.atomic import read_json, write_json
from versatune_ds.run_folder.file_lock import try_lock

_logger = logging.getLogger(__name__)

_PREFIX = ".parts-"
_NAME = re.compile(r"(\d{6,})-(\d+)-(\d+)-(\d+)-([0-9a-f]{32})\.arrow")
_NUM_THREADS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """An encoded block of records."""

    number: int
    num_records: int
    end: Place
    path: Path

    def read(self) -> Iterator[pa.RecordBatch]:
        """Yield its output lines, mapped."""
        reader = pa.ipc.open_file(pa.memory_map(str(self.path)))
        for i in range(reader.num_record_batches):
            yield reader.get_batch(i)


class PartsFolder:
    """The parts of one split of one domain."""

    def __init__(self, folder: Path) -> None:
        """Open a folder, made if absent."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder

    def write(self, lines: pa.Table, *, number: int, num_records: int, end: Place) -> Part:
        """Write the output lines of a block as a part; a kill leaves a file that is no part."""
        partial = self.folder / f".{number:06d}.{os.getpid()}.partial"
        with pa.OSFile(str(partial), "wb") as stream, pa.ipc.new_file(stream, lines.schema) as writer:
            writer.write_table(lines)
        digest = digest_of_file(partial)
        path = self.folder / f"{number:06d}-{num_records}-{end.file}-{end.position}-{digest}.arrow"
        partial.replace(path)
        return Part(number=number, num_records=num_records, end=end, path=path)

    def find(self) -> dict[int, Part]:
        """Return the parts by number; every other file of an interrupted preparation is deleted."""
        paths = [*self.folder.glob("*.arrow"), *self.folder.glob(".*.partial")]
        with ThreadPoolExecutor(max_workers=_NUM_THREADS) as pool:
            found = list(pool.map(_part_of, paths))
        for path, part in zip(paths, found, strict=True):
            if part is None:
                path.unlink()
        return {part.number: part for part in found if part is not None}

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
    if match is None or digest_of_file(path) != match[5]:
        return None
    number, num_records, file, position = map(int, match.groups()[:4])
    return Part(number=number, num_records=num_records, end=Place(file, position), path=path)


@contextlib.contextmanager
def parts_beside(folder: Path, *, locks: Path) -> Iterator[Path]:
    """Yield the folder for the parts of a folder of shards; it may exist, and is not made here.

    It is deleted when the block ends, or raises ValueError: then the data or the recipe have to change. Otherwise it
    stays, for the next start. Parts of other fingerprints of the domain are deleted first, unless they are in use.

    Args:
        folder: Where the shards will be, named DOMAIN-FINGERPRINT.
        locks: Folder of lock files; the parts of DOMAIN-FINGERPRINT are in use while the file of this name is locked.
    """
    _delete_stale(folder, locks=locks)
    try:
        yield _folder_of_parts(folder)
    except ValueError:
        delete_parts(folder)
        raise
    delete_parts(folder)


def delete_parts(folder: Path) -> None:
    """Delete the parts of a folder of shards, if there are any."""
    shutil.rmtree(_folder_of_parts(folder), ignore_errors=True)


def _folder_of_parts(folder: Path) -> Path:
    return folder.with_name(f"{_PREFIX}{folder.name}")


def _delete_stale(folder: Path, *, locks: Path) -> None:
    """Delete the parts of a domain's other fingerprints that no process is working on."""
    domain = folder.name.rpartition("-")[0]
    for parts in folder.parent.glob(f"{_PREFIX}{domain}-*"):
        name = parts.name.removeprefix(_PREFIX)
        if name == folder.name or name.rpartition("-")[0] != domain:
            continue
        with contextlib.suppress(OSError), (locks / name).open("a+b") as stream:
            if try_lock(stream):
                _logger.info("deleting %s, encoded by an interrupted preparation of other files or settings", parts)
                shutil.rmtree(parts)
