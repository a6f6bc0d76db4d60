"""Find what a chat template omits from a conversation.

The text of every turn, and the names of its calls, must be in the rendered text; otherwise the example is refused.
Reasoning may be missing: templates omit it from earlier turns by design, so there it is only counted; but the last
turn, from which a reasoning model learns, must keep it. White space is ignored everywhere.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from versatune_ds.data.encoding.templates import TemplateMismatchError
from versatune_ds.data.sources.records import texts_in

_THINKING_TAG = re.compile(r"</?think>")
_Turns = list[dict[str, Any]]


def find_omissions(messages: _Turns, *, text: str, spans: list[tuple[int, int]]) -> tuple[str, ...]:
    """Return what is missing from a rendered conversation that can be trained on: keys of `DATA_WARNINGS`, sorted.

    Args:
        messages: Its turns.
        text: The rendered text.
        spans: Spans of characters that bear loss.

    Raises:
        TemplateMismatchError: If so much is missing that it cannot be trained on.
    """
    # Text and calls.
    squeezed = _squeezed(text)
    _check_turns(messages, text=squeezed, text_with_loss=_squeezed("".join(text[a:b] for a, b in spans)))
    warnings = set(_missing_parts(messages, text=squeezed))
    # Reasoning.
    for number, is_in_text, has_loss in _reasoning(messages, text=text, squeezed=squeezed, spans=spans):
        is_last = all(turn["role"] != "assistant" for turn in messages[number:])
        if not is_in_text and is_last and messages[number - 1].get("loss", True):
            raise TemplateMismatchError(
                f"turn {number} (assistant, the last): the chat template leaves its reasoning out; "
                "give data.chat_template=FILE with one that prints it, or remove the reasoning from the row"
            )
        if not is_in_text:
            warnings.add("reasoning_left_out")
        elif not has_loss:
            warnings.add("reasoning_without_loss")
    return tuple(sorted(warnings))


def _check_turns(messages: _Turns, *, text: str, text_with_loss: str) -> None:
    """Raise TemplateMismatchError for the first turn whose text or calls are missing.

    The assistant's turns must be in the text that bears loss, in order. The others may be anywhere: templates move
    system turns.

    Args:
        messages: The turns.
        text: The rendered text without white space.
        text_with_loss: The part of it that bears loss, without white space.
    """
    end_of_previous = 0  # of the assistant's previous turn in text_with_loss
    for number, turn in enumerate(messages, start=1):
        bears_loss = turn["role"] == "assistant" and turn.get("loss", True)
        searched, start = (text_with_loss, end_of_previous) if bears_loss else (text, 0)
        ends = [_end_of_part(spellings, text=searched, start=start) for spellings in _parts(turn)]
        if None in ends:
            raise TemplateMismatchError(f"turn {number} ({turn['role']}): the chat template leaves its text out")
        if bears_loss:
            end_of_previous = max(ends)


def _parts(turn: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the parts of a turn that a template must print, each in all spellings: as it is, or as JSON text."""
    content = turn["content"] or ""
    spellings = [content.rpartition("</think>")[2] if turn["role"] in ("user", "assistant") else content]
    if turn["role"] == "tool":  # Llama 3.1 and gpt-oss print tool results through `tojson`
        spellings += _as_json(content)
    names = [(_squeezed(call["function"]["name"]),) for call in turn.get("tool_calls", ())]
    return [tuple(_squeezed(spelling) for spelling in spellings), *names]


def _end_of_part(spellings: tuple[str, ...], *, text: str, start: int) -> int | None:
    """Return the end of the first spelling that occurs at or after `start`; None if none does."""
    found = ((text.find(spelling, start), spelling) for spelling in spellings)
    return next((at + len(spelling) for at, spelling in found if at >= 0), None)


def _missing_parts(messages: _Turns, *, text: str) -> Iterator[str]:
    """Yield warnings for missing arguments of calls, names of speakers, and text of users before `</think>`."""
    for turn in messages:
        texts = [leaf for call in turn.get("tool_calls") or () for leaf in texts_in(call["function"]["arguments"])]
        if any(not _is_in(leaf, text=text) for leaf in texts):
            yield "arguments_left_out"
        if turn["role"] in ("user", "assistant") and turn.get("name") and _squeezed(turn["name"]) not in text:
            yield "name_left_out"
        if turn["role"] == "user" and any(part not in text for part in _thoughts(turn)):
            yield "text_left_out"


def _is_in(value: str, *, text: str) -> bool:
    """Return whether a text contains another as it is, as JSON text, or as JSON text in JSON text."""
    once = _as_json(value)
    spellings = [value, *once, *(twice for spelling in once for twice in _as_json(spelling))]
    return any(_squeezed(spelling) in text for spelling in spellings)


def _reasoning(
    messages: _Turns, *, text: str, squeezed: str, spans: list[tuple[int, int]]
) -> Iterator[tuple[int, bool, bool]]:
    """Yield (number, is in the text, bears loss) for each assistant turn with reasoning, the last turn first.

    If every turn that bears loss has a span of its own, its reasoning is searched in the span and just before it.
    Otherwise the full text must contain it as often as turns have it; if it does not, the earlier turns lack it.
    """
    # Assistant turns, those with reasoning, and the span of each turn that bears loss.
    answers = [(number, turn) for number, turn in enumerate(messages, start=1) if turn["role"] == "assistant"]
    reasoning = [(number, turn, parts) for number, turn in answers if (parts := _thoughts(turn))]
    numbers_with_loss = [number for number, turn in answers if turn.get("loss", True)]
    is_whole_text = spans == [(0, len(text))]
    span_of: dict[int, tuple[int, int]] = {}
    if len(spans) == len(numbers_with_loss) and not is_whole_text:
        span_of = dict(zip(numbers_with_loss, spans, strict=True))
    starts_of_gaps = [0, *(end for _, end in spans)]
    # How often the text contains each part, for turns without a span.
    remaining: Counter[str] = Counter()
    if any(number not in span_of for number, _, _ in reasoning):
        remaining.update({part: squeezed.count(part) for _, _, parts in reasoning for part in parts})
    for number, turn, parts in reversed(reasoning):
        is_in_text = all(remaining[part] > 0 for part in parts)
        remaining.subtract(parts)
        if number not in span_of:
            yield number, is_in_text, is_in_text
            continue
        start, end = span_of[number]
        before = _squeezed(text[starts_of_gaps[numbers_with_loss.index(number)] : start])
        inside = _without_answer(_squeezed(text[start:end]), turn=turn)
        yield number, all(part in before or part in inside for part in parts), all(part in inside for part in parts)


def _thoughts(turn: dict[str, Any]) -> list[str]:
    """Return a turn's reasoning without white space: `reasoning_content`, and the text in `<think>` in its content."""
    inline = (turn["content"] or "").rpartition("</think>")[0]
    parts = [turn.get("reasoning_content") or "", *_THINKING_TAG.split(inline)]
    return [squeezed for part in parts if (squeezed := _squeezed(part))]


def _without_answer(span: str, *, turn: dict[str, Any]) -> str:
    """Return a turn's span without its answer, which may repeat its reasoning."""
    head, _, tail = span.rpartition(_squeezed((turn["content"] or "").rpartition("</think>")[2]) or "\0")
    return head + tail


def _as_json(text: str) -> list[str]:
    """Return a text as JSON writes it, with ASCII escapes and without."""
    return [json.dumps(text, ensure_ascii=is_ascii)[1:-1] for is_ascii in (False, True)]


def _squeezed(text: str) -> str:
    return "".join(text.split())
