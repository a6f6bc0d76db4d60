"""Find the files below a folder: through links, each one once, without those that only describe the data.

A directory's own order differs between machines, so everything is sorted. A link is followed after all that lies in the
folder itself: what can be reached without links keeps its own name, wherever else it is linked.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from versatune_ds.data.sources.readers import format_of
from versatune_ds.warn_once import warn_once

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
    """List what lies below a folder."""

    files: tuple[Path, ...]
    """Data files, sorted."""
    left_out: tuple[Path, ...]
    """Files that are no data: of an unknown format, or by their name a description; hidden ones are not listed."""
    repeated: tuple[Path, ...]
    """Links to files that are listed under another name."""


def is_description(path: Path) -> bool:
    """Return whether a file or folder is by its name about the data: README.txt, dataset_infos.json, _delta_log."""
    if _FILES_OF_DATASETS.fullmatch(path.name):  # beside what `datasets` saves; elsewhere they may be a domain's rows
        return (path.parent / "dataset_info.json").exists()
    return path.name.lower() in _MACHINE_FOLDERS or _DESCRIPTIONS.fullmatch(path.name) is not None


def files_below(folder: Path, *, key: str) -> FolderContent:
    """Return the files below a folder and behind its links.

    Raises:
        ValueError: If a folder cannot be listed, or a link to a data file or a folder leads nowhere.
    """
    found = list(_walk(folder, key=key))
    data = [path for path in found if format_of(path) and path.is_file() and not is_description(path)]
    files, repeated = without_repeats(data)
    return FolderContent(files=files, left_out=tuple(sorted(set(found) - set(data))), repeated=repeated)


def without_repeats(paths: Iterable[Path]) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Return files, each once, sorted, and their further names; a name that is no link stands before links."""
    real_of = {path: os.path.realpath(path) for path in paths}
    name_of: dict[str, Path] = {}
    repeated = []
    for path in sorted(real_of, key=lambda path: (real_of[path] != os.path.abspath(path), path)):
        if name_of.setdefault(real_of[path], path) is not path:
            repeated.append(path)
    return tuple(sorted(name_of.values())), tuple(sorted(repeated))


def warn_of_left_out(left_out: Sequence[Path], repeated: Sequence[Path], *, key: str) -> None:
    """Log once what of a folder or a glob is not read."""
    if left_out:
        verb = "is no data file" if len(left_out) == 1 else "are no data files"
        warn_once(f"{key}: {_listed(left_out)} {verb}; passed over")
    if repeated:
        verb = "is a link to a file" if len(repeated) == 1 else "are links to files"
        warn_once(f"{key}: {_listed(repeated)} {verb} read already; passed over")


def _listed(paths: Sequence[Path]) -> str:
    """Return paths in one line, the first ones where there are many."""
    more = f" and {len(paths) - _MAX_NAMES:,} more" if len(paths) > _MAX_NAMES else ""
    return ", ".join(map(str, paths[:_MAX_NAMES])) + more


def _walk(folder: Path, *, key: str) -> Iterator[Path]:
    """Yield the files of a folder and all below it; each real folder is entered once, so that links cannot go round."""
    pending, links, entered = [folder], [], set()
    above = {str(path) for path in Path(os.path.realpath(folder)).parents}
    while pending or links:
        is_link = not pending
        current = links.pop(0) if is_link else pending.pop()
        real = os.path.realpath(current)
        if is_link and real in above:
            warn_once(f"{key}: {current} is a link to a folder above {folder}; passed over")
            continue
        if real in entered:
            continue
        entered.add(real)
        for path in entries_of_folder(current, key=key):
            if path.is_dir() and not is_description(path):
                (links if path.is_symlink() else pending).append(path)
            else:
                yield path


def entries_of_folder(folder: Path, *, key: str) -> list[Path]:
    """Return what lies in a folder, sorted, without hidden entries.

    Raises:
        ValueError: If the folder cannot be listed, or a link to a data file or a folder leads nowhere.
    """
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise ValueError(f"{key}: {folder} cannot be listed: {error.strerror}") from None
    paths = [path for path in paths if not path.name.startswith(".")]
    for path in paths:
        if path.is_symlink() and not path.exists() and (format_of(path) or not path.suffix):
            raise ValueError(f"{key}: {path} is a link to {os.readlink(path)}, which is not there; mend or remove it")
    return paths
