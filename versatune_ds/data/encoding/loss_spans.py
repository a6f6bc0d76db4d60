"""Render a conversation and find, in characters, what the assistant says in it.

The one idea: where a template marks generated text, its marks are the spans. Elsewhere a turn's span is what rendering
the conversation with the turn adds to rendering it up to the turn's header, both being prefixes of the whole:

    up to its header    <user>Hi</s><assistant>                      start: its length
    with the turn       <user>Hi</s><assistant>Hello</s>             end: its length, white space after it left out
    the whole           <user>Hi</s><assistant>Hello</s><user>...

Two habits of templates are known and allowed for, because they change nothing the turn says: an empty or dropped
thinking block (Qwen3, DeepSeek, Nemotron), and an end-of-text token after the last turn only (Phi-3). Anything else is
refused, never guessed at; and every span must hold its turn's text.

Text of control tokens within turns stays text: it is hidden from the template, and marked in the result.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import product
from typing import Any

from jinja2 import TemplateError

from versatune_ds.data.encoding.control_tokens import ControlTokens, hide_control_tokens, reveal
from versatune_ds.data.encoding.template_omissions import find_omissions
from versatune_ds.data.encoding.tokenizer import has_generation_marks, render_conversation

Spans = list[tuple[int, int]]

_OPENED_THINKING = re.compile(r"<think>\s*(</think>\s*)?\Z")
_THINKING = re.compile(r"\A<think>.*?</think>\s*", re.DOTALL)
_WAY_OUT = "give data.chat_template with {% generation %} marks, or set data.loss_on: all"


class TemplateMismatchError(ValueError):
    """Say that a template cannot render a conversation, or not so that loss can be placed exactly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedExample:
    """Hold a row as text, with the character spans that bear loss; None means all of it."""

    text: str
    loss_spans: Spans | None
    is_plain: bool = False
    """Plain text, which the tokenizer's own start token and the end-of-text token frame."""
    as_text: tuple[tuple[int, int], ...] = ()
    """Characters that spell control tokens and are ordinary text."""
    remarks: tuple[str, ...] = ()
    """What is odd about the row, as keys of `data_warnings.DATA_WARNINGS`."""


def render_example(
    messages: list[dict[str, Any]],
    *,
    tokenizer: Any,
    template: str,
    loss_on: str = "assistant",
    tools: list[dict[str, Any]] | None = None,
    control: ControlTokens | None = None,
) -> RenderedExample:
    """Return a conversation's text and the character spans that bear loss.

    Args:
        messages: Turns; one with `loss: False` bears none.
        tokenizer: Gives the special tokens a template names.
        template: Jinja text.
        loss_on: `assistant` or `all`.
        tools: Tool descriptions for templates that print them.
        control: Tokens that are ordinary text where turns spell them; none by default.

    Raises:
        TemplateMismatchError: If the template refuses the conversation, leaves a turn's text out, or prints turns so
            that their loss cannot be placed.
    """
    try:
        hidden = hide_control_tokens(messages, tools=tools, control=control or ControlTokens())
    except ValueError as error:
        raise TemplateMismatchError(str(error)) from None
    text, spans = _text_and_spans(
        hidden.messages, tokenizer=tokenizer, template=template, loss_on=loss_on, tools=hidden.tools
    )
    left_out = find_omissions(hidden.messages, text=text, spans=[(0, len(text))] if spans is None else spans)
    if left_out.problem:
        raise TemplateMismatchError(left_out.problem)
    revealed, moved, as_text = reveal(text, hidden=hidden)
    moved_spans = None if spans is None else [(moved(start), moved(end)) for start, end in spans]
    return RenderedExample(text=revealed, loss_spans=moved_spans, as_text=as_text, remarks=left_out.remarks)


