"""Keep the id that a service knows a run by, so that the parts of a resumed run are one history there."""

from __future__ import annotations

import secrets
from pathlib import Path

from versatune_ds.run_folder.atomic import write_text


def kept_id(path: Path, *, is_new: bool) -> str:
    """Return the id in a file of the run's folder; a new run, or one without the file, gets a random one.

    Args:
        path: The file.
        is_new: Whether the run starts at step 0.
    """
    if is_new or not path.is_file():
        write_text(path, secrets.token_hex(4))
    return path.read_text(encoding="utf-8").strip()
