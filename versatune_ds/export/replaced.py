"""Log what an export replaces, before it is written."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from versatune_ds.run_folder.names import EXPORT_FILE
from versatune_ds.text_table import listed

logger = logging.getLogger(__name__)

_MOST_NAMED = 4


def log_what_is_replaced(output: Path) -> None:
    """Log one line where a folder has files already: whose export they are, of which step, and that they are replaced.

    Files that the new export does not have stay, except weights.
    """
    names = sorted(path.name for path in output.iterdir() if not path.name.startswith(".")) if output.is_dir() else []
    if not names:
        return
    try:
        origin = json.loads((output / EXPORT_FILE).read_text(encoding="utf-8"))
        step = f" of step {origin['step']}" if "step" in origin else ""
        what = f"the export{step} of {origin['run']} ({listed(names, most=_MOST_NAMED)})"
    except (OSError, ValueError, KeyError, TypeError):
        what = f"files of the same names among {listed(names, most=_MOST_NAMED)}, and weights"
    logger.warning("%s: replacing %s; give another --output to keep both", output, what)
