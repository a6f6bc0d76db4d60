"""Turn records into tokenised examples of at most one row, batch by batch, in many processes.

Every record gives at least one line of output: examples, or the reason why there is none. Tokens that are cut off are
counted.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from versatune_ds.data.encoding.control_tokens import texts_found
from versatune_ds.data.encoding.data_warnings import with_details
from versatune_ds.data.encoding.encode import EncodedExample, encode_rendered
from versatune_ds.data.encoding.forms import Example, parse_example
from versatune_ds.data.encoding.loss_spans import RenderedExample, TemplateMismatchError, render_example
from versatune_ds.data.encoding.template_abilities import TemplateAbilities, fit_to_template
from versatune_ds.data.encoding.turns import BadRowError, is_unicode

_NOT_UNICODE = "contains half of a surrogate pair, which is not valid text"

# One line per piece of an example. The first line of a record (piece 0) has its counts. A line without tokens stands
# for a record without an example: a bad one if it has a `problem`, otherwise one without a token that bears loss.
# `warnings` are keys of `data_warnings.DATA_WARNINGS`, on every line of a record.
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
        ("warnings", pa.list_(pa.string())),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeSettings:
    """The settings that tokens depend on, besides tokenizer and template."""

    row_tokens: int
    loss_on: str
    long_examples: str
    columns: dict[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordEncoder:
    """Encode batches of records; the object is sent to worker processes."""

    tokenizer: Any
    template: str
    abilities: TemplateAbilities
    settings: EncodeSettings

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return the output lines of a batch of records with columns file, line, json_text, problem."""
        # Render each record, then tokenise all of them at once.
        records = batch.to_pylist()
        results = [self._render_record(record["json_text"], problem=record["problem"]) for record in records]
        rendered_examples = [result[0] for result in results if not isinstance(result, str)]
        encoded = iter(encode_rendered(rendered_examples, tokenizer=self.tokenizer, control=self.abilities.control))
        # Write the lines of each record, or of its problem.
        lines: list[dict[str, Any]] = []
        for record, result in zip(records, results, strict=True):
            place = {"file": record["file"], "line": record["line"]}
            if isinstance(result, str):
                lines.append(_line(place, problem=result))
                continue
            rendered, content_hash, example = result
            place |= {"content_hash": content_hash, "warnings": rendered.warnings}
            lines_of_record = self._lines_of_example(next(encoded), place=place)
            lines_of_record[0].update(unread=example.unread, unread_labels=example.unread_labels)
            lines += lines_of_record
        return pa.Table.from_pylist(lines, schema=OUTPUT_SCHEMA)

    def _render_record(self, json_text: str, *, problem: str) -> tuple[RenderedExample, int, Example] | str:
        """Return a record's rendered example, content hash and example; or the reason why it is bad."""
        if problem:
            return problem
        try:
            example = parse_example(json_text, columns=self.settings.columns)
            rendered, example_hash = self._render(example), content_hash(example)
        except (BadRowError, TemplateMismatchError) as error:
            return str(error) if is_unicode(str(error)) else _NOT_UNICODE
        except RecursionError:
            return "nested too deeply to be written as text"
        return (rendered, example_hash, example) if is_unicode(rendered.text) else _NOT_UNICODE

    def _render(self, example: Example) -> RenderedExample:
        """Return an example's text with its loss spans and warnings."""
        # Plain text.
        control = self.abilities.control
        if example.text is not None:
            found = with_details("control_in_text", texts_found(example.text, control.all))
            return RenderedExample(text=example.text, loss_spans=None, is_plain=True, warnings=tuple(found))
        # A conversation, in a form that the template can print.
        fitted, warnings = fit_to_template(example, abilities=self.abilities)
        rendered = render_example(
            list(fitted.turns),
            tokenizer=self.tokenizer,
            template=self.template,
            loss_on=self.settings.loss_on,
            tools=list(fitted.tools) or None,
            control=control,
        )
        # Warnings.
        texts = [turn["content"] for turn in example.turns]
        answers = [turn["content"].rstrip() for turn in example.turns if turn["role"] == "assistant"]
        warnings += rendered.warnings
        if rendered.as_text:
            found = texts_found([*texts, *example.tools], control.all)
            warnings += with_details("control_as_text", found) or ["control_as_text"]
        ends = [end for end in control.of_turns if any(answer.endswith(end) for answer in answers)]
        warnings += with_details("ended_twice", ends)
        warnings += with_details("marks_in_text", texts_found(texts, control.marks))
        if texts_found(texts, control.others):
            warnings.append("special_in_text")
        return dataclasses.replace(rendered, warnings=tuple(warnings))

    def _lines_of_example(self, example: EncodedExample, *, place: dict[str, Any]) -> list[dict[str, Any]]:
        """Return one line per piece of an example, or one line without tokens if nothing bears loss."""
        # Cut or split, and drop pieces without loss.
        limit, num_tokens = self.settings.row_tokens, len(example.input_ids)
        pieces = [cut_example(example, start=0, end=limit)]
        if self.settings.long_examples == "split":
            pieces = split_example(example, max_tokens=limit)
        kept = [piece for piece in pieces if piece.num_loss_tokens]
        if not kept:
            return [_line(place, num_row_tokens=num_tokens)]
        # Count the tokens that are dropped.
        repeated = len(pieces) - 1  # tokens that are in two pieces
        num_kept = sum(len(piece.input_ids) for piece in kept)
        num_cut = max(0, num_tokens + repeated - num_kept)
        counts = {"num_row_tokens": num_tokens, "num_cut_tokens": num_cut}
        lines = [_line(place, example=piece, piece=number) for number, piece in enumerate(kept)]
        lines[0].update(counts)
        return lines


