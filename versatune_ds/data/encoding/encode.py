"""Turn conversations and texts into tokens, with the tokens that bear loss.

Which characters bear loss is decided on the full text, which is tokenised once; the tokenizer's offsets map characters
to tokens. So the tokens of a turn are the same as in the full conversation; nothing is tokenised in pieces.
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
    """The tokens of one example, and which of them bear loss."""

    input_ids: np.ndarray
    """int32 [length]."""
    loss_spans: np.ndarray
    """int32 [2 * spans]: flat (start, end) pairs, end exclusive; the first token is never in a span."""

    @property
    def num_loss_tokens(self) -> int:
        """Return the number of tokens that bear loss."""
        return int(self.loss_spans[1::2].sum() - self.loss_spans[::2].sum())

    @property
    def is_loss(self) -> np.ndarray:
        """Return the spans as a bool mask [length]."""
        mask = np.zeros(len(self.input_ids), dtype=np.bool_)
        for start, end in self.loss_spans.reshape(-1, 2):
            mask[start:end] = True
        return mask


def encode_rendered(
    examples: Sequence[RenderedExample], *, tokenizer: Any, control: ControlTokens | None = None
) -> list[EncodedExample]:
    """Return the tokens of rendered examples, with one call to the tokenizer for each kind of example.

    Args:
        examples: Conversations and plain texts.
        tokenizer: A fast tokenizer.
        control: The control tokens with which the examples were rendered.
    """
    encoded: list[EncodedExample | None] = [None] * len(examples)
    # Conversations, then plain texts, which get the tokenizer's start token.
    for is_plain in (False, True):
        places = [i for i, example in enumerate(examples) if example.is_plain == is_plain and not example.as_text]
        if not places:
            continue
        batch = tokenizer(
            [examples[i].text for i in places],
            add_special_tokens=is_plain,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        for k, i in enumerate(places):
            encoded[i] = _encode_one(examples[i], encoding=batch.encodings[k], eos_token_id=tokenizer.eos_token_id)
    # Conversations with control tokens that are ordinary text.
    for i, example in enumerate(examples):
        if example.as_text:
            encoding, ids, moved = encode_with_text(
                example.text, tokenizer=tokenizer, as_text=example.as_text, control=control or ControlTokens()
            )
            if example.loss_spans is not None:
                spans = [(moved(start), moved(end)) for start, end in example.loss_spans]
                example = dataclasses.replace(example, loss_spans=spans)
            encoded[i] = _encode_one(example, encoding=encoding, ids=ids)
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
    """Return the tokens of one conversation, int32 [length], and its loss mask."""
    example = render_example(
        messages, tokenizer=tokenizer, template=template, loss_on=loss_on, tools=tools, control=control
    )
    (encoded,) = encode_rendered([example], tokenizer=tokenizer, control=control)
    return encoded.input_ids, encoded.is_loss


def _encode_one(
    example: RenderedExample, *, encoding: Any, ids: list[int] | None = None, eos_token_id: int | None = None
) -> EncodedExample:
    """Return the tokens of an example, and its loss spans in tokens; `ids` are the encoding's own unless given."""
    ids = encoding.ids if ids is None else ids
    if example.is_plain and eos_token_id is not None and (not ids or ids[-1] != eos_token_id):
        ids = [*ids, eos_token_id]
    if example.loss_spans is None:
        spans = [(1, len(ids))] if len(ids) > 1 else []
    else:
        spans = [_token_span(encoding, start=start, end=end) for start, end in example.loss_spans]
    borders = [border for start, end in spans if max(start, 1) < end for border in (max(start, 1), end)]
    return EncodedExample(input_ids=np.array(ids, dtype=np.int32), loss_spans=np.array(borders, dtype=np.int32))


def _token_span(encoding: Any, *, start: int, end: int) -> tuple[int, int]:
    """Return the tokens of characters start .. end-1; a token across the border counts as inside.

    Some characters may have no token (trimmed spaces), so the border moves inwards to the first that has one.
    """
    first = next((t for c in range(start, end) if (t := encoding.char_to_token(c)) is not None), None)
    if first is None:
        return 0, 0
    last_character = next(c for c in range(end - 1, start - 1, -1) if encoding.char_to_token(c) is not None)
    return first, _last_token(encoding, character=last_character) + 1


def _last_token(encoding: Any, *, character: int) -> int:
    """Return the last token of a character; `char_to_token` returns the first.

    Byte-level tokens of one character all have its offsets: an emoji at 3 may be tokens 2, 3, 4 with (3, 4) each.
    """
    last = encoding.char_to_token(character)
    while last + 1 < len(encoding):
        span = encoding.token_to_chars(last + 1)
        if not span or not span[0] <= character < span[1]:
            break
        last += 1
    return last
