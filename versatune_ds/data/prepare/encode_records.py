"""Turn records into examples of at most one packed row, batch by batch: the function `datasets` runs in many processes.

The one idea: nothing disappears. Every record leaves at least one line in the output: examples, or the reason there is
none; what was cut off is counted.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from versatune_ds.data.encoding.control_tokens import texts_hold
from versatune_ds.data.encoding.encode import EncodedExample, encode_rendered
from versatune_ds.data.encoding.forms import Example, parse_example
from versatune_ds.data.encoding.loss_spans import RenderedExample, TemplateMismatchError, render_example
from versatune_ds.data.encoding.template_abilities import TemplateAbilities, fit_to_template, parts_as_text
from versatune_ds.data.encoding.turns import BadRowError, is_unicode

_HALF_A_CHARACTER = "holds half of a surrogate pair, which is no text"

# One line an example. A row's first line (piece 0) holds the counts of the row. A line without tokens stands for a row
# that yields no example: a bad one when `problem` says so, otherwise one without a token that bears loss. `remarks` are
# keys of `data_warnings.DATA_WARNINGS`, on every line of a row.
OUTPUT_SCHEMA = pa.schema(
    [
        ("file", pa.int32()),
        ("line", pa.int64()),
        ("piece", pa.int32()),
        ("input_ids", pa.list_(pa.int32())),
        ("loss_spans", pa.list_(pa.int32())),
        ("content_hash", pa.uint64()),
        ("num_row_tokens", pa.int64()),
        ("num_cut_tokens", pa.int64()),
        ("problem", pa.string()),
        ("unread", pa.list_(pa.string())),
        ("unread_labels", pa.list_(pa.string())),
        ("remarks", pa.list_(pa.string())),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeSettings:
    """Hold what the tokens of a row depend on, besides tokenizer and template."""

    row_tokens: int
    loss_on: str
    long_examples: str
    columns: dict[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordEncoder:
    """Encode batches of records; an object that travels to worker processes."""

    tokenizer: Any
    template: str
    abilities: TemplateAbilities
    settings: EncodeSettings

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return the output lines of a batch of records with columns file, line, json_text, problem."""
        records = batch.to_pylist()
        items = [self._item(record["json_text"], problem=record["problem"]) for record in records]
        good = [item[0] for item in items if not isinstance(item, str)]
        encoded = iter(encode_rendered(good, tokenizer=self.tokenizer, control=self.abilities.control))
        lines: list[dict[str, Any]] = []
        for record, item in zip(records, items, strict=True):
            place = {"file": record["file"], "line": record["line"]}
            if isinstance(item, str):
                lines.append(_line(place, problem=item))
            else:
                rendered, content_hash, row = item
                new = self._example_lines(
                    next(encoded), place={**place, "content_hash": content_hash, "remarks": rendered.remarks}
                )
                new[0].update(unread=row.unread, unread_labels=row.unread_labels)
                lines += new
        return pa.Table.from_pylist(lines, schema=OUTPUT_SCHEMA)

    def _item(self, json_text: str, *, problem: str) -> tuple[RenderedExample, int, Example] | str:
        """Return a record as text with its loss spans, its content hash and its row; or what is wrong with it."""
        if problem:
            return problem
        try:
            row = parse_example(json_text, columns=self.settings.columns)
            rendered, row_hash = self._rendered(row), content_hash(row)
        except (BadRowError, TemplateMismatchError) as error:
            return str(error) if is_unicode(str(error)) else _HALF_A_CHARACTER
        except RecursionError:
            return "nested too deep to be written as text"
        return (rendered, row_hash, row) if is_unicode(rendered.text) else _HALF_A_CHARACTER

    def _rendered(self, row: Example) -> RenderedExample:
        """Return a row as text with its loss spans."""
        control = self.abilities.control
        if row.text is not None:
            remarks = ("control_in_text",) if texts_hold(row.text, control.all) else ()
            return RenderedExample(text=row.text, loss_spans=None, is_plain=True, remarks=remarks)
        fitted = fit_to_template(row, abilities=self.abilities)
        rendered = render_example(
            list(fitted.turns),
            tokenizer=self.tokenizer,
            template=self.template,
            loss_on=self.settings.loss_on,
            tools=list(fitted.tools) or None,
            control=control,
        )
        said = [turn["content"] for turn in row.turns]
        remarks = [*parts_as_text(row, abilities=self.abilities), *rendered.remarks]
        remarks += ["control_as_text"] * bool(rendered.as_text)
        answers = [turn["content"].rstrip() for turn in row.turns if turn["role"] == "assistant"]
        remarks += ["ended_twice"] * any(answer.endswith(control.of_turns) for answer in answers)
        remarks += ["marks_in_text"] * texts_hold(said, control.marks)
        remarks += ["special_in_text"] * texts_hold(said, control.others)
        return dataclasses.replace(rendered, remarks=tuple(remarks))

    def _example_lines(self, example: EncodedExample, *, place: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the lines of one row: an example each, or one line without tokens when nothing bears loss."""
        limit, num_tokens = self.settings.row_tokens, len(example.input_ids)
        pieces = [cut_example(example, start=0, end=limit)]
        if self.settings.long_examples == "split":
            pieces = split_example(example, max_tokens=limit)
        kept = [piece for piece in pieces if piece.num_loss_tokens]
        if not kept:
            return [_line(place, num_row_tokens=num_tokens)]
        repeated = len(pieces) - 1  # tokens that stand in two pieces
        num_kept = sum(len(piece.input_ids) for piece in kept)
        num_cut = max(0, num_tokens + repeated - num_kept)
        counts = {"num_row_tokens": num_tokens, "num_cut_tokens": num_cut}
        lines = [_line(place, example=piece, piece=number) for number, piece in enumerate(kept)]
        lines[0].update(counts)
        return lines


def cut_example(example: EncodedExample, *, start: int, end: int) -> EncodedExample:
    """Return the tokens start .. end-1 of an example; the first of them bears no loss, as nothing precedes it."""
    spans = np.clip(example.loss_spans.reshape(-1, 2) - start, 0, end - start)
    spans[:, 0] = np.maximum(spans[:, 0], 1)
    spans = spans[spans[:, 0] < spans[:, 1]]
    return EncodedExample(input_ids=example.input_ids[start:end], loss_spans=spans.reshape(-1).astype(np.int32))


def split_example(example: EncodedExample, *, max_tokens: int) -> list[EncodedExample]:
    """Return an example as pieces of at most `max_tokens` tokens.

    A piece begins with the last token of the one before, so that every token that bears loss keeps a token before it:
    10 tokens in pieces of 4 are 0-3, 3-6, 6-9, and the loss tokens add up to those of the whole.
    """
    starts = range(0, max(1, len(example.input_ids) - 1), max_tokens - 1)
    return [cut_example(example, start=start, end=start + max_tokens) for start in starts]


def content_hash(row: Example) -> int:
    """Return 64 bits of a hash of what a row says, blind to white space, letter case and ids of tool calls.

    Rows that differ in nothing else count as duplicates and fall on the same side of the held-out split.
    """
    parts: list[Any] = [_normalised(row.text)] if row.text is not None else []
    for turn in row.turns:
        calls = [{key: value for key, value in call.items() if key != "id"} for call in turn.get("tool_calls") or ()]
        parts += [turn["role"], _normalised(turn["content"]), calls or None]
        if "reasoning_content" in turn:
            parts.append({"reasoning_content": _normalised(turn["reasoning_content"])})
    if row.tools:
        parts.append({"tools": row.tools})
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True, default=str)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "little")


def _normalised(text: str) -> str:
    """Return a text in one letter case with single spaces."""
    return " ".join(text.split()).casefold()


def _line(place: dict[str, Any], *, example: EncodedExample | None = None, **values: Any) -> dict[str, Any]:
    """Return one output line, with zeros and nothing where no value is given."""
    return {
        "content_hash": 2**64 - 1,  # never held out: bad rows stay with the training rows
        "piece": 0,
        "input_ids": example.input_ids if example else (),
        "loss_spans": example.loss_spans if example else (),
        "num_row_tokens": 0,
        "num_cut_tokens": 0,
        "problem": "",
        "unread": (),
        "unread_labels": (),
        "remarks": (),
        **place,
        **values,
    }
