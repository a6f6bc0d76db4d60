"""Read and write the JSON-lines files of a run, also after a kill, a power cut or on a full disk.

A line is written completely or not at all. A kill may still leave an incomplete last line, and a file system that lost
its last block leaves zeros: such a last line is skipped, and logged. Anywhere else an unreadable line is damage, and
reported with its number. When a run resumes, the files are cut back to that step, so that they read as one history.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from versatune_ds.run_folder.atomic import write_text
from versatune_ds.run_folder.disk_errors import DiskError, is_full_disk
from versatune_ds.run_folder.names import DECISIONS_FILE, METRICS_FILE

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonLine:
    """A line of a file that is not empty.

    Attributes:
        number: Number of the line, from 1.
        text: The line as it is in the file, without its line end.
        value: The object in it; None where there is none.
        is_last: Whether nothing but empty lines follow.
    """

    number: int
    text: str
    value: dict[str, Any] | None
    is_last: bool

    @property
    def problem(self) -> str:
        """Return what is wrong with a line without an object."""
        if not self.text.strip("\0 \t\r"):
            return "zeros, as a power cut leaves"
        return "cut off, followed by zeros" if "\0" in self.text else "no complete JSON object"


def json_lines(path: Path) -> Iterator[JsonLine]:
    """Yield the lines of a file that are not empty; a missing file has none."""
    if not path.is_file():
        return
    texts = path.read_text(encoding="utf-8", errors="replace").split("\n")
    filled = [(number, text) for number, text in enumerate(texts, start=1) if text.strip()]
    for number, text in filled:
        yield JsonLine(number=number, text=text, value=_object_in(text), is_last=number == filled[-1][0])


def complete_lines(path: Path, *, when_damaged: Callable[[str], None]) -> Iterator[JsonLine]:
    """Yield the lines that contain an object; a last one that does not is skipped, which is logged.

    Args:
        path: The file.
        when_damaged: Called with a sentence for every other line without an object; it may raise.
    """
    for line in json_lines(path):
        if line.value is not None:
            yield line
        elif line.is_last:
            _log_left_out(path, line)
        else:
            when_damaged(f"{path}:{line.number}: {line.problem}")


def append_json_line(file: io.RawIOBase, values: Mapping[str, Any]) -> None:
    """Append an object as one line to an unbuffered file; if that fails, cut off the part that was written.

    A buffer would keep a line that the disk has no room for and, once full, write a part of another behind it.

    Raises:
        OSError: If it cannot be written.
    """
    line = (json.dumps(values, allow_nan=False) + "\n").encode()
    start = file.seek(0, io.SEEK_END)
    try:
        while line:  # a disk that is nearly full takes a part
            line = line[file.write(line) :]
    except OSError:
        with contextlib.suppress(OSError):
            file.truncate(start)
        raise


def append_to_file(path: Path, values: Mapping[str, Any]) -> None:
    """Append an object as one line to a file, which is made where it is missing; see `append_json_line`.

    Raises:
        OSError: If it cannot be written; it has the file's name, which a write on an open file leaves out.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        try:
            append_json_line(file, values)
        except OSError as error:
            error.filename = str(path)
            raise


def restored_objects(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file that one program appends to, then cut off what a kill left of a last line."""
    if not path.is_file():
        return
    num_bytes = 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            num_bytes += len(line)
            yield json.loads(line)
    os.truncate(path, num_bytes)


def cut_json_lines(path: Path, *, key: str, last_step: int) -> None:
    """Drop the lines of steps beyond `last_step`, and a last line that a kill or a power cut left incomplete.

    The step of an object is at `key`. A corrupt line between others stays where it is, and is logged: its step is
    unknown. A missing file stays missing.
    """
    if not path.is_file():
        return
    lines = list(json_lines(path))
    kept = [line for line in lines if _step_of(line, key=key) <= last_step]
    last_kept = kept[-1].number if kept else 0
    # Log the corrupt lines, unless the run restarts and nothing of the file stays.
    for line in lines:
        if line.value is not None or last_kept == 0:
            continue
        if line.number > last_kept:
            _log_left_out(path, line)
        else:
            text = "%s:%d: %s; it stays, and is skipped when this file is read"
            logger.warning(text, path, line.number, line.problem)
    stays = [line for line in lines if line in kept or (line.value is None and line.number < last_kept)]
    write_text(path, "".join(line.text + "\n" for line in stays))


class JsonLines:
    """The sink that appends metrics and decisions to the files of a run, one object a line, written at once.

    A full disk costs metrics, which training can do without. A decision that cannot be written ends the run, because
    nobody could replay it.
    """

    def __init__(self, run_dir: Path, *, resumed_step: int) -> None:
        self._metrics_path, self._decisions_path = run_dir / METRICS_FILE, run_dir / DECISIONS_FILE
        cut_json_lines(self._metrics_path, key="step", last_step=resumed_step)
        cut_json_lines(self._decisions_path, key="decided_at_step", last_step=resumed_step)
        self._metrics = self._metrics_path.open("ab", buffering=0)
        self._decisions = self._decisions_path.open("ab", buffering=0)
        self._has_warned = False

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line; NaN and infinity become null, which JSON has.

        A line that the disk has no room for is dropped, and the first such line is logged.
        """
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        try:
            append_json_line(self._metrics, {"step": step, **finite})
        except OSError as error:
            if self._has_warned:
                return
            self._has_warned = True
            logger.warning(
                "%s: the metrics of step %d were not written (%s); training continues, without metrics until there is "
                "room again; free some disk space",
                self._metrics_path,
                step,
                error.strerror or error,
            )

    def decision(self, decision: Mapping[str, Any]) -> None:
        """Append one line.

        Raises:
            DiskError: If it cannot be written.
        """
        try:
            append_json_line(self._decisions, decision)
        except OSError as error:
            way_out = "Free disk space and start" if is_full_disk(error) else "Start"
            raise DiskError(
                f"{self._decisions_path}: a decision could not be written ({error.strerror or error}), and nobody "
                f"could replay the run without it. {way_out} again to resume from the newest checkpoint"
            ) from error

    def alert(self, step: int, *, title: str, text: str) -> None:
        """Write nothing: the metrics or the decision that the alert is about are in the files."""

    def finish(self, *, exit_code: int) -> None:
        """Close the files."""
        self._metrics.close()
        self._decisions.close()


def missing_field(values: Mapping[str, Any], expected: Sequence[str]) -> str:
    """Return that a user's line lacks a field, and which it has instead; empty if it lacks none."""
    missing = [name for name in expected if name not in values]
    if not missing:
        return ""
    return f"no field {missing[0]!r}; found {', '.join(values) or 'none'}"


def _object_in(text: str) -> dict[str, Any] | None:
    """Return the object in a line, None where there is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _step_of(line: JsonLine, *, key: str) -> float:
    """Return the step of a line, infinity where it has none."""
    try:
        return math.inf if line.value is None else int(line.value[key])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _log_left_out(path: Path, line: JsonLine) -> None:
    logger.warning("%s:%d: the last line is skipped: %s", path, line.number, line.problem)
