"""Write the table of held-out losses by domain, in nats a token and bits a byte."""

from __future__ import annotations

import math
from collections.abc import Sequence

from versatune_ds.comparison.outcome import Domains
from versatune_ds.comparison.results_page.intervals import mean_with_interval
from versatune_ds.comparison.results_page.results import Results
from versatune_ds.comparison.results_page.table import as_table, row_title
from versatune_ds.export.model_card import escaped

_HOW_TO_READ = """Means over the seeds. Nats a token compare models with one tokenizer; bits a byte, the same loss by
UTF-8 byte of its text, compare any two. Intervals and paired differences of both means over domains are in the first
table."""


def losses_section(results: Results) -> list[str]:
    """Return the section's paragraphs; results of early versions have no bits."""
    names = results.domain_names()
    has_bits = all(_number([results.base], name, "bits_per_byte") is not None for name in names)
    unit = "nats a token / bits a byte" if has_bits else "nats a token"
    rows = [["base model", *_cells([results.base], names, has_bits=has_bits)]]
    for label, target in results.rows():
        found = [results.domains[cell] for cell in results.cells(label, target)]
        if found:
            rows.append([escaped(row_title(label, target)), *_cells(found, names, has_bits=has_bits)])
    return [
        f"## By domain: loss on {results.split} rows, {unit}",
        "",
        as_table(["policy", *map(escaped, names), "mean over domains"], rows),
        "",
        *([_HOW_TO_READ, ""] if has_bits else []),
    ]


def _cells(runs: Sequence[Domains], names: Sequence[str], *, has_bits: bool) -> list[str]:
    """Return the means over runs, domain by domain, and their mean over domains."""
    columns = [[_number(runs, name, "loss") for name in names]]
    if has_bits:
        columns.append([_number(runs, name, "bits_per_byte") for name in names])
    for column in columns:
        column.append(None if None in column else mean_with_interval(column).mean)
    texts = [["-" if value is None else f"{value:.4f}" for value in column] for column in columns]
    return [" / ".join(parts) for parts in zip(*texts, strict=True)]


def _number(runs: Sequence[Domains], name: str, key: str) -> float | None:
    """Return the mean of a number over runs, None where one of them lacks it."""
    values = [run.get(name, {}).get(key) for run in runs]
    return None if None in values or any(map(math.isnan, values)) else sum(values) / len(values)