def cut_example(example: EncodedExample, *, start: int, end: int) -> EncodedExample:
    """Return the tokens start .. end-1 of an example; the first of them bears no loss, since nothing precedes it."""
    spans = np.clip(example.loss_spans.reshape(-1, 2) - start, 0, end - start)
    spans[:, 0] = np.maximum(spans[:, 0], 1)
    spans = spans[spans[:, 0] < spans[:, 1]]
    return EncodedExample(input_ids=example.input_ids[start:end], loss_spans=spans.reshape(-1).astype(np.int32))


def split_example(example: EncodedExample, *, max_tokens: int) -> list[EncodedExample]:
    """Split an example into pieces of at most `max_tokens` tokens.

    A piece begins with the last token of the piece before it, so that every token that bears loss keeps a token before
    it. Example: 10 tokens in pieces of 4 are 0-3, 3-6, 6-9; together they have the loss tokens of the example.
    """
    starts = range(0, max(1, len(example.input_ids) - 1), max_tokens - 1)
    return [cut_example(example, start=start, end=start + max_tokens) for start in starts]


def content_hash(example: Example) -> int:
    """Return a 64-bit hash of an example's content, without white space, letter case and ids of tool calls.

    Examples that differ in nothing else are duplicates: all or none of them are held out.
    """
    # Text and turns.
    parts: list[Any] = [_normalised(example.text)] if example.text is not None else []
    for turn in example.turns:
        calls = [{key: value for key, value in call.items() if key != "id"} for call in turn.get("tool_calls") or ()]
        parts += [turn["role"], _normalised(turn["content"]), calls or None]
        if "reasoning_content" in turn:
            parts.append({"reasoning_content": _normalised(turn["reasoning_content"])})
    if example.tools:
        parts.append({"tools": example.tools})
    # Hash.
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True, default=str)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "little")


def _normalised(text: str) -> str:
    return " ".join(text.split()).casefold()


def _line(place: dict[str, Any], *, example: EncodedExample | None = None, **values: Any) -> dict[str, Any]:
    """Return one output line; values that are not given are zero or empty."""
    return {
        "content_hash": 2**64 - 1,  # never held out: bad rows count as training rows
        "piece": 0,
        "input_ids": example.input_ids if example else (),
        "loss_spans": example.loss_spans if example else (),
        "num_row_tokens": 0,
        "num_cut_tokens": 0,
        "problem": "",
        "unread": (),
        "unread_labels": (),
        "warnings": (),
        **place,
        **values,
    }
