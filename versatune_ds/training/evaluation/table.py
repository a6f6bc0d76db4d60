"""Lay an evaluation out as a table for the terminal.

The one idea: a column appears only when it was measured; every number that has an error shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from versatune_ds.training.evaluation.result import mean_over_domains

Numbers = Mapping[str, Any]
_NONE = "-"


def evaluation_table(result: Mapping[str, Any]) -> str:
    """Return what `evaluate` found as aligned text; what changed against the base model stands in a table below."""
    text = f"{result['model']}, {result['split']} rows\n{_block(result['domains'], _COLUMNS)}"
    if "retention" not in result:
        return text
    return f"{text}\n\nchange against {result['base']['model']}\n{_block(result['retention'], _CHANGES)}"


def _block(domains: Mapping[str, Numbers], possible: Sequence[tuple[str, Callable[[Numbers], str]]]) -> str:
    """Return a line a domain and the plain mean over domains; only columns with a number in them."""
    columns = [column for column in possible if any(column[1](numbers) != _NONE for numbers in domains.values())]
    lines = [["domain", *(title for title, _ in columns)]]
    for name, numbers in (*domains.items(), ("mean", _mean_line(domains))):
        lines.append([name, *(cell(numbers) for _, cell in columns)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns) + 1)]
    header, *rows, mean = (
        "  ".join(
            [line[0].ljust(widths[0]), *(text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    )
    return "\n".join([header, "-" * len(header), *rows, "-" * len(header), mean])


def _mean_line(domains: Mapping[str, Numbers]) -> dict[str, Any]:
    """Return the mean over domains of every number; errors are left out."""
    keys = {key for numbers in domains.values() for key, value in numbers.items() if not isinstance(value, dict)}
    line: dict[str, Any] = {key: mean_over_domains(domains, key) for key in keys if "standard_error" not in key}
    for key in ("exact_match", "choices"):
        parts = {name: numbers[key] for name, numbers in domains.items() if key in numbers}
        if parts:
            line[key] = {"accuracy": mean_over_domains(parts, "accuracy")}
    return line


def _plain(key: str, form: str) -> Callable[[Numbers], str]:
    """Return a cell with one number."""
    return lambda numbers: _NONE if numbers.get(key) is None else format(numbers[key], form)


def _with_error(key: str, form: str, error_key: str) -> Callable[[Numbers], str]:
    """Return a cell with a number and its standard error."""

    def cell(numbers: Numbers) -> str:
        if numbers.get(key) is None:
            return _NONE
        error = numbers.get(error_key)
        return format(numbers[key], form) + (f" ±{error:{form.lstrip('+')}}" if error is not None else "")

    return cell


def _accuracy(key: str) -> Callable[[Numbers], str]:
    """Return a cell with an accuracy and its 95 % interval."""

    def cell(numbers: Numbers) -> str:
        found = numbers.get(key)
        if not found:
            return _NONE
        interval = f" [{found['low']:.2f}, {found['high']:.2f}]" if "low" in found else ""
        return f"{found['accuracy']:.3f}{interval}"

    return cell


_COLUMNS = (
    ("loss ±s.e.", _with_error("loss", ".3f", "loss_standard_error")),
    ("perplexity", _plain("perplexity", ".2f")),
    ("bits/byte", _plain("bits_per_byte", ".3f")),
    ("exact match [95 %]", _accuracy("exact_match")),
    ("choices [95 %]", _accuracy("choices")),
)
_CHANGES = (
    ("loss change", _with_error("loss_change", "+.3f", "loss_change_standard_error")),
    ("bits/byte change", _plain("bits_per_byte_change", "+.3f")),
    ("exact change", _with_error("exact_match_change", "+.3f", "exact_match_change_standard_error")),
    ("choices change", _with_error("choices_change", "+.3f", "choices_change_standard_error")),
)
