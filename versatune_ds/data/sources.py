"""Find the files that a recipe's words for a domain's rows stand for.

The one idea: a file, a glob, a folder, a data set saved by `datasets` and a Hub name all end as an ordered list of
local files, so one set of readers serves them all. Names are sorted: a directory's own order differs between machines.
"""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import datasets

from versatune_ds.config import HubDataset
from versatune_ds.data.readers import SUFFIXES, format_of
from versatune_ds.data.records import COMPRESSIONS
from versatune_ds.data.said_once import warn_once

Source = str | HubDataset


def find_files(sources: Sequence[Source], *, key: str) -> tuple[Path, ...]:
    """Return the data files of one domain's sources in a fixed order.

    Args:
        sources: Their order is kept; files within a glob or folder are sorted.
        key: Dotted key of the recipe, which opens every message.

    Raises:
        ValueError: If a source names nothing, or nothing that can be read.
    """
    files = [file for source in sources for file in _files_of(source, key=key)]
    for file, count in Counter(files).items():
        if count > 1:
            raise ValueError(f"{key}: {file} is named {count} times, so its rows would count {count} times")
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
    if any(character in source for character in "*?["):
        found = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
        files = [_readable(file, key=key) for file in found if file.is_file()]
        if files:
            return files
        raise ValueError(f"{key}: {source!r} matches no file")
    raise ValueError(f"{key}: no such file or folder: {source!r}; a Hub data set is written {{hub: owner/name}}")


def files_of_folder(folder: Path, *, key: str) -> list[Path]:
    """Return the data files below a folder, or those of a data set that `save_to_disk` left there.

    Hidden files are passed over silently, other files that are no data with a warning.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_dir()))
        raise ValueError(f"{key}: {folder} holds several splits ({splits}); name one, for example {folder}/train")
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        return _files_of_saved_dataset(folder, key=key)
    found = sorted(path for path in folder.rglob("*") if path.is_file() and not _is_hidden(path, folder=folder))
    files = [path for path in found if format_of(path)]
    for path in sorted(set(found) - set(files)):
        warn_once(f"{key}: {path} is no data file ({', '.join(SUFFIXES)}); passed over")
    if not files:
        raise ValueError(f"{key}: {folder} holds no data file; expected one of {', '.join(SUFFIXES)}")
    return files


def _files_of_saved_dataset(folder: Path, *, key: str) -> list[Path]:
    """Return the Arrow files of a data set saved by `save_to_disk`."""
    return _cache_files(datasets.load_from_disk(str(folder)), key=key)


def _files_of_hub_dataset(source: HubDataset, *, key: str) -> list[Path]:
    """Return the Arrow files of a data set from the Hub, fetched into the cache of `datasets` when not there.

    `datasets` runs no code that comes with data; data sets that need it do not load.
    """
    try:
        dataset = datasets.load_dataset(source.hub, source.config, split=source.split, revision=source.revision)
    except Exception as error:  # datasets, huggingface_hub and the network each have their own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{key}: cannot load {source.hub!r} (split {source.split!r}): {reason}") from error
    return _cache_files(dataset, key=key)


def _cache_files(dataset: object, *, key: str) -> list[Path]:
    """Return the Arrow files that back a data set."""
    files = [Path(entry["filename"]) for entry in dataset.cache_files]
    if not files:
        raise ValueError(f"{key}: the data set has no files on disk")
    return files


def _readable(path: Path, *, key: str) -> Path:
    """Return a file whose format is known; raise ValueError for any other."""
    if format_of(path) is None:
        known = f"{', '.join(SUFFIXES)}, the text formats also with {' or '.join(COMPRESSIONS)}"
        raise ValueError(f"{key}: {path}: unknown format {path.suffix!r}; known: {known}")
    return path


def _is_hidden(path: Path, *, folder: Path) -> bool:
    """Return whether a file or a folder on the way to it begins with a dot."""
    return any(part.startswith(".") for part in path.relative_to(folder).parts)
