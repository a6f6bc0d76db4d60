"""Render a conversation and find the characters that bear loss: the assistant's text.

If a template marks generated text, its marks are the spans. Otherwise a turn's span is what rendering the conversation
with the turn adds to rendering it up to the turn's header, both being prefixes of the full text:

    up to its header    <user>Hi</s><assistant>                      start: its length
    with the turn       <user>Hi</s><assistant>Hello</s>             end: its length without white space at the end
    the full text       <user>Hi</s><assistant>Hello</s><user>...

Two differences between prefix and full text are allowed, because they do not change the turn's text: an empty or
dropped thinking block (Qwen3, DeepSeek, Nemotron), and an end-of-text token after the last turn only (Phi-3). Any other
difference is refused, and every span must contain its turn's text.

The text of control tokens in turns stays text: it is hidden from the template, and marked in the result.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import product
from typing import Any

from jinja2 import TemplateError

from versatune_ds.data.encoding.control_tokens import ControlTokens, hide_control_tokens, reveal
from versatune_ds.data.encoding.template_omissions import find_omissions
from versatune_ds.data.encoding.templates import TemplateMismatchError
from versatune_ds.data.encoding.tokenizer import has_generation_marks, render_conversation

Spans = list[tuple[int, int]]

_OPENED_THINKING = re.compile(r"<think>\s*(</think>\s*)?\Z")
_THINKING = re.compile(r"\A<think>.*?</think>\s*", re.DOTALL)
_WAY_OUT = "give data.chat_template with {% generation %} marks, or set data.loss_on: all"


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedExample:
    """The text of an example, and the character spans that bear loss."""

    text: str
    loss_spans: Spans | None
    """None if all of the text bears loss."""
    is_plain: bool = False
    """Whether it is plain text, which gets the tokenizer's start token and the end-of-text token."""
    as_text: tuple[tuple[int, int], ...] = ()
    """Spans of characters that spell control tokens but are ordinary text."""
    warnings: tuple[str, ...] = ()
    """Keys of `data_warnings.DATA_WARNINGS`."""


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
        messages: Turns; one with `loss: False` bears no loss.
        tokenizer: Its special tokens are used by the template.
        template: Jinja text.
        loss_on: `assistant` or `all`.
        tools: Tool descriptions for templates that print them.
        control: Control tokens, which are ordinary text where turns spell them; none by default.

    Raises:
        TemplateMismatchError: If the template refuses the conversation, omits a turn's text, or prints turns so that
            their loss spans cannot be found.
    """
    # Hide control tokens in turns from the template.
    hidden = hide_control_tokens(messages, tools=tools, control=control or ControlTokens())
    # Render, and check that nothing is missing.
    text, spans = _text_and_spans(
        hidden.messages, tokenizer=tokenizer, template=template, loss_on=loss_on, tools=hidden.tools
    )
    warnings = find_omissions(hidden.messages, text=text, spans=[(0, len(text))] if spans is None else spans)
    # Put the hidden tokens back, and move the spans accordingly.
    revealed, moved, as_text = reveal(text, hidden=hidden)
    if spans is not None:
        spans = [(moved(start), moved(end)) for start, end in spans]
    return RenderedExample(text=revealed, loss_spans=spans, as_text=as_text, warnings=warnings)


def _text_and_spans(
    messages: list[dict[str, Any]], *, tokenizer: Any, template: str, loss_on: str, tools: list[dict[str, Any]] | None
) -> tuple[str, Spans | None]:
    """Return a conversation's text and the spans that bear loss, None for all of it.

    Raises:
        TemplateMismatchError: If the template refuses the conversation, or the spans cannot be found.
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
    except Exception as error:  # a template is code and can raise anything for an example that it does not support
        raise TemplateMismatchError(f"the chat template refuses the conversation: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """Return an error's message in one line, with its type unless the template raised it on purpose."""
    message = " ".join(str(error).split())
    return message if isinstance(error, TemplateError) else f"{type(error).__name__}: {message}"


def _marked_spans(marks: Spans, *, messages: list[dict[str, Any]], text: str, tokenizer: Any) -> Spans:
    """Return the template's marks of the turns that bear loss, each extended over an end-of-turn token after it."""
    # There must be a mark for each turn.
    bears_loss = [turn.get("loss", True) for turn in messages if turn["role"] == "assistant"]
    if len(marks) < len(bears_loss):
        raise TemplateMismatchError(
            f"the chat template marks {len(marks)} generated parts for {len(bears_loss)} assistant turns, so some of "
            "them would bear no loss"
        )
    if not all(bears_loss) and len(marks) != len(bears_loss):
        raise TemplateMismatchError(
            f"the chat template marks {len(marks)} generated parts for {len(bears_loss)} assistant turns, so those "
            "without loss cannot be found"
        )
    # Extend the marks, and keep those that bear loss.
    extended = _with_end_of_turn(marks, text=text, tokenizer=tokenizer)
    if all(bears_loss):
        return extended
    return [span for span, bears in zip(extended, bears_loss, strict=True) if bears]


def _with_end_of_turn(marks: Spans, *, text: str, tokenizer: Any) -> Spans:
    """Return marks extended over the end-of-turn token that directly follows them, never into the next mark.

    The end-of-text token always counts as one. Another special token counts only if one follows every mark: a token
    that follows only some marks belongs to the header of the next turn.
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
    """Return the special token between a mark and a limit; '' if there is none, or the mark already ends with one."""
    start, end = mark
    token = next((token for token in special_tokens if text.startswith(token, end, limit)), "")
    is_closed = token != end_of_text and text[start:end].rstrip().endswith(special_tokens)
    return "" if is_closed else token


def _special_tokens(tokenizer: Any) -> tuple[str, ...]:
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
    """Return where a turn begins in the full text: after its header, without a thinking block opened in prompts."""
    for prefix in (header, _OPENED_THINKING.sub("", header)):
        if text.startswith(prefix):
            return len(prefix)
    raise TemplateMismatchError(_mismatch(i, what="the conversation up to its header"))


def _end_of_turn(i: int, *, text: str, start: int, with_turn: str, end_of_text: str | None) -> int:
    """Return where a turn ends in the full text: after its end-of-turn token, before the white space that follows."""
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
    return (
        f"turn {turn + 1}: the chat template renders {what} differently than in the full conversation, so its loss "
        f"cannot be placed; {_WAY_OUT}"
    )
