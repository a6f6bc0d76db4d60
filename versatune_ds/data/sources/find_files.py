"""Find the local files of a domain's sources.

A file, a glob, a folder, a data set saved by `datasets`, a Hub name and an address all become an ordered list of local
files, so the same readers serve them all. Names are sorted, because the order of a directory differs between machines.

Below a folder, links are followed, each file is listed once, and descriptions are skipped. Links are followed last: a
file that can be reached without a link keeps its own name.
"""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import datasets

from versatune_ds.config import HubDataset
from versatune_ds.data.remote.cache import RemoteSource, fetch_files
from versatune_ds.data.sources.file_names import has_name_of_description, is_of_saved_dataset
from versatune_ds.data.sources.missing_data import MissingDataError
from versatune_ds.data.sources.readers import SUFFIXES, format_of
from versatune_ds.data.sources.records import COMPRESSIONS
from versatune_ds.log import first_line, warn_once
from versatune_ds.paths import is_address, nearest_path
from versatune_ds.text_table import listed

Source = str | HubDataset

_MAX_NAMES = 3


def find_files(sources: Sequence[Source], *, key: str, cache_dir: Path | None = None) -> tuple[Path, ...]:
    """Return the data files of one domain's sources in a fixed order.

    Args:
        sources: Their order is kept; files within a glob or folder are sorted.
        key: Dotted key of the recipe, with which every message begins.
        cache_dir: Folder that files of addresses are fetched into; None where no source is an address.

    Raises:
        ValueError: If a source does not exist or cannot be read.
    """
    files = [file for source in sources for file in _files_of(source, key=key, cache_dir=cache_dir)]
    for file, count in Counter(Path(os.path.realpath(file)) for file in files).items():
        if count > 1:
            raise ValueError(
                f"{key}: {file} is listed {count} times, so its rows would count {count} times; list it once"
            )
    for file in files:
        if not os.access(file, os.R_OK):
            raise ValueError(f"{key}: {file} cannot be read: permission denied; change its permissions")
    return tuple(files)


def _files_of(source: Source, *, key: str, cache_dir: Path | None) -> list[Path]:
    if isinstance(source, HubDataset):
        return _files_of_hub_dataset(source, key=key)
    if is_address(source):
        assert cache_dir is not None, "an address needs a cache"
        return fetch_files(RemoteSource(address=source, key=key, cache_dir=cache_dir))
    path = Path(source).expanduser()
    if path.is_dir():
        return _files_of_folder(path, key=key)
    if path.is_file():
        return [_readable(path, key=key)]
    if glob.has_magic(source):
        return _files_of_glob(path, source=source, key=key)
    nearest = nearest_path(path)
    hint = "a Hub data set is written {hub: owner/name}" if nearest is None else f"did you mean {str(nearest)!r}?"
    raise MissingDataError(f"{key}: no such file or folder: {source!r}; {hint}")


def _files_of_glob(path: Path, *, source: str, key: str) -> list[Path]:
    """Return the files that a glob matches, each once; files in matching folders are not read."""
    # Files without descriptions and repeats.
    found = [Path(name) for name in glob.glob(_pattern(path), recursive=True)]
    folders = sorted(path for path in found if path.is_dir())
    descriptions = [path for path in found if path.is_file() and is_description(path)]
    files, repeated = without_repeats(path for path in found if path.is_file() and path not in descriptions)
    warn_of_skipped(sorted(descriptions), repeated, key=key)
    # No match: add the likely cause to the error.
    if not files:
        hint = ""
        if folders:
            hint = f"; it matches the folder {folders[0]}, whose files are {source}/*"
        elif "[" in source:
            hint = "; [ ] are pattern characters: write [[] for a [ in a name"
        raise ValueError(f"{key}: {source!r} matches no file{hint}")
    if "**" not in source:
        for folder in folders:
            warn_once(f"{key}: {folder} matches {source!r} but is a folder; skipped")
    return [_readable(file, key=key) for file in files]


