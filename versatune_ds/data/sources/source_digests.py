"""Cache the content digests of source files, so that gigabytes are not read at every start.

A digest is cached with the file's size, inode, mtime and ctime in nanoseconds; ctime changes even when a program sets
mtime back. A file changed within the last seconds is not cached, because a coarse clock may not show its next change.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from versatune_ds.data.manifest import digest_of_file
from versatune_ds.run_folder.atomic import write_text

_SETTLED_SECONDS = 3.0
_NUM_THREADS = 4


class SourceDigests:
    """Digests of source files, cached in `source_digests.json` of the folder `cache_dir`."""

    def __init__(self, cache_dir: Path) -> None:
        """Read the cache; one that cannot be read counts as empty."""
        self.cache_dir = cache_dir
        self._path = cache_dir / "source_digests.json"
        try:
            self._known: dict[str, str] = dict(json.loads(self._path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            self._known = {}

    def of(self, paths: Sequence[Path]) -> list[str]:
        """Return `name:digest` of every file, in order; the name is included because it decides the format."""
        keys = [_key(path) for path in paths]
        unknown = [i for i, key in enumerate(keys) if key not in self._known]
        found = {key: self._known[key] for key in keys if key in self._known}
        with ThreadPoolExecutor(max_workers=_NUM_THREADS) as pool:
            for i, digest in zip(unknown, pool.map(digest_of_file, [paths[i] for i in unknown]), strict=True):
                found[keys[i]] = digest
        settled = {keys[i]: found[keys[i]] for i in unknown if _is_settled(paths[i])}
        if settled:
            self._known |= settled
            self.cache_dir.mkdir(parents=True, exist_ok=True)
            # In one step; of two writers at once, the last one wins.
            write_text(self._path, json.dumps(self._known, indent=0))
        return [f"{path.name}:{found[key]}" for path, key in zip(paths, keys, strict=True)]


def _key(path: Path) -> str:
    """Return what identifies a file's content without reading it."""
    stat = path.stat()
    return f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}:{stat.st_ino}"


def _is_settled(path: Path) -> bool:
    """Return whether a file's last change is so old that the next one will have another time."""
    stat = path.stat()
    return time.time() - max(stat.st_mtime, stat.st_ctime) > _SETTLED_SECONDS
