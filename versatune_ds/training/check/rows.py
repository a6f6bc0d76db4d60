"""Check a sample of the rows of every domain, and show one of each as the model reads it.

The one idea: sampled rows go through the encoder that prepares them, so what is bad here is bad there, in its words.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from versatune_ds.data.encode import Encoded
from versatune_ds.data.inspect import mark_masked
from versatune_ds.training.check.finding import Finding, fail, ok, warn
from versatune_ds.training.check.subject import Subject
from versatune_ds.training.inspect_recipe import escape_control_characters

_MAX_EXAMPLE_CHARACTERS, _MAX_EXAMPLE_LINES = 600, 12


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledRows:
    """Hold what became of a domain's sampled rows."""

    num_rows: int
    bad: tuple[str, ...]
    """file:line: reason of each bad row."""
    num_without_loss: int
    longest_tokens: int
    """Tokens of the longest example as it is trained on: cut or split."""
    mean_tokens: float
    """Tokens of a row, long ones whole."""
    share_cut: float
    """Share of the tokens that is cut off."""
    example: Encoded | None
    """The first row that bears loss."""


def encode_sample(subject: Subject, domain: str) -> SampledRows:
    """Return what became of a domain's sampled rows in the encoder.

    Raises:
        ValueError: If the tokenizer or the template fails.
    """
    return subject.once(f"rows of {domain}", lambda: _encode_sample(subject, domain))


def _encode_sample(subject: Subject, domain: str) -> SampledRows:
    """Send a domain's sampled rows through the encoder."""
    files = subject.sound_files(domain)
    records = [(file, record) for file in files for record in file.records]
    table = pa.Table.from_pylist(
        [
            {"file": 0, "line": number, "json_text": record.json_text, "problem": record.problem}
            for number, (_, record) in enumerate(records)
        ]
    )
    lines = subject.encoder(domain)(table).to_pylist() if records else []
    rows = [line for line in lines if line["piece"] == 0]
    bad = [line for line in rows if line["problem"]]
    places = [records[line["line"]] for line in bad]
    kept = [line for line in lines if line["input_ids"]]
    num_tokens = sum(line["num_row_tokens"] for line in rows)
    return SampledRows(
        num_rows=len(rows),
        bad=tuple(f"{file.place(record)}: {line['problem']}" for (file, record), line in zip(places, bad, strict=True)),
        num_without_loss=sum(not line["input_ids"] and not line["problem"] for line in rows),
        longest_tokens=max((len(line["input_ids"]) for line in kept), default=0),
        mean_tokens=num_tokens / max(len(rows) - len(bad), 1),
        share_cut=sum(line["num_cut_tokens"] for line in rows) / max(num_tokens, 1),
        example=_encoded(kept[0]) if kept else None,
    )


def _encoded(line: dict[str, Any]) -> Encoded:
    """Return the example of an output line."""
    columns = (np.array(line[name], dtype=np.int32) for name in ("input_ids", "loss_spans"))
    return Encoded(**dict(zip(("input_ids", "loss_spans"), columns, strict=True)))


def check_rows(subject: Subject) -> Iterator[Finding]:
    """Encode sampled rows of every domain: bad ones against data.max_bad_rows, loss, lengths."""
    row_tokens = subject.config.data.row_tokens
    for name in subject.readable_domains():
        rows = encode_sample(subject, name)
        is_whole = all(file.is_whole for file in subject.sound_files(name))
        yield _judge_bad_rows(subject, name, rows, is_whole=is_whole)
        if rows.example is None:
            yield fail(
                "rows",
                "data.row_tokens",
                f"{name}: none of {rows.num_rows} sampled rows bears loss within {row_tokens} tokens",
                "raise it, or set data.long_examples=split",
            )
        elif rows.num_without_loss * 5 > rows.num_rows:
            found = f"{name}: {rows.num_without_loss} of {rows.num_rows} sampled rows bear no loss within"
            yield warn(
                "rows",
                "data.row_tokens",
                f"{found} {row_tokens} tokens",
                "raise it, or set data.long_examples=split",
            )


def _judge_bad_rows(subject: Subject, domain: str, rows: SampledRows, *, is_whole: bool) -> Finding:
    """Compare a domain's bad rows with the limit, as preparing it would."""
    limit = subject.config.data.max_bad_rows
    num_rows = sum(file.num_rows for file in subject.sound_files(domain))
    expected = len(rows.bad) / max(rows.num_rows, 1) * num_rows
    allowed = int(limit * num_rows) if limit < 1 else int(limit)
    looked_at = f"all {rows.num_rows:,}" if is_whole else f"{rows.num_rows:,} sampled"
    if not rows.bad:
        cut = f", {rows.share_cut:.1%} cut off" if rows.share_cut else ""
        return ok("rows", domain, f"{looked_at} rows sound, {rows.mean_tokens:,.0f} tokens each{cut}")
    first = escape_control_characters("; ".join(rows.bad[:2])).replace("\n", " ")[:400]
    found = f"{domain}: {len(rows.bad)} of {looked_at} rows bad ({first})"
    todo = f"mend them, or raise the limit of {allowed:,} rows"
    return (fail if expected > allowed else warn)("rows", "data.max_bad_rows", found, todo)


def render_examples(subject: Subject) -> dict[str, str]:
    """Return one example a domain as the model reads it, parts that bear no loss in brackets, safe for a terminal."""

    def decode(token_ids: list[int]) -> str:
        return escape_control_characters(subject.tokenizer.decode(token_ids, clean_up_tokenization_spaces=False))

    examples = {}
    for name in subject.readable_domains():
        example = encode_sample(subject, name).example
        if example is not None:
            text = mark_masked(example.input_ids.tolist(), example.is_loss.tolist(), decode)
            examples[name] = _shortened(text)
    return examples


def _shortened(text: str) -> str:
    """Return a text's beginning, of few lines and characters."""
    lines = "\n".join(itertools.islice(text.splitlines(), _MAX_EXAMPLE_LINES))
    kept = lines[:_MAX_EXAMPLE_CHARACTERS]
    return kept if kept == text.rstrip("\n") else f"{kept} ..."
