"""List the files of an address: one file, the data files below a folder, or those that match a pattern.

The rules are those of files on disk: sorted by path, hidden files skipped silently, descriptions and other files that
are not data with a warning, a data set written by `save_to_disk` in its own order.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Sequence
from pathlib import PurePosixPath

from versatune_ds.data.remote.addresses import check_address, redacted
from versatune_ds.data.remote.errors import RemoteMissingError
from versatune_ds.data.remote.remote_file import RemoteFile
from versatune_ds.data.remote.stores import Store
from versatune_ds.data.sources.file_names import has_name_of_description, is_machine_folder, is_of_saved_dataset
from versatune_ds.data.sources.readers import SUFFIXES, format_of
from versatune_ds.log import warn_once
from versatune_ds.text_table import listed

_MAX_NAMES = 3


def list_files(address: str, *, store: Store, key: str, is_split: bool = False) -> list[RemoteFile]:
    """Return the data files of an address, in the order in which they would be read from disk.

    Args:
        address: A file, a folder, or a pattern; a file or folder that has exactly this name is no pattern.
        store: Where it is.
        key: Dotted key of the recipe, for messages.
        is_split: Whether it is a folder of domains, and so no saved data set.

    Raises:
        RemoteError: If it does not exist, or cannot be listed.
        ValueError: If it has no data file, or several splits.
    """
    pattern = address.partition("://")[2]
    if not check_address(address, key=key).can_list:
        if "*" in pattern.partition("?")[0]:
            raise ValueError(f"{key}: {redacted(address)}: files of a web server cannot be listed; list every file")
        return [_readable(store.info(address), key=key)]
    entry = _named_exactly(address, store=store) if glob.has_magic(pattern) else store.info(address)
    if entry is None:
        return _files_of_pattern(address, store=store, key=key)
    if not entry.is_folder:
        return [_readable(entry, key=key)]
    return _files_of_folder(entry, store=store, key=key, is_split=is_split)


def _named_exactly(address: str, *, store: Store) -> RemoteFile | None:
    """Return the file or folder whose name has the `[` of a pattern, such as `a[1].jsonl`; None if there is none."""
    if "*" in address:
        return None
    try:
        return store.info(address)
    except RemoteMissingError:
        return None


def _readable(file: RemoteFile, *, key: str) -> RemoteFile:
    if _format_of(file) is None:
        raise ValueError(
            f"{key}: {redacted(file.address)}: unknown format; expected an address that ends in one of "
            f"{', '.join(SUFFIXES)}, the text formats also with .gz or .zst"
        )
    return file


def _format_of(file: RemoteFile) -> str | None:
    return format_of(PurePosixPath(file.name))


def _files_of_pattern(pattern: str, *, store: Store, key: str) -> list[RemoteFile]:
    entries = sorted(store.matching(pattern), key=lambda file: file.path)
    root = PurePosixPath(pattern.partition("://")[2])
    while glob.has_magic(str(root)):
        root = root.parent
    files = [file for file in entries if not file.is_folder and not _is_hidden(file, below=root)]
    descriptions = _descriptions(files, below=root)
    _warn_of_skipped(descriptions, key=key)
    files = [file for file in files if file not in descriptions]
    folders = [file.address for file in entries if file.is_folder]
    if not files:
        hint = f"; it matches the folder {folders[0]}, whose files are {pattern}/*" if folders else ""
        raise ValueError(f"{key}: {pattern!r} matches no file{hint}")
    if "**" not in pattern:
        for folder in folders:
            warn_once(f"{key}: {folder} matches {pattern!r} but is a folder; skipped")
    return [_readable(file, key=key) for file in files]


def _files_of_folder(folder: RemoteFile, *, store: Store, key: str, is_split: bool) -> list[RemoteFile]:
    files = [file for file in store.below(folder.address) if not _is_hidden(file, below=folder.path)]
    files.sort(key=lambda file: file.path)
    by_name = {str(file.path.relative_to(folder.path)): file for file in files}
    if "dataset_dict.json" in by_name:
        raise ValueError(f"{key}: {folder.address} has several splits; give one, for example {folder.address}/train")
    if {"state.json", "dataset_info.json"} <= by_name.keys():
        if is_split:
            raise ValueError(
                f"{key}: {folder.address} is one saved data set, not a folder of domains; name it in data.domains"
            )
        return _files_of_saved_dataset(by_name, store=store)
    descriptions = _descriptions(files, below=folder.path)
    data = [file for file in files if _format_of(file) and file not in descriptions]
    _warn_of_skipped([file for file in files if file not in data], key=key)
    if not data:
        raise ValueError(f"{key}: {folder.address} has no data file; expected one of {', '.join(SUFFIXES)}")
    return data


def _files_of_saved_dataset(by_name: dict[str, RemoteFile], *, store: Store) -> list[RemoteFile]:
    """Return the files that a data set's `state.json` lists, in its order."""
    _, blocks = store.read(by_name["state.json"], start=0)
    names = [entry["filename"] for entry in json.loads(b"".join(blocks))["_data_files"]]
    missing = [name for name in names if name not in by_name]
    if missing:
        raise RemoteMissingError(f"state.json lists {missing[0]}, which is not there")
    return [by_name[name] for name in names]


def _descriptions(files: Sequence[RemoteFile], *, below: PurePosixPath) -> list[RemoteFile]:
    """Return the files that describe data, or lie in a folder that a program made for itself."""
    saved = {file.path.parent for file in files if file.name == "dataset_info.json"}
    return [
        file
        for file in files
        if has_name_of_description(file.name)
        or (is_of_saved_dataset(file.name) and file.path.parent in saved)
        or any(map(is_machine_folder, _own_parts(file, below=below)))
    ]


def _is_hidden(file: RemoteFile, *, below: PurePosixPath) -> bool:
    """Return whether the name of a file, or of a folder between it and `below`, begins with a dot."""
    return any(part.startswith(".") for part in _own_parts(file, below=below))


def _own_parts(file: RemoteFile, *, below: PurePosixPath) -> list[str]:
    """Return the parts of a file's path below a folder; some stores begin paths with a slash, some do not."""
    num_above = len([part for part in below.parts if part != "/"])
    return [part for part in file.path.parts if part != "/"][num_above:]


def _warn_of_skipped(skipped: Sequence[RemoteFile], *, key: str) -> None:
    if skipped:
        verb = "is not a data file" if len(skipped) == 1 else "are not data files"
        warn_once(f"{key}: {listed([file.address for file in skipped], most=_MAX_NAMES)} {verb}; skipped")