def _text_and_spans(
    messages: list[dict[str, Any]], *, tokenizer: Any, template: str, loss_on: str, tools: list[dict[str, Any]] | None
) -> tuple[str, Spans | None]:
    """Return a conversation's text and the spans that bear loss, None for all of it.

    Raises:
        TemplateMismatchError: If the template refuses the conversation, or its loss cannot be placed.
    """
    try:
        text, marks = render_conversation(messages, tokenizer=tokenizer, template=template, tools=tools)
        if loss_on == "all":
            return text, None
        if has_generation_marks(template):
            return text, _marked_spans(marks, messages=messages, text=text, tokenizer=tokenizer)
        return text, _nested_spans(messages, text=text, tokenizer=tokenizer, template=template, tools=tools)
    except TemplateMismatchError:
        raise
    except Exception as error:  # a template is code: a row of a shape it does not know can raise anything in it
        raise TemplateMismatchError(f"the chat template refuses the conversation: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """Return an error's message in one line, with its type unless the template itself spoke."""
    message = " ".join(str(error).split())
    return message if isinstance(error, TemplateError) else f"{type(error).__name__}: {message}"


def _marked_spans(marks: Spans, *, messages: list[dict[str, Any]], text: str, tokenizer: Any) -> Spans:
    """Return the template's marks, each stretched over an end-of-turn token that it stops short of."""
    bears_loss = [turn.get("loss", True) for turn in messages if turn["role"] == "assistant"]
    if len(marks) < len(bears_loss):
        raise TemplateMismatchError(
            f"the chat template marks {len(marks)} generated parts for {len(bears_loss)} assistant turns, so some of "
            "them would bear no loss"
        )
    if not all(bears_loss) and len(marks) != len(bears_loss):
        raise TemplateMismatchError(
            f"the chat template marks {len(marks)} generated parts for {len(bears_loss)} assistant turns, so those "
            "without loss cannot be told"
        )
    stretched = _stretched(marks, text=text, tokenizer=tokenizer)
    return stretched if all(bears_loss) else [span for span, bears in zip(stretched, bears_loss, strict=True) if bears]


def _stretched(marks: Spans, *, text: str, tokenizer: Any) -> Spans:
    """Return marks stretched over the end-of-turn token that directly follows them, never into the next mark.

    The end-of-text token is one wherever it follows; another special token only if one follows every mark: what some
    marks lack is no end of a turn but the header of the next.
    """
    if not any(text[end : end + 1].strip() for _, end in marks):
        return marks
    special_tokens, end_of_text = _special_tokens(tokenizer), tokenizer.eos_token
    limits = [*(start for start, _ in marks[1:]), len(text)]
    tokens = [
        _token_after(mark, text=text, limit=limit, special_tokens=special_tokens, end_of_text=end_of_text)
        for mark, limit in zip(marks, limits, strict=True)
    ]
    if not all(tokens):
        tokens = [token if token == end_of_text else "" for token in tokens]
    return [(start, end + len(token)) for (start, end), token in zip(marks, tokens, strict=True)]


def _token_after(
    mark: tuple[int, int], *, text: str, limit: int, special_tokens: tuple[str, ...], end_of_text: str | None
) -> str:
    """Return the special token between a mark and a limit, or '' if none stands there or the mark ends with its own."""
    start, end = mark
    token = next((token for token in special_tokens if text.startswith(token, end, limit)), "")
    is_closed = token != end_of_text and text[start:end].rstrip().endswith(special_tokens)
    return "" if is_closed else token


def _special_tokens(tokenizer: Any) -> tuple[str, ...]:
    """Return the texts of a tokenizer's special tokens, longer ones first."""
    added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    return tuple(sorted({*added, *tokenizer.all_special_tokens}, key=lambda token: (-len(token), token)))


def _nested_spans(messages: list[dict[str, Any]], *, text: str, **context: Any) -> Spans:
    """Return the span of every assistant turn by rendering the conversation up to it and with it."""
    spans = []
    for i, turn in enumerate(messages):
        if turn["role"] != "assistant" or not turn.get("loss", True):
            continue
        header, _ = render_conversation(messages[:i], add_generation_prompt=True, **context)
        start = _start_of_turn(i, text=text, header=header)
        is_last = i == len(messages) - 1
        with_turn = text if is_last else render_conversation(messages[: i + 1], **context)[0]
        end = _end_of_turn(i, text=text, start=start, with_turn=with_turn, end_of_text=context["tokenizer"].eos_token)
        spans.append((start, end))
    return spans


def _start_of_turn(i: int, *, text: str, header: str) -> int:
    """Return where a turn begins in the whole text: after its header, less a thinking block that only prompts open."""
    for prefix in (header, _OPENED_THINKING.sub("", header)):
        if text.startswith(prefix):
            return len(prefix)
    raise TemplateMismatchError(_mismatch(i, what="the conversation up to its header"))


def _end_of_turn(i: int, *, text: str, start: int, with_turn: str, end_of_text: str | None) -> int:
    """Return where a turn ends in the whole text: after its end-of-turn token, before the white space that follows."""
    if text.startswith(with_turn):
        return max(start, len(with_turn.rstrip()))
    if with_turn[:start] == text[:start]:
        turn = with_turn[start:].rstrip()
        for without_thinking, without_end in product((False, True), repeat=2):
            variant = _THINKING.sub("", turn) if without_thinking else turn
            variant = variant.removesuffix(end_of_text or "").rstrip() if without_end else variant
            if variant and text.startswith(variant, start):
                return start + len(variant)
    raise TemplateMismatchError(_mismatch(i, what="the conversation up to its end"))


def _mismatch(turn: int, *, what: str) -> str:
    """Say that the loss of a turn cannot be placed, and what to do."""
    return (
        f"turn {turn + 1}: the chat template renders {what} otherwise than in the whole conversation, so its loss "
        f"cannot be placed; {_WAY_OUT}"
    )
