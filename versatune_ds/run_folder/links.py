"""Lock a run's folder, and keep checkpoints safe that a link puts on another disk.

`checkpoints` may be a link to a folder elsewhere. A file in that folder names the run it belongs to, so that a copy of
the run's folder, which has the same link, does not delete the checkpoints of the run it was copied from. `--fresh`
never deletes anything behind a link: the link then leads to a new folder beside the old one.
"""

from __future__ import annotations

import itertools
import logging
import os
from pathlib import Path

from versatune_ds.run_folder.atomic import write_text
from versatune_ds.run_folder.folder_lock import FolderInUseError, FolderLock, find_owner, lock_folder
from versatune_ds.run_folder.names import CHECKPOINTS_FOLDER

logger = logging.getLogger(__name__)

_RUN_FILE = "run_folder"
"""File in a linked folder of checkpoints: the run's folder that they belong to."""
_WAY_OUT = "choose another run.name"


def lock_run_folder(run_dir: Path, *, is_fresh: bool) -> list[FolderLock]:
    """Lock a run's folder for this process, and the folder elsewhere that its checkpoints are in.

    Raises:
        ValueError: If another process owns one of them, or a link leads nowhere.
    """
    check_links(run_dir, is_fresh=is_fresh)
    locks = [lock_folder(run_dir, way_out=_WAY_OUT)]
    if not is_fresh and (run_dir / CHECKPOINTS_FOLDER).is_symlink():
        locks.append(lock_folder(run_dir / CHECKPOINTS_FOLDER, way_out=_WAY_OUT))
    return locks


def check_unlocked(run_dir: Path) -> None:
    """Raise FolderInUseError where another process is known to use a run's folder; wait for nothing, change nothing."""
    owner = find_owner(run_dir)
    if owner is not None:
        raise FolderInUseError(run_dir, owner, _WAY_OUT)


def check_links(run_dir: Path, *, is_fresh: bool) -> None:
    """Check that a run's links lead to folders, and that its checkpoints are not another run's.

    Raises:
        ValueError: In one line that names the link and where it leads.
    """
    link = run_dir / CHECKPOINTS_FOLDER
    for path in (run_dir, link):
        if path.is_symlink() and not path.is_dir():
            raise ValueError(
                f"{path}: is a link to {os.readlink(path)}, where there is no folder; is a disk missing? Make the "
                "folder, or remove the link"
            )
    if is_fresh or not link.is_symlink() or not (link / _RUN_FILE).is_file():
        return
    other = Path((link / _RUN_FILE).read_text(encoding="utf-8").strip())
    if _shares(other, run_dir):
        raise ValueError(
            f"{link}: is a link to {link.resolve()}, where the run in {other} keeps its checkpoints; replace the link "
            "by a copy of that folder, or start over with --fresh"
        )


def is_empty_folder(folder: Path) -> bool:
    """Return whether a folder is empty, apart from a link to an empty folder for checkpoints."""
    others = [path for path in folder.iterdir() if not (path.name == CHECKPOINTS_FOLDER and path.is_symlink())]
    link = folder / CHECKPOINTS_FOLDER
    return not others and not (link.is_dir() and any(link.iterdir()))


def claim_checkpoints(run_dir: Path) -> None:
    """Write into a linked folder of checkpoints which run they belong to."""
    if (run_dir / CHECKPOINTS_FOLDER).is_symlink():
        write_text(run_dir / CHECKPOINTS_FOLDER / _RUN_FILE, f"{run_dir.resolve()}\n")


def point_to_new_folder(link: Path) -> None:
    """Point a link to a folder of checkpoints to a new, empty one beside it; the old one stays as it is.

    Raises:
        ValueError: If no folder can be made there.
    """
    old = link.resolve()
    if not any(old.iterdir()):
        return
    try:
        names = (old.with_name(f"{old.name}_{number}") for number in itertools.count(2))
        new = next(path for path in names if not os.path.lexists(path))
        new.mkdir()
        # Replace the link in one step, so that a kill leaves the old link or the new one.
        draft = link.with_name(f"{link.name}.partial")
        draft.unlink(missing_ok=True)
        draft.symlink_to(new)
        draft.replace(link)
    except OSError as error:
        raise ValueError(
            f"{link}: is a link to {old}, whose content --fresh does not delete, and no folder could be made beside it "
            f"({error}); point the link to an empty folder"
        ) from None
    logger.warning("%s: was a link to %s, which is kept; it now leads to the new folder %s", link, old, new)


def _shares(other: Path, run_dir: Path) -> bool:
    """Return whether another run still has its checkpoints where this run's link leads; a moved run is the same run."""
    try:
        return not other.samefile(run_dir) and (other / CHECKPOINTS_FOLDER).samefile(run_dir / CHECKPOINTS_FOLDER)
    except OSError:
        return False