def _pattern(path: Path) -> str:
    """Return a path as a glob pattern in which folders that exist, such as one named `[x]`, match literally."""
    literal = Path(path.anchor)
    parts = path.parts[1:] if path.anchor else path.parts
    for number, part in enumerate(parts):
        if not (literal / part).is_dir():
            return str(Path(glob.escape(str(literal)), *parts[number:]))
        literal /= part
    return glob.escape(str(literal))


def _files_of_folder(folder: Path, *, key: str) -> list[Path]:
    """Return the data files below a folder, or those of a data set that `save_to_disk` wrote there.

    Links are followed; each file is read once. Hidden files are skipped silently, other files that are not data with a
    warning.
    """
    _check_no_splits(folder, key=key)
    if is_saved_dataset(folder):
        return _cache_files(datasets.load_from_disk(str(folder)), key=key)
    files, skipped, repeated = files_below(folder, key=key)
    for path in skipped:
        _check_no_splits(path.parent, key=key)
    warn_of_skipped(skipped, repeated, key=key)
    if not files:
        raise ValueError(f"{key}: {folder} has no data file; expected one of {', '.join(SUFFIXES)}")
    return list(files)


def _check_no_splits(folder: Path, *, key: str) -> None:
    """Raise ValueError if a folder contains the splits of a data set: train and test would be mixed."""
    if (folder / "dataset_dict.json").is_file():
        splits = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_dir()))
        raise ValueError(f"{key}: {folder} has several splits ({splits}); give one, for example {folder}/train")


def is_saved_dataset(folder: Path) -> bool:
    """Return whether a folder is a data set written by `save_to_disk`."""
    return (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()


def _files_of_hub_dataset(source: HubDataset, *, key: str) -> list[Path]:
    """Return the Arrow files of a data set from the Hub, downloaded into the cache of `datasets` if needed.

    `datasets` runs no code that comes with data; data sets that need it do not load.
    """
    try:
        dataset = datasets.load_dataset(source.hub, source.config, split=source.split, revision=source.revision)
    except Exception as error:  # datasets, huggingface_hub and the network raise different ones
        reason = first_line(error)
        raise ValueError(f"{key}: cannot load {source.hub!r} (split {source.split!r}): {reason}") from error
    return _cache_files(dataset, key=key)


def _cache_files(dataset: object, *, key: str) -> list[Path]:
    files = [Path(entry["filename"]) for entry in dataset.cache_files]
    if not files:
        raise ValueError(f"{key}: the data set has no files on disk")
    return files


def _readable(path: Path, *, key: str) -> Path:
    """Return a file if its format is known; raise ValueError for any other."""
    if format_of(path) is None:
        known = f"{', '.join(SUFFIXES)}, the text formats also with {' or '.join(COMPRESSIONS)}"
        raise ValueError(f"{key}: {path}: unknown format {path.suffix!r}; known: {known}")
    return path


def is_description(path: Path) -> bool:
    """Return whether the name of a file or folder is that of a description: README.txt, dataset_infos.json."""
    if is_of_saved_dataset(path.name):  # only beside what `datasets` saves; elsewhere they may be data
        return (path.parent / "dataset_info.json").exists()
    return has_name_of_description(path.name)


def files_below(folder: Path, *, key: str) -> tuple[tuple[Path, ...], tuple[Path, ...], tuple[Path, ...]]:
    """Return the files below a folder and behind its links.

    Returns:
        Data files, sorted; files that are not data (an unknown format, or the name of a description; hidden files are
        not listed); links to files that are listed under another name.

    Raises:
        ValueError: If a folder cannot be listed, or a link to a data file or a folder is broken.
    """
    found = list(_walk(folder, key=key))
    data = [path for path in found if format_of(path) and path.is_file() and not is_description(path)]
    files, repeated = without_repeats(data)
    return files, tuple(sorted(set(found) - set(data))), repeated


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
        warn_once(f"{key}: {listed(skipped, most=_MAX_NAMES)} {verb}; skipped")
    if repeated:
        verb = "is a link to a file" if len(repeated) == 1 else "are links to files"
        warn_once(f"{key}: {listed(repeated, most=_MAX_NAMES)} {verb} read already; skipped")


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
