"""Render a conversation and find, in characters, what the assistant says in it.

The one idea: where a template marks generated text, its marks are the spans. Elsewhere a turn's span is what rendering
the conversation with the turn adds to rendering it up to the turn's header, both being prefixes of the whole:

    up to its header    <user>Hi</s><assistant>                      start: its length
    with the turn       <user>Hi</s><assistant>Hello</s>             end: its length, white space after it left out
    the whole           <user>Hi</s><assistant>Hello</s><user>...

Two habits of templates are known and allowed for, because they change nothing the turn says: an empty or dropped
thinking block (Qwen3, DeepSeek, Nemotron), and an end-of-text token after the last turn only (Phi-3). Anything else is
refused, never guessed at; and every span must hold its turn's text.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from itertools import product
from typing import Any

from jinja2 import TemplateError

from versatune_ds.data.tokenize import has_generation_marks, render_conversation

Spans = list[tuple[int, int]]

_OPENED_THINKING = re.compile(r"<think>\s*(</think>\s*)?\Z")
_THINKING = re.compile(r"\A<think>.*?</think>\s*", re.DOTALL)
_WAY_OUT = "give data.chat_template with {% generation %} marks, or set data.loss_on: all"


class TemplateMismatchError(ValueError):
    """Say that a template cannot render a conversation, or not so that loss can be placed exactly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """Hold a row as text, with the character spans that bear loss; None means all of it."""

    text: str
    loss_spans: Spans | None
    is_plain: bool = False
    """Plain text, which the tokenizer's own start token and the end-of-text token frame."""


def render_row(
    messages: list[dict[str, Any]],
    *,
    tokenizer: Any,
    template: str,
    loss_on: str = "assistant",
    tools: list[dict[str, Any]] | None = None,
) -> Rendered:
    """Return a conversation's text and the character spans that bear loss.

    Args:
        messages: Turns; one with `loss: False` bears none.
        tokenizer: Gives the special tokens a template names.
        template: Jinja text.
        loss_on: `assistant` or `all`.
        tools: Tool descriptions for templates that print them.

    Raises:
        TemplateMismatchError: If the template refuses the conversation, leaves a turn's text out, or prints turns so
            that their loss cannot be placed.
    """
    try:
        text, marks = render_conversation(messages, tokenizer=tokenizer, template=template, tools=tools)
        if loss_on == "all":
            spans, checked = [(0, len(text))], None
        elif has_generation_marks(template):
            spans = checked = _marked_spans(marks, messages=messages, text=text, tokenizer=tokenizer)
        else:
            spans = checked = _nested_spans(messages, text=text, tokenizer=tokenizer, template=template, tools=tools)
    except TemplateMismatchError:
        raise
    except Exception as error:  # a template is code: a row of a shape it does not know can raise anything in it
        raise TemplateMismatchError(f"the chat template refuses the conversation: {_reason(error)}") from None
    learned = "".join(text[start:end] for start, end in spans)
    _check_nothing_left_out(messages, text=text, learned=learned)
    return Rendered(text=text, loss_spans=checked)


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


def _check_nothing_left_out(messages: list[dict[str, Any]], *, text: str, learned: str) -> None:
    """Raise TemplateMismatchError unless every turn stands in the text, the assistant's in order where loss falls.

    White space is ignored, and so is thinking, which templates drop from earlier turns by design. Only the
    assistant's turns have an order: templates move system turns.
    """
    squeezed_text, squeezed_learned = _squeezed(text), _squeezed(learned)
    cursor = 0  # in what is learned, behind the assistant's turn before
    for number, turn in enumerate(messages, start=1):
        is_learned = turn["role"] == "assistant" and turn.get("loss", True)
        place, start = (squeezed_learned, cursor) if is_learned else (squeezed_text, 0)
        ends = [_end_of_part(spellings, place=place, start=start) for spellings in _parts(turn)]
        if None in ends:
            raise TemplateMismatchError(f"turn {number} ({turn['role']}): the chat template leaves its text out")
        cursor = max(ends) if is_learned else cursor


def _parts(turn: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return what a template must print of a turn, each in the spellings it may have: as it is or as JSON text."""
    content = turn["content"].rpartition("</think>")[2] if turn["role"] in ("user", "assistant") else turn["content"]
    spellings = [content]
    if turn["role"] == "tool":  # Llama 3.1 and gpt-oss print tool results through `tojson`
        spellings += [json.dumps(content, ensure_ascii=is_ascii)[1:-1] for is_ascii in (False, True)]
    names = [(call["function"]["name"],) for call in turn.get("tool_calls", ())]
    return [tuple(_squeezed(spelling) for spelling in spellings), *names]


def _end_of_part(spellings: tuple[str, ...], *, place: str, start: int) -> int | None:
    """Return where the first spelling found from `start` on ends; None when none is found."""
    found = ((place.find(spelling, start), spelling) for spelling in spellings)
    return next((at + len(spelling) for at, spelling in found if at >= 0), None)


def _squeezed(text: str) -> str:
    """Return a text without white space."""
    return "".join(text.split())
