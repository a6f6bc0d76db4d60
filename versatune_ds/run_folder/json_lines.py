"""Keep the run's record: metrics and decisions as JSON lines in the run directory.

The one idea: files are cut back to the resumed step, so a run that was killed and resumed reads as one history. A line
is written whole or not at all: a full disk costs metrics, which training can do without, but never leaves half a line.
A decision that cannot be written ends the run, for nobody could replay it.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from versatune_ds.run_folder.json_records import JsonLine, json_lines
from versatune_ds.run_folder.names import DECISIONS_FILE, METRICS_FILE

logger = logging.getLogger(__name__)



def cut_json_lines(path: Path, *, key: str, last_step: int) -> None:
    """Drop the lines of steps beyond `last_step`, and a last line that a kill or a power cut left unfinished.

    A broken line between others stays where it is, and is named: nobody knows what it held.

    Args:
        path: A JSON-lines file; a missing one is left missing.
        key: Key that holds the step.
        last_step: Steps up to this one stay.
    """
    if not path.is_file():
        return
    lines = list(json_lines(path))
    kept = [line for line in lines if _step_of(line, key=key) <= last_step]
    last_kept = kept[-1].number if kept else 0
    for line in (line for line in lines if line.value is None):
        if last_kept == 0:
            continue  # the run begins anew, and nothing of the file stays
        if line.number > last_kept:
            logger.warning("%s:%d: the last line is left out: %s", path, line.number, line.problem)
        else:
            logger.warning(
                "%s:%d: %s; it stays, and what is read from this file lacks it", path, line.number, line.problem
            )
    stays = [line for line in lines if line in kept or (line.value is None and line.number < last_kept)]
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text("".join(line.text + "\n" for line in stays), encoding="utf-8")
    temporary.replace(path)


def _step_of(line: JsonLine, *, key: str) -> float:
    """Return the step of a line, infinity where it has none."""
    try:
        return math.inf if line.value is None else int(line.value[key])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _append(file: io.RawIOBase, values: Mapping[str, Any]) -> None:
    """Append an object as one line of an unbuffered file; what an error leaves of it is cut off again.

    A buffer would keep a line that found no room and, once full, write a part of another behind it.
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


class JsonLines:
    """Append metrics and decisions to the run directory's files, one object a line, written at once."""

    def __init__(self, run_dir: Path, *, resumed_step: int) -> None:
        metrics_path, decisions_path = run_dir / METRICS_FILE, run_dir / DECISIONS_FILE
        cut_json_lines(metrics_path, key="step", last_step=resumed_step)
        cut_json_lines(decisions_path, key="decided_at_step", last_step=resumed_step)
        self._metrics_path = metrics_path
        self._metrics = metrics_path.open("ab", buffering=0)
        self._decisions = decisions_path.open("ab", buffering=0)
        self._has_warned = False

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line; a value that is no number becomes null, since JSON has no NaN.

        A line that finds no room is left out, which is said once.
        """
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        try:
            _append(self._metrics, {"step": step, **finite})
        except OSError as error:
            if not self._has_warned:
                self._has_warned = True
                logger.warning(
                    "%s: the metrics of step %d were not written (%s); training goes on, and lines are left out for as "
                    "long as that lasts",
                    self._metrics_path,
                    step,
                    error.strerror or error,
                )

    def decision(self, decision: Mapping[str, Any]) -> None:
        """Append one line.

        Raises:
            OSError: If it cannot be written.
        """
        _append(self._decisions, decision)

    def alert(self, step: int, *, title: str, text: str) -> None:
        """Keep no alert: what it says is in the metrics or the decision it came from."""

    def finish(self, *, exit_code: int) -> None:
        """Close the files."""
        self._metrics.close()
        self._decisions.close()
