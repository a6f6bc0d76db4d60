"""Turn conversations and texts into tokens, and say which of them bear loss.

The one idea: loss is decided in characters, on the one text that is tokenised, and carried over to tokens by the
tokenizer's own offsets. So a turn's tokens are those of the whole conversation in its context, however many turns
there are, and tokenising pieces apart can never disagree with it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from versatune_ds.data.encoding.control_tokens import ControlTokens, encode_with_text
from versatune_ds.data.encoding.loss_spans import RenderedExample, render_example


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedExample:
    """Hold one example: tokens and where they bear loss."""

    input_ids: np.ndarray
    """int32 [length]."""
    loss_spans: np.ndarray
    """int32 [2 * spans]: flat (start, end) pairs, end exclusive; the first token is never inside."""

    @property
    def num_loss_tokens(self) -> int:
        """Return how many tokens bear loss."""
        return int(self.loss_spans[1::2].sum() - self.loss_spans[::2].sum())

    @property
    def is_loss(self) -> np.ndarray:
        """Return the spans as a bool mask [length]."""
        mask = np.zeros(len(self.input_ids), dtype=np.bool_)
        for start, end in self.loss_spans.reshape(-1, 2):
            mask[start:end] = True
        return mask


def encode_rendered(rows: Sequence[RenderedExample], *, tokenizer: Any, control: ControlTokens | None = None) -> list[EncodedExample]:
    """Return the tokens of rendered rows, in one call to the tokenizer for each kind of row.

    Args:
        rows: RenderedExample rows.
        tokenizer: A fast tokenizer.
        control: Tokens that are ordinary text where a row says so; those that the rows were rendered with.
    """
    encoded: list[EncodedExample | None] = [None] * len(rows)
    for is_plain in (False, True):
        places = [i for i, row in enumerate(rows) if row.is_plain == is_plain and not row.as_text]
        if not places:
            continue
        batch = tokenizer(
            [rows[i].text for i in places],
            add_special_tokens=is_plain,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        for k, i in enumerate(places):
            encoded[i] = _encode_one(rows[i], encoding=batch.encodings[k], eos_token_id=tokenizer.eos_token_id)
    for i, row in enumerate(rows):
        if row.as_text:
            encoded[i] = _encode_with_text(row, tokenizer=tokenizer, control=control or ControlTokens())
    return encoded


def encode_messages(
    messages: list[dict[str, Any]],
    *,
    tokenizer: Any,
    template: str,
    loss_on: str = "assistant",
    tools: list[dict[str, Any]] | None = None,
    control: ControlTokens | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens of one conversation, int32 [length], and its loss mask, bool [length]."""
    row = render_example(messages, tokenizer=tokenizer, template=template, loss_on=loss_on, tools=tools, control=control)
    (encoded,) = encode_rendered([row], tokenizer=tokenizer, control=control)
    return encoded.input_ids, encoded.is_loss


def encode_text(text: str, *, tokenizer: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens of a plain text, int32 [length], ended by the end-of-text token, and its loss mask: all."""
    (encoded,) = encode_rendered([RenderedExample(text=text, loss_spans=None, is_plain=True)], tokenizer=tokenizer)
    return encoded.input_ids, encoded.is_loss


def _encode_one(
    row: RenderedExample, *, encoding: Any, ids: list[int] | None = None, eos_token_id: int | None = None
) -> EncodedExample:
    """Carry a row's character spans over to its tokens; `ids` are the encoding's own unless given."""
    ids = encoding.ids if ids is None else ids
    if row.is_plain and eos_token_id is not None and (not ids or ids[-1] != eos_token_id):
        ids = [*ids, eos_token_id]
    if row.loss_spans is None:
        spans = [(1, len(ids))] if len(ids) > 1 else []
    else:
        spans = [_token_span(encoding, start=start, end=end) for start, end in row.loss_spans]
    borders = [border for start, end in spans if max(start, 1) < end for border in (max(start, 1), end)]
    return EncodedExample(input_ids=np.array(ids, dtype=np.int32), loss_spans=np.array(borders, dtype=np.int32))


def _encode_with_text(row: RenderedExample, *, tokenizer: Any, control: ControlTokens) -> EncodedExample:
    """Return the tokens of a conversation in which the text of some control tokens is ordinary text."""
    encoding, ids, moved = encode_with_text(row.text, tokenizer=tokenizer, as_text=row.as_text, control=control)
    spans = None if row.loss_spans is None else [(moved(start), moved(end)) for start, end in row.loss_spans]
    return _encode_one(dataclasses.replace(row, loss_spans=spans), encoding=encoding, ids=ids)


def _token_span(encoding: Any, *, start: int, end: int) -> tuple[int, int]:
    """Return the tokens that hold characters start .. end-1; a token across the border counts as inside.

    Tokenizers may leave characters without a token (trimmed spaces), so the border moves inwards until one answers.
    """
    first = next((t for c in range(start, end) if (t := encoding.char_to_token(c)) is not None), None)
    if first is None:
        return 0, 0
    place = next(c for c in range(end - 1, start - 1, -1) if encoding.char_to_token(c) is not None)
    return first, _last_token(encoding, place=place) + 1


def _last_token(encoding: Any, *, place: int) -> int:
    """Return the last token of a character, of which `char_to_token` names the first.

    Byte-level tokens of one character all have its offsets: an emoji at 3 may be tokens 2, 3, 4 with (3, 4) each.
    """
    last = encoding.char_to_token(place)
    while last + 1 < len(encoding) and (chars := encoding.token_to_chars(last + 1)) and chars[0] <= place < chars[1]:
        last += 1
    return last
