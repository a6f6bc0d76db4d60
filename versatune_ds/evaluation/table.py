"""Show the result of an evaluation as text tables, with the measured columns only, and errors where there are any."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from versatune_ds.evaluation.result import mean_over_domains
from versatune_ds.text_table import number_cell, text_table

Numbers = Mapping[str, Any]
_NONE = number_cell(None)


def evaluation_table(result: Mapping[str, Any]) -> str:
    """Return the result of `evaluate` as tables: the model, the change against the base model, the harness's tasks."""
    parts = [f"{result['model']}, {result['split']} split\n{_block(result['domains'], _COLUMNS)}"]
    if "retention" in result:
        parts.append(f"change against {result['base']['model']}\n{_block(result['retention'], _CHANGES)}")
    if "harness" in result:
        parts.append(f"lm-evaluation-harness\n{_harness_block(result)}")
    return "\n\n".join(parts)


def _harness_block(result: Mapping[str, Any]) -> str:
    """Return a row for each task and metric, with the change if there is a base model; without a mean over tasks."""
    changes = result.get("harness_retention")
    header = ["task", "metric", "value ±s.e.", *(["change"] if changes else [])]
    rows = []
    for task, metrics in result["harness"].items():
        for metric, numbers in metrics.items():
            change = [_HARNESS_CHANGE(changes[task][metric])] if changes else []
            rows.append([task, metric, _HARNESS_VALUE(numbers), *change])
    return text_table(header, rows, num_left=2)


def _block(domains: Mapping[str, Numbers], possible: Sequence[tuple[str, Callable[[Numbers], str]]]) -> str:
    """Return a row for each domain and one of means; columns without any number are omitted."""
    columns = [column for column in possible if any(column[1](numbers) != _NONE for numbers in domains.values())]
    header = ["domain", *(title for title, _ in columns)]
    rows = [[name, *(cell(numbers) for _, cell in columns)] for name, numbers in domains.items()]
    means = _means(domains)
    return text_table(header, rows, footer=["mean", *(cell(means) for _, cell in columns)])


def _means(domains: Mapping[str, Numbers]) -> dict[str, Any]:
    """Return the mean over domains of every number, without errors."""
    keys = {key for numbers in domains.values() for key, value in numbers.items() if not isinstance(value, dict)}
    means: dict[str, Any] = {key: mean_over_domains(domains, key) for key in keys if "standard_error" not in key}
    for key in ("exact_match", "choices"):
        parts = {name: numbers[key] for name, numbers in domains.items() if key in numbers}
        if parts:
            means[key] = {"accuracy": mean_over_domains(parts, "accuracy")}
    return means


def _number(key: str, form: str, *, error_key: str | None = None) -> Callable[[Numbers], str]:
    """Return a function that writes a number, with its standard error where there is one."""
    error_key = error_key or f"{key}_standard_error"

    def cell(numbers: Numbers) -> str:
        value, error = numbers.get(key), numbers.get(error_key)
        if value is None or error is None:
            return number_cell(value, form)
        return f"{value:{form}} ±{error:{form.lstrip('+')}}"

    return cell


def _accuracy(key: str) -> Callable[[Numbers], str]:
    """Return a function that writes an accuracy with its 95 % interval."""

    def cell(numbers: Numbers) -> str:
        found = numbers.get(key)
        if not found:
            return _NONE
        interval = f" [{found['low']:.2f}, {found['high']:.2f}]" if "low" in found else ""
        return f"{found['accuracy']:.3f}{interval}"

    return cell


_COLUMNS = (
    ("loss ±s.e.", _number("loss", ".3f")),
    ("perplexity", _number("perplexity", ".2f")),
    ("bits/byte", _number("bits_per_byte", ".3f")),
    ("exact match [95 %]", _accuracy("exact_match")),
    ("choices [95 %]", _accuracy("choices")),
)
_CHANGES = (
    ("loss change", _number("loss_change", "+.3f")),
    ("bits/byte change", _number("bits_per_byte_change", "+.3f")),
    ("exact change", _number("exact_match_change", "+.3f")),
    ("choices change", _number("choices_change", "+.3f")),
)
_HARNESS_VALUE = _number("value", ".3f", error_key="standard_error")
_HARNESS_CHANGE = _number("change", "+.3f")
