"""What the services of experiment tracking receive of a run's config and files: without the secrets of addresses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from versatune_ds.config import RunConfig
from versatune_ds.data.remote.addresses import without_secrets


def uploaded_config(config: RunConfig) -> dict[str, Any]:
    """Return a config as JSON data, the queries and passwords of its addresses left out."""
    return json.loads(without_secrets(config.model_dump_json()))


def uploaded_text(path: Path) -> str | None:
    """Return a file's text without the secrets of addresses; None if it has none, and can be uploaded as it is."""
    text = path.read_text(encoding="utf-8")
    redacted = without_secrets(text)
    return None if redacted == text else redacted
