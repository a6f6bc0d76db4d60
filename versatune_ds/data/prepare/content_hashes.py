"""Count repeated contents among the records of a split by their 64-bit hashes, in bounded memory.

Hashes are collected in a buffer. A full buffer is sorted, counted and appended to 256 files, by the first byte of the
hash. A hash is then in one known file, so that counting and comparing go file by file: of 100 M records one file has
0.4 M hashes, 6 MB.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

_NUM_BUFFERED = 1 << 18  # 2 MiB
_NUM_PARTITIONS = 256
_SHIFT = np.uint64(64 - 8)


class ContentHashes:
    """The content hashes of one split's records, each with the number of records that have it."""

    def __init__(self, folder: Path) -> None:
        """Collect in memory, and in files of a folder, made when the first buffer is full."""
        self._folder = folder
        self._buffer: list[np.ndarray] = []
        self._num_buffered = 0
        self.is_in_memory = True

    def add(self, hashes: np.ndarray) -> None:
        """Add the hashes of some records, uint64."""
        self._buffer.append(hashes)
        self._num_buffered += len(hashes)
        if self._num_buffered >= _NUM_BUFFERED:
            self._spill()

    def num_duplicates(self) -> int:
        """Return how many records have the content of another one before them."""
        counted = (self._partition(number) for number in _partitions(self))
        return sum(int(counts.sum()) - len(hashes) for hashes, counts in counted)

    def num_in(self, other: ContentHashes) -> int:
        """Return how many records have a content that is among those of another split."""
        total = 0
        for number in _partitions(self, other):
            hashes, counts = self._partition(number)
            if len(hashes):
                total += int(counts[np.isin(hashes, other._partition(number)[0])].sum())
        return total

    def delete(self) -> None:
        """Delete the files."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _partition(self, number: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Return the different hashes of a partition, or of all, sorted, and how many records have each."""
        hashes = np.concatenate(self._buffer) if self._buffer else np.zeros(0, dtype=np.uint64)
        self._buffer = [hashes]
        found = [_counted(hashes if number is None else hashes[hashes >> _SHIFT == number])]
        if number is not None and self._path(number).exists():
            found.append(np.fromfile(self._path(number), dtype=np.uint64).reshape(-1, 2))
        pairs = np.concatenate(found)
        hashes, where = np.unique(pairs[:, 0], return_inverse=True)
        counts = np.bincount(where, weights=pairs[:, 1], minlength=len(hashes))  # exact below 2**53
        return hashes, counts.astype(np.int64)

    def _spill(self) -> None:
        """Append the buffer to the files of its partitions, and empty it."""
        self._folder.mkdir(exist_ok=True)
        self.is_in_memory = False
        pairs = _counted(np.concatenate(self._buffer))
        borders = np.searchsorted(pairs[:, 0] >> _SHIFT, np.arange(_NUM_PARTITIONS + 1, dtype=np.uint64))
        for number in range(_NUM_PARTITIONS):
            if borders[number] < borders[number + 1]:
                with self._path(number).open("ab") as stream:
                    stream.write(pairs[borders[number] : borders[number + 1]].tobytes())
        self._buffer, self._num_buffered = [], 0

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:03d}.hashes"


def _partitions(*splits: ContentHashes) -> Sequence[int | None]:
    """Return the partitions to go through: all at once if no split has written any to disk."""
    return [None] if all(split.is_in_memory for split in splits) else range(_NUM_PARTITIONS)


def _counted(hashes: np.ndarray) -> np.ndarray:
    """Return the different hashes, sorted, and how often each comes, uint64 [n, 2]."""
    found, counts = np.unique(hashes, return_counts=True)
    return np.stack([found, counts.astype(np.uint64)], axis=1)  # int64 beside uint64 would make both float64
