"""How much memory of the host this process may still use: the machine's, or what its container or job is given."""

from __future__ import annotations

from pathlib import Path

_MEMORY, _OWN_GROUP, _GROUPS = Path("/proc/meminfo"), Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def available_bytes() -> int | None:
    """Return the bytes that can be allocated without swapping; None where the system does not report them.

    Only Linux does. Limits of cgroups of version 2 are read, those of version 1 are not.
    """
    try:
        lines = _MEMORY.read_text().splitlines()
        machine = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    return min([machine, *_available_in_groups()])


def _available_in_groups() -> list[int]:
    """Return what this process's cgroup, and each one around it, may still use; nothing for those without a limit."""
    try:
        lines = _OWN_GROUP.read_text().splitlines()
    except OSError:
        return []
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), None)
    if own is None:
        return []
    available = []
    for folder in (_GROUPS / own, *(_GROUPS / own).parents):
        if not folder.is_relative_to(_GROUPS):
            break
        try:
            most, used = (folder / "memory.max").read_text().strip(), int((folder / "memory.current").read_text())
        except (OSError, ValueError):
            continue
        if most.isdigit():
            available.append(max(int(most) - used, 0))
    return available
