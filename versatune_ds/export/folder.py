"""Write an export completely or not at all, and only where it replaces no other files.

The files are written to a hidden folder inside the output and moved out of it when all are written; the output may
contain other files, so it cannot be replaced as one folder (run_folder/atomic.py). An output that contains anything but
an earlier export of the same run is refused unless the user insists.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from versatune_ds.model.weight_files import remove_earlier_weights
from versatune_ds.run_folder.names import (
    CHECKPOINTS_FOLDER,
    EXPORT_FILE,
    MODEL_FOLDER,
    REPORT_FOLDER,
    TOKENIZER_FOLDER,
)
from versatune_ds.text_table import listed

_PARTIAL = ".versatune_export.partial"
_LAST = "tokenizer_config.json"
"""Moved last: whoever waits for an export looks for it."""

_EARLIER_CARD = "tags: [versatune, multi-domain]"
"""In the README.md of exports of earlier versions, which have no EXPORT_FILE."""


def check_output(output: Path, *, run_name: str, run_dir: Path, base_model: str | None, is_forced: bool) -> None:
    """Check that an export may be written to a folder.

    Args:
        output: The folder, which may exist.
        run_name: Name of the run; an earlier export of it is replaced.
        run_dir: The run's folder.
        base_model: Folder or Hub name of the model that the run started from.
        is_forced: Whether files of other origin may be replaced.

    Raises:
        ValueError: If the output is a file, the base model's or the run's own folder, or contains something else.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output: {output} is a file; give a folder")
    if base_model is not None and Path(base_model).is_dir() and output.resolve() == Path(base_model).resolve():
        raise ValueError(f"--output: {output} is the model the run began from, which would be lost; give another")
    own = [run_dir, *(run_dir / name for name in (MODEL_FOLDER, TOKENIZER_FOLDER, CHECKPOINTS_FOLDER, REPORT_FOLDER))]
    if output.resolve() in [folder.resolve() for folder in own]:
        raise ValueError(f"--output: {output} belongs to the run itself; give another folder")
    found = _foreign_content(output, run_name=run_name)
    if found and not is_forced:
        raise ValueError(f"--output: {output} contains {found}; give another folder, or replace its files with --force")


def _foreign_content(output: Path, *, run_name: str) -> str:
    """Describe what a folder contains besides an earlier export of the run; empty if nothing."""
    names = sorted(path.name for path in output.iterdir() if path.name != _PARTIAL) if output.is_dir() else []
    if not names:
        return ""
    owner = _owner_of(output)
    if owner is None:
        return f"something else ({listed(names, most=3)})"
    return "" if owner == run_name else f"the export of another run, {owner}"


def _owner_of(output: Path) -> str | None:
    """Return the name of the run whose export is in a folder, None where there is none."""
    try:
        return str(json.loads((output / EXPORT_FILE).read_text(encoding="utf-8"))["run"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    card = output / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    titles = [line.removeprefix("# ") for line in text.splitlines() if line.startswith("# ") and ":" not in line]
    return titles[0] if _EARLIER_CARD in text and titles else None


@contextlib.contextmanager
def export_folder(output: Path, *, run_name: str, step: int | None = None) -> Iterator[Path]:
    """Yield a folder to write an export to; its files are moved into the output when the block ends without an error.

    Args:
        output: Made if missing. Weights of an earlier export are deleted, files of other names stay.
        run_name: Name of the run, recorded in EXPORT_FILE.
        step: The checkpoint's step, recorded beside it where it is known.
    """
    is_new, partial = not output.exists(), output / _PARTIAL
    shutil.rmtree(partial, ignore_errors=True)  # of an interrupted export
    partial.mkdir(parents=True)
    try:
        yield partial
        files = [path for path in sorted(partial.rglob("*")) if path.is_file()]
        origin = {"run": run_name} | ({} if step is None else {"step": step})
        record = {**origin, "files": [path.relative_to(partial).as_posix() for path in files]}
        (partial / EXPORT_FILE).write_text(json.dumps(record) + "\n", encoding="utf-8")
        files.append(partial / EXPORT_FILE)
        remove_earlier_weights(output)
        for path in sorted(files, key=lambda path: path.name == _LAST):
            place = output / path.relative_to(partial)
            place.parent.mkdir(parents=True, exist_ok=True)
            path.replace(place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if is_new and not any(output.iterdir()):
            output.rmdir()
