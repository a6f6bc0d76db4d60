"""Find the domains of a remote `data.folder`: the data files and folders in its `train/`, as on disk."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from versatune_ds.data.remote.addresses import check_address, redacted
from versatune_ds.data.remote.cache import RemoteSource, remote_files
from versatune_ds.data.sources.readers import format_of
from versatune_ds.domains import domain_name

_KEY = "data.folder"


def remote_domains(folder: str, *, split: str, cache_dir: Path | None) -> dict[str, str]:
    """Return domain to address of a split's file or folder, sorted by domain; none where the split is not there.

    Raises:
        ValueError: If it cannot be listed, or has one domain twice.
    """
    if not check_address(folder, key=_KEY).can_list:
        raise ValueError(
            f"{_KEY}: {redacted(folder)}: folders of a web server cannot be listed; name the files in data.domains"
        )
    address = f"{folder.rstrip('/')}/{split}"
    source = RemoteSource(address=address, key=_KEY, cache_dir=cache_dir, is_split=True)
    address, files = source.address, remote_files(source)
    depth = len(_parts(address))
    entries = sorted({_parts(file.address)[depth] for file in files})
    names = {_parts(file.address)[depth] for file in files if len(_parts(file.address)) == depth + 1}
    domains: dict[str, str] = {}
    for entry in entries:
        name = domain_name(_without_suffix(entry) if entry in names else entry)
        if name in domains:
            both = f"{PurePosixPath(domains[name]).name} and {entry} in {address}"
            raise ValueError(f"{_KEY}: {both} are the same domain {name!r}; put them into one folder {name}/")
        domains[name] = f"{address}/{entry}"
    return dict(sorted(domains.items()))


def _parts(address: str) -> list[str]:
    return [part for part in address.partition("://")[2].split("/") if part]


def _without_suffix(name: str) -> str:
    return name[: name.lower().rindex(format_of(PurePosixPath(name)) or "")]
