"""Run the GPU tests through pytest and count what passed, failed and was skipped, with the names of the failures."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

from benchmarks.gpu_parts.place import ROOT, Place
from benchmarks.gpu_parts.rows import Row, failed_row

TABLE = "GPU tests"
_RESULT = re.compile(r"^(?P<name>\S+::.+?) (?P<result>PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b")
_REASON = re.compile(r"^(?:FAILED|ERROR) (?P<name>\S+::\S+)(?: - (?P<reason>.*))?$")


def rows(place: Place) -> Iterator[Row]:
    """Yield the counts, then a row a failure; tests that were not reached in time are not counted."""
    output = place.folder / "pytest.txt"
    folder = "tests/gpu"
    command = [sys.executable, "-m", "pytest", folder, "-m", "gpu", "-v", "-p", "no:cacheprovider", "--tb=line", "-rfE"]
    command += ["-o", "addopts=--import-mode=importlib", *(["-k", "captured or memory"] if place.is_small else [])]
    is_stopped = False
    with output.open("w", encoding="utf-8") as file:
        try:
            code = subprocess.run(
                command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, timeout=place.seconds_left()
            ).returncode
        except subprocess.TimeoutExpired:
            code, is_stopped = None, True
    yield from rows_of_output(output.read_text(encoding="utf-8"), code=code, is_stopped=is_stopped)


def rows_of_output(text: str, *, code: int | None, is_stopped: bool) -> Iterator[Row]:
    """Yield the rows of pytest's verbose output.

    Args:
        text: What `pytest -v -rfE` printed.
        code: Its exit code: 0 and 1 are results; others mean that it could not run the tests.
        is_stopped: Whether it was stopped before the end.
    """
    results = [match.groupdict() for line in text.splitlines() if (match := _RESULT.match(line))]
    reasons = {m["name"]: m["reason"] for line in text.splitlines() if (m := _REASON.match(line))}
    counts = Counter(result["result"].lower() for result in results)
    if not results:
        last = next((line for line in reversed(text.splitlines()) if line.strip()), "no output")
        yield failed_row(TABLE, "tests/gpu", f"no test ran (exit code {code}): {last}")
        return
    values = {
        name: counts[name] for name in ("passed", "failed", "error", "skipped") if counts[name] or name != "error"
    }
    yield Row(table=TABLE, name="tests/gpu", values=values | ({"stopped": "at its limit"} if is_stopped else {}))
    for result in results:
        if result["result"] in ("FAILED", "ERROR"):
            name = result["name"].rpartition("/")[2]
            yield failed_row(TABLE, name, reasons.get(result["name"]) or result["result"].lower())
