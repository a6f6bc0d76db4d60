"""Write the result of an evaluation, without overwriting one that was made with other options.

The file's name states the split and the checkpoint where they are not the default ones. It always has the newest
result; an earlier one with other options is renamed. Every result stores its options under `asked`.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from versatune_ds.run_folder.atomic import write_json
from versatune_ds.run_folder.names import EVALUATION_FILE

logger = logging.getLogger(__name__)


def result_name(*, split: str, default_split: str, step: int | None) -> str:
    """Return `evaluation.json`, with the split added if it is not the default, and the step if one was given.

    Example: `evaluation-valid-step-100.json`.
    """
    name = Path(EVALUATION_FILE)
    words = [name.stem]
    if split != default_split:
        words.append(split)
    if step is not None:
        words.append(f"step-{step}")
    return "-".join(words) + name.suffix


def write_result(result: Mapping[str, Any], path: Path) -> None:
    """Write a result; an earlier one with other options is kept under another name.

    Args:
        result: The result, with its options as `asked`.
        path: File to write.
    """
    kept = _place_of_earlier(path, asked=result["asked"])
    if kept is not None:
        path.replace(kept)
        logger.info("kept the earlier result, made with other options, as %s", kept)
    write_json(path, result)
    logger.info("wrote %s", path)


def _place_of_earlier(path: Path, *, asked: Mapping[str, Any]) -> Path | None:
    """Return where to keep an earlier result; None if there is none, or its options are the same."""
    if not path.is_file():
        return None
    try:
        earlier = json.loads(path.read_text(encoding="utf-8")).get("asked")
    except (ValueError, AttributeError):
        earlier = "unreadable"  # truncated by a full disk, perhaps; keep it for the user
    if earlier == asked:
        return None
    digest = hashlib.blake2b(json.dumps(earlier, sort_keys=True).encode(), digest_size=4).hexdigest()
    return path.with_name(f"{path.stem}-{digest}{path.suffix}")
