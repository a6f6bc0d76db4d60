"""Find the data files below a folder: links are followed, each file is listed once, descriptions are skipped.

Everything is sorted, because the order of a directory differs between machines. Links are followed last: a file that
can be reached without a link keeps its own name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from versatune_ds.data.sources.readers import format_of
from versatune_ds.log import warn_once

_MAX_NAMES = 3
_DESCRIPTIONS = re.compile(
    r"(readme|licen[cs]e|copying|notice|citation|changelog|authors|contributing|code_of_conduct)([._-].*)?\.txt"
    r"|(md5|sha1|sha256|sha512)sums?\.txt|(md5|sha1|sha256|sha512|checksums?)\.txt|requirements\.txt"
    r"|dataset_infos?\.json|dataset_dict\.json|metadata\.json|croissant\.json|datapackage\.json|readme\.json"
    r"|~\$.*",
    re.IGNORECASE,
)
_FILES_OF_DATASETS = re.compile(r"state\.json|cache-\w+\.arrow")
_MACHINE_FOLDERS = frozenset(("_delta_log", "_temporary", "_spark_metadata", "__pycache__", "__macosx"))


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderContent:
    """The files below a folder."""

    files: tuple[Path, ...]
    """Data files, sorted."""
    skipped: tuple[Path, ...]
    """Files that are not data: an unknown format, or the name of a description; hidden files are not listed."""
    repeated: tuple[Path, ...]
    """Links to files that are listed under another name."""


def is_description(path: Path) -> bool:
    """Return whether the name of a file or folder is that of a description: README.txt, dataset_infos.json."""
    if _FILES_OF_DATASETS.fullmatch(path.name):  # only beside what `datasets` saves; elsewhere they may be data
        return (path.parent / "dataset_info.json").exists()
    return path.name.lower() in _MACHINE_FOLDERS or _DESCRIPTIONS.fullmatch(path.name) is not None


def files_below(folder: Path, *, key: str) -> FolderContent:
    """Return the files below a folder and behind its links.

    Raises:
        ValueError: If a folder cannot be listed, or a link to a data file or a folder is broken.
    """
    found = list(_walk(folder, key=key))
    data = [path for path in found if format_of(path) and path.is_file() and not is_description(path)]
    files, repeated = without_repeats(data)
    return FolderContent(files=files, skipped=tuple(sorted(set(found) - set(data))), repeated=repeated)


def without_repeats(paths: Iterable[Path]) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Return files, each once, sorted, and their other names; a name that is not a link is preferred."""
    real_of = {path: os.path.realpath(path) for path in paths}
    name_of: dict[str, Path] = {}
    repeated = []
    for path in sorted(real_of, key=lambda path: (real_of[path] != os.path.abspath(path), path)):
        if name_of.setdefault(real_of[path], path) is not path:
            repeated.append(path)
    return tuple(sorted(name_of.values())), tuple(sorted(repeated))


def warn_of_skipped(skipped: Sequence[Path], repeated: Sequence[Path], *, key: str) -> None:
    """Log once which files of a folder or a glob are not read."""
    if skipped:
        verb = "is not a data file" if len(skipped) == 1 else "are not data files"
        warn_once(f"{key}: {_listed(skipped)} {verb}; skipped")
    if repeated:
        verb = "is a link to a file" if len(repeated) == 1 else "are links to files"
        warn_once(f"{key}: {_listed(repeated)} {verb} read already; skipped")


def _listed(paths: Sequence[Path]) -> str:
    """Return paths in one line; of many, only the first."""
    more = f" and {len(paths) - _MAX_NAMES:,} more" if len(paths) > _MAX_NAMES else ""
    return ", ".join(map(str, paths[:_MAX_NAMES])) + more


def _walk(folder: Path, *, key: str) -> Iterator[Path]:
    """Yield the files in and below a folder; each real folder is entered once, so links cannot loop."""
    pending, links, entered = [folder], [], set()
    above = {str(path) for path in Path(os.path.realpath(folder)).parents}
    while pending or links:
        is_link = not pending
        current = links.pop(0) if is_link else pending.pop()
        real = os.path.realpath(current)
        if is_link and real in above:
            warn_once(f"{key}: {current} is a link to a folder above {folder}; skipped")
            continue
        if real in entered:
            continue
        entered.add(real)
        for path in entries_of_folder(current, key=key):
            if not path.is_dir() or is_description(path):
                yield path
            elif path.is_symlink():
                links.append(path)
            else:
                pending.append(path)


def entries_of_folder(folder: Path, *, key: str) -> list[Path]:
    """Return the entries of a folder, sorted, without hidden ones.

    Raises:
        ValueError: If the folder cannot be listed, or a link to a data file or a folder is broken.
    """
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise ValueError(f"{key}: {folder} cannot be listed: {error.strerror}") from None
    paths = [path for path in paths if not path.name.startswith(".")]
    for path in paths:
        if path.is_symlink() and not path.exists() and (format_of(path) or not path.suffix):
            raise ValueError(f"{key}: {path} is a link to {os.readlink(path)}, which does not exist; fix or remove it")
    return paths
