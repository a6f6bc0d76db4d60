"""Sample the files of a domain without fetching large ones: of a remote file of lines only the beginning is read.

Remote files of other formats, and small ones, are fetched into the cache, where the run will find them; the log states
their sizes before.
"""

from __future__ import annotations

import dataclasses
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from versatune_ds.data.remote.addresses import redacted
from versatune_ds.data.remote.cache import RemoteSource, fetch_files, read_beginning, remote_files
from versatune_ds.data.remote.fetch import is_cached
from versatune_ds.data.remote.remote_file import RemoteFile
from versatune_ds.data.sources.find_files import Source, find_files
from versatune_ds.paths import is_address
from versatune_ds.preflight.sample import FileSample, sample_file

_logger = logging.getLogger(__name__)

BEGINNING_BYTES = 4 << 20
"""What is read of a file of which only the beginning is read."""

_LINE_SUFFIXES = (".jsonl", ".ndjson", ".txt")


def sample_sources(sources: Sequence[Source], *, key: str, cache_dir: Path, num_records: int) -> tuple[FileSample, ...]:
    """Return up to about `num_records` records of the files of a domain's sources.

    Raises:
        ValueError: If a source does not exist or cannot be read.
    """
    remote = {text: RemoteSource(address=text, key=key, cache_dir=cache_dir) for text in filter(is_address, sources)}
    in_part = {text: source for text, source in remote.items() if _read_in_part(source)}
    fetched = [source for source in sources if not (isinstance(source, str) and source in in_part)]
    paths = find_files(fetched, key=key, cache_dir=cache_dir)
    num_files = len(paths) + sum(len(remote_files(source)) for source in in_part.values())
    num_records = max(num_records // max(num_files, 1), 4)
    samples = [sample_file(path, num_records=num_records) for path in paths]
    for source in in_part.values():
        samples += _sample_in_part(source, num_records=num_records)
    return tuple(samples)


def _read_in_part(source: RemoteSource) -> bool:
    """Return whether a source has files that are too large to fetch for a look, and can be read in part."""
    return any(_is_large(file, source=source) for file in remote_files(source))


def _is_large(file: RemoteFile, *, source: RemoteSource) -> bool:
    is_of_lines = file.name.lower().endswith(_LINE_SUFFIXES)
    is_here = is_cached(file, folder=source.folder)
    return is_of_lines and not is_here and file.num_bytes is not None and file.num_bytes > BEGINNING_BYTES


def _sample_in_part(source: RemoteSource, *, num_records: int) -> list[FileSample]:
    """Sample the beginnings of a source's large files, and its other files as a run would read them."""
    files = remote_files(source)
    large = [file for file in files if _is_large(file, source=source)]
    text = "%s: %s: %d of %d files are over %d MiB; of these only the beginning is read"
    _logger.info(text, source.key, redacted(source.address), len(large), len(files), BEGINNING_BYTES >> 20)
    paths = fetch_files(source, [file for file in files if file not in large])
    samples = [_sample_beginning(file, source=source, num_records=num_records) for file in large]
    return [*samples, *(sample_file(path, num_records=num_records) for path in paths)]


def _sample_beginning(file: RemoteFile, *, source: RemoteSource, num_records: int) -> FileSample:
    """Return records of a file's beginning, and its rows as an estimate by size."""
    beginning = read_beginning(file, source=source, num_bytes=BEGINNING_BYTES)
    complete_lines = beginning[: beginning.rfind(b"\n") + 1]
    if not complete_lines:
        text = "%s: the first line of %s is over %d MiB; the file is fetched"
        _logger.info(text, source.key, redacted(file.address), BEGINNING_BYTES >> 20)
        return sample_file(fetch_files(source, [file])[0], num_records=num_records)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / file.name
        path.write_bytes(complete_lines)
        found = sample_file(path, num_records=num_records)
    return dataclasses.replace(
        found,
        path=PurePosixPath(file.address.partition("://")[2].partition("?")[0]),
        num_rows=found.num_rows * (file.num_bytes or 0) / max(len(complete_lines), 1),
        is_counted=False,
        num_remote_bytes=file.num_bytes,
    )
