"""Write the page of all GPU measurements from the JSON files beside it: a section a device, newest result first."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

PAGE = "README.md"
HEAD = """# Measured on a GPU

Written by `python benchmarks/on_gpu.py` from the JSON files in this folder; do not edit it. Contestants of a table take
turns; times are medians. A line that failed keeps its reason. What the numbers are to reach
is in `docs/targets.md`. A section of a CPU proves that the script runs, and no speed."""


def write_page(folder: Path) -> Path:
    """Write the page of a folder's results and return its path."""
    results = [(path.name, json.loads(path.read_text(encoding="utf-8"))) for path in sorted(folder.glob("*.json"))]
    path = folder / PAGE
    path.write_text(page(results), encoding="utf-8")
    return path


def page(results: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Return the page.

    Args:
        results: File name and content of every result. Devices come in the order of their newest result.
    """
    newest_first = sorted(results, key=lambda item: (item[1]["date"], len(item[0]), item[0]), reverse=True)
    devices = dict.fromkeys(result["device"] for _, result in newest_first)
    sections = [HEAD]
    for device in devices:
        sections.append(f"## {device}")
        for name, result in newest_first:
            if result["device"] == device:
                sections += _sections_of_result(name, result)
    return "\n\n".join(sections) + "\n"


def _sections_of_result(name: str, result: Mapping[str, Any]) -> Iterator[str]:
    """Yield what was measured with what, how the parts ended, and one table after another."""
    size = "" if result["size"] == "full" else f" Size: {result['size']}, which proves the script and no speed."
    yield f"### {result['date']}, commit {result['commit'] or 'unknown'}"
    versions = ", ".join(f"{package} {version or '-'}" for package, version in result["versions"].items())
    yield (
        f"Driver {result['driver'] or '-'}; {versions}. Command: `{result['command']}`, {result['seconds']:.0f} s."
        f"{size} [{name}]({name})"
    )
    parts = [
        [part["name"], part["outcome"], f"{part['seconds']:.0f}", str(len(part["rows"]))] for part in result["parts"]
    ]
    yield _table(["part", "outcome", "seconds", "lines"], parts)
    rows = [row for part in result["parts"] for row in part["rows"]]
    for title in dict.fromkeys(row["table"] for row in rows):
        yield f"**{title}**"
        yield _table_of_rows([row for row in rows if row["table"] == title])


def _table_of_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a table whose columns are those of all rows; a failed row has its reason in the last one."""
    columns = list(dict.fromkeys(column for row in rows for column in row["values"]))
    has_failures = any(row["failed"] for row in rows)
    header = ["", *columns, *(["failed"] if has_failures else [])]
    lines = [
        [row["name"], *(_text(row["values"].get(column)) for column in columns)] + [row["failed"] or ""] * has_failures
        for row in rows
    ]
    return _table(header, lines)


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rules = "|---|" + "---:|" * (len(header) - 1)
    texts = ["| " + " | ".join(_cell(value) for value in line) + " |" for line in (header, *lines)]
    return "\n".join([texts[0], rules, *texts[1:]])


def _cell(text: str) -> str:
    """Return a text that stays in its cell."""
    return text.replace("|", "\\|").replace("\n", " ")


def _text(value: Any) -> str:
    """Return a value as text; nothing for what is not known.

    Example: 35750 gives `35,750`, 0.268 gives `0.268`.
    """
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
