"""Choose the file that an evaluation goes into, so that one asked otherwise is not lost.

The one idea: a name says which rows and which checkpoint were measured, and always holds the newest result; what was
there for another question is moved aside. Every result says what was asked.
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
    """Return `evaluation.json`; other rows than the data's usual ones and a checkpoint of one's choice are named.

    Example: `evaluation-valid-step-100.json`.
    """
    words = [split] * (split != default_split) + [f"step-{step}"] * (step is not None)
    name = Path(EVALUATION_FILE)
    return "-".join([name.stem, *words]) + name.suffix


def write_result(result: Mapping[str, Any], path: Path) -> None:
    """Write a result; one of another question that lies there is kept under a name of its own.

    Args:
        result: What was found, with `asked`.
        path: Where it goes.
    """
    kept = _place_of_earlier(path, asked=result["asked"])
    if kept is not None:
        path.replace(kept)
        logger.info("kept what was asked otherwise before as %s", kept)
    write_json(path, result)
    logger.info("wrote %s", path)


def _place_of_earlier(path: Path, *, asked: Mapping[str, Any]) -> Path | None:
    """Return where the result that lies there goes, None where there is none or it answers the same question."""
    if not path.is_file():
        return None
    try:
        earlier = json.loads(path.read_text(encoding="utf-8")).get("asked")
    except (ValueError, AttributeError):
        earlier = "unreadable"  # cut short by a full disk; not ours to throw away
    if earlier == asked:
        return None
    digest = hashlib.blake2b(json.dumps(earlier, sort_keys=True).encode(), digest_size=4).hexdigest()
    return path.with_name(f"{path.stem}-{digest}{path.suffix}")
