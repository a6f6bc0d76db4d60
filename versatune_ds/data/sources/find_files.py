"""Find the local files of a domain's sources.

A file, a glob, a folder, a data set saved by `datasets` and a Hub name all become an ordered list of local files, so
the same readers serve them all. Names are sorted, because the order of a directory differs between machines.
"""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import datasets

from versatune_ds.config import HubDataset
from versatune_ds.data.sources.data_folders import files_below, is_description, warn_of_skipped, without_repeats
from versatune_ds.data.sources.readers import SUFFIXES, format_of
from versatune_ds.data.sources.records import COMPRESSIONS
from versatune_ds.log import first_line, warn_once

Source = str | HubDataset


class MissingDataError(ValueError):
    """A file or folder of the recipe's data is not there, perhaps because it was moved."""


def find_files(sources: Sequence[Source], *, key: str) -> tuple[Path, ...]:
    """Return the data files of one domain's sources in a fixed order.

    Args:
        sources: Their order is kept; files within a glob or folder are sorted.
        key: Dotted key of the recipe, with which every message begins.

    Raises:
        ValueError: If a source does not exist or cannot be read.
    """
    files = [file for source in sources for file in _files_of(source, key=key)]
    for file, count in Counter(Path(os.path.realpath(file)) for file in files).items():
        if count > 1:
            raise ValueError(
                f"{key}: {file} is listed {count} times, so its rows would count {count} times; list it once"
            )
    for file in files:
        if not os.access(file, os.R_OK):
            raise ValueError(f"{key}: {file} cannot be read: permission denied; change its permissions")
    return tuple(files)


def _files_of(source: Source, *, key: str) -> list[Path]:
    """Return the files of one source."""
    if isinstance(source, HubDataset):
        return _files_of_hub_dataset(source, key=key)
    path = Path(source).expanduser()
    if path.is_dir():
        return files_of_folder(path, key=key)
    if path.is_file():
        return [_readable(path, key=key)]
    if glob.has_magic(source):
        return _files_of_glob(path, source=source, key=key)
    raise MissingDataError(f"{key}: no such file or folder: {source!r}; a Hub data set is written {{hub: owner/name}}")


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


def files_of_folder(folder: Path, *, key: str) -> list[Path]:
    """Return the data files below a folder, or those of a data set that `save_to_disk` wrote there.

    Links are followed; each file is read once. Hidden files are skipped silently, other files that are not data with a
    warning.
    """
    _check_no_splits(folder, key=key)
    if is_saved_dataset(folder):
        return _files_of_saved_dataset(folder, key=key)
    content = files_below(folder, key=key)
    for path in content.skipped:
        _check_no_splits(path.parent, key=key)
    warn_of_skipped(content.skipped, content.repeated, key=key)
    if not content.files:
        raise ValueError(f"{key}: {folder} has no data file; expected one of {', '.join(SUFFIXES)}")
    return list(content.files)


def _check_no_splits(folder: Path, *, key: str) -> None:
    """Raise ValueError if a folder contains the splits of a data set: train and test would be mixed."""
    if (folder / "dataset_dict.json").is_file():
        splits = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_dir()))
        raise ValueError(f"{key}: {folder} has several splits ({splits}); give one, for example {folder}/train")


def is_saved_dataset(folder: Path) -> bool:
    """Return whether a folder is a data set written by `save_to_disk`."""
    return (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()


def _files_of_saved_dataset(folder: Path, *, key: str) -> list[Path]:
    """Return the Arrow files of a data set written by `save_to_disk`."""
    return _cache_files(datasets.load_from_disk(str(folder)), key=key)


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
    """Return the Arrow files of a data set."""
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
