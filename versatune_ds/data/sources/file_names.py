"""Recognise files that describe data, and folders that programs make for themselves, by their names alone."""

from __future__ import annotations

import re

_DESCRIPTIONS = re.compile(
    r"(readme|licen[cs]e|copying|notice|citation|changelog|authors|contributing|code_of_conduct)([._-].*)?\.txt"
    r"|(md5|sha1|sha256|sha512)sums?\.txt|(md5|sha1|sha256|sha512|checksums?)\.txt|requirements\.txt"
    r"|dataset_infos?\.json|dataset_dict\.json|metadata\.json|croissant\.json|datapackage\.json|readme\.json"
    r"|~\$.*",
    re.IGNORECASE,
)
_FILES_OF_DATASETS = re.compile(r"state\.json|cache-\w+\.arrow")
_MACHINE_FOLDERS = frozenset(("_delta_log", "_temporary", "_spark_metadata", "__pycache__", "__macosx"))


def has_name_of_description(name: str) -> bool:
    """Return whether a file's or folder's name is that of a description: README.txt, dataset_infos.json."""
    return is_machine_folder(name) or _DESCRIPTIONS.fullmatch(name) is not None


def is_machine_folder(name: str) -> bool:
    """Return whether a folder's name is one that programs use for themselves, such as `_delta_log`."""
    return name.lower() in _MACHINE_FOLDERS


def is_of_saved_dataset(name: str) -> bool:
    """Return whether a file has a name that `datasets` uses; it is a description beside a `dataset_info.json` only."""
    return _FILES_OF_DATASETS.fullmatch(name) is not None
