"""Turn conversations and texts into tokens, and say which of them bear loss.

The one idea: loss is decided in characters, on the one text that is tokenised, and carried over to tokens by the
tokenizer's own offsets. So a turn's tokens are those of the whole conversation in its context, however many turns
there are, and tokenising pieces apart can never disagree with it.

Where a template marks generated text, its marks are the spans. Elsewhere a turn's span is what rendering the
conversation up to and including the turn adds to rendering it up to the turn's header:

    up to the header   <user>Hi</s><assistant>             19 + ... characters: start
    with the turn      <user>Hi</s><assistant>Hello</s>    end, after the end-of-turn token
    whole              <user>Hi</s><assistant>Hello</s><user>...

Both must be prefixes of the whole; a template for which they are not is refused, never guessed at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jinja2 import TemplateError

from versatune_ds.data.tokenize import has_generation_marks, render_conversation

Spans = list[tuple[int, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """Hold a row as text, with the character spans that bear loss; None means all of it."""

    text: str
    loss_spans: Spans | None
    is_plain: bool = False
    """Plain text, which the tokenizer's own start token and the end-of-text token frame."""


class TemplateMismatchError(ValueError):
    """Say that a template cannot render a conversation, or not so that loss can be placed exactly."""


def render_row(
    messages: list[dict[str, Any]],
    *,
    tokenizer: Any,
    template: str,
    loss_on: str = "assistant",
    tools: list[dict[str, Any]] | None = None,
) -> Rendered:
    """Return a conversation's text and the character spans that bear loss.

    A turn with `loss: False` bears none.

    Raises:
        TemplateMismatchError: If the template refuses the conversation, or its prefixes do not nest.
    """
    try:
        text, marks = render_conversation(messages, tokenizer=tokenizer, template=template, tools=tools)
        if loss_on == "all":
            return Rendered(text=text, loss_spans=None)
        if has_generation_marks(template):
            spans = _marked_spans(marks, messages=messages, text=text, end_of_turn=tokenizer.eos_token)
        else:
            spans = _nested_spans(messages, text=text, tokenizer=tokenizer, template=template, tools=tools)
    except TemplateError as error:
        raise TemplateMismatchError(f"the chat template refuses the conversation: {error}") from None
    return Rendered(text=text, loss_spans=spans)


def encode_rendered(rows: Sequence[Rendered], *, tokenizer: Any) -> list[Encoded]:
    """Return the tokens of rendered rows, in one call to the tokenizer for each kind of row."""
    encoded: list[Encoded | None] = [None] * len(rows)
    for is_plain in (False, True):
        places = [i for i, row in enumerate(rows) if row.is_plain == is_plain]
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
    return encoded


def encode_messages(
    messages: list[dict[str, Any]],
    *,
    tokenizer: Any,
    template: str,
    loss_on: str = "assistant",
    tools: list[dict[str, Any]] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens of one conversation, int32 [length], and its loss mask, bool [length]."""
    row = render_row(messages, tokenizer=tokenizer, template=template, loss_on=loss_on, tools=tools)
    (encoded,) = encode_rendered([row], tokenizer=tokenizer)
    return encoded.input_ids, encoded.is_loss


def encode_text(text: str, *, tokenizer: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens of a plain text, int32 [length], ended by the end-of-text token, and its loss mask: all."""
    (encoded,) = encode_rendered([Rendered(text=text, loss_spans=None, is_plain=True)], tokenizer=tokenizer)
    return encoded.input_ids, encoded.is_loss


def _marked_spans(marks: Spans, *, messages: list[dict[str, Any]], text: str, end_of_turn: str | None) -> Spans:
    """Return the template's marks, each stretched over an end-of-turn token that it stops short of."""
    assistant_turns = [message for message in messages if message["role"] == "assistant"]
    if len(marks) != len(assistant_turns):
        raise TemplateMismatchError(
            f"the chat template marks {len(marks)} generated parts for {len(assistant_turns)} assistant turns"
        )
    spans = []
    for (start, end), message in zip(marks, assistant_turns, strict=True):
        if end_of_turn and text.startswith(end_of_turn, end):
            end += len(end_of_turn)
        if message.get("loss", True):
            spans.append((start, end))
    return spans


def _nested_spans(messages: list[dict[str, Any]], *, text: str, **context: Any) -> Spans:
    """Return the span of every assistant turn by rendering the conversation up to it and with it."""
    spans = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant" or not message.get("loss", True):
            continue
        header, _ = render_conversation(messages[:i], add_generation_prompt=True, **context)
        if not text.startswith(header):  # some templates' prompts say more than the turn they announce
            raise TemplateMismatchError(_mismatch(i, what="the conversation up to its header"))
        is_last = i == len(messages) - 1
        with_turn = text if is_last else render_conversation(messages[: i + 1], **context)[0]
        spans.append((len(header), _end_of_turn(message, i, text=text, start=len(header), with_turn=with_turn)))
    return spans


def _end_of_turn(message: dict[str, Any], i: int, *, text: str, start: int, with_turn: str) -> int:
    """Return where a turn ends in the whole text: after its end-of-turn token, before the white space that follows.

    Templates may print a turn otherwise once another follows (Qwen3 drops the empty thinking block). Then the turn's
    content and what closed it must stand right after its header in the whole text.
    """
    if text.startswith(with_turn):
        return max(start, len(with_turn.rstrip()))
    content = message["content"].strip()
    if content and not message.get("tool_calls"):
        closing = with_turn.rpartition(content)[2].rstrip()
        place = text.find(content + closing, start)
        if place >= 0 and not text[start:place].strip():
            return place + len(content) + len(closing)
    raise TemplateMismatchError(_mismatch(i, what="the conversation up to its end"))


def _mismatch(turn: int, *, what: str) -> str:
    """Say that the loss of a turn cannot be placed, and what to do."""
    return (
        f"turn {turn + 1}: the chat template renders {what} otherwise than the whole conversation, so its loss cannot "
        "be placed; give data.chat_template with {% generation %} marks, or data.loss_on: all"
    )


def _encode_one(row: Rendered, *, encoding: Any, eos_token_id: int | None) -> Encoded:
    """Carry a row's character spans over to its tokens."""
    ids = encoding.ids
    if row.is_plain and eos_token_id is not None and (not ids or ids[-1] != eos_token_id):
        ids = [*ids, eos_token_id]
    if row.loss_spans is None:
        spans = [(1, len(ids))] if len(ids) > 1 else []
    else:
        spans = [_token_span(encoding, start=start, end=end) for start, end in row.loss_spans]
    borders = [border for start, end in spans if max(start, 1) < end for border in (max(start, 1), end)]
    return Encoded(input_ids=np.array(ids, dtype=np.int32), loss_spans=np.array(borders, dtype=np.int32))


def _token_span(encoding: Any, *, start: int, end: int) -> tuple[int, int]:
    """Return the tokens that hold characters start .. end-1; a token across the border counts as inside.

    Tokenizers may leave characters without a token (trimmed spaces), so the border moves inwards until one answers.
    """
    first = next((t for c in range(start, end) if (t := encoding.char_to_token(c)) is not None), None)
    if first is None:
        return 0, 0
    last = next(t for c in range(end - 1, start - 1, -1) if (t := encoding.char_to_token(c)) is not None)
    return first, last + 1
