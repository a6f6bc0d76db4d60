"""Find what a chat template left out of a conversation.

A turn's text, and the names of its calls, must stand in the rendered text: a row without them is not the row that was
given. Reasoning is another matter: templates leave it out of earlier turns by design, so there it is counted; but the
last turn is what a reasoning model learns from, and must keep it. White space is ignored everywhere.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_THINKING_TAG = re.compile(r"</?think>")
_Turns = list[dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Omissions:
    """What is missing from a rendered conversation."""

    problem: str = ""
    """Why the row cannot be trained on; empty when it can."""
    remarks: tuple[str, ...] = ()
    """What is missing without making the row worthless, as keys of `data_warnings.DATA_WARNINGS`."""


def find_omissions(messages: _Turns, *, text: str, spans: list[tuple[int, int]]) -> Omissions:
    """Return what is missing from a rendered conversation.

    Args:
        messages: Its turns.
        text: What the template made of them.
        spans: Characters that bear loss.
    """
    squeezed = _squeezed(text)
    problem = _missing_turn(messages, text=squeezed, learned=_squeezed("".join(text[a:b] for a, b in spans)))
    if problem:
        return Omissions(problem=problem)
    remarks = set(_missing_parts(messages, text=squeezed))
    for number, is_in_text, is_learned in _reasoning(messages, text=text, squeezed=squeezed, spans=spans):
        is_last = all(turn["role"] != "assistant" for turn in messages[number:])
        if not is_in_text and is_last and messages[number - 1].get("loss", True):
            return Omissions(
                problem=f"turn {number} (assistant, the last): the chat template leaves its reasoning out; "
                "give data.chat_template=FILE with one that prints it, or take the reasoning out of the row"
            )
        if not is_in_text:
            remarks.add("reasoning_left_out")
        elif not is_learned:
            remarks.add("reasoning_without_loss")
    return Omissions(remarks=tuple(sorted(remarks)))


def _missing_turn(messages: _Turns, *, text: str, learned: str) -> str:
    """Return which turn's text or calls are missing; '' if none are.

    The assistant's turns must stand in order where loss falls. The others have no order: templates move system turns.

    Args:
        messages: The turns.
        text: The rendered text without white space.
        learned: What of it bears loss, without white space.
    """
    cursor = 0  # in what is learned, behind the assistant's turn before
    for number, turn in enumerate(messages, start=1):
        is_learned = turn["role"] == "assistant" and turn.get("loss", True)
        place, start = (learned, cursor) if is_learned else (text, 0)
        ends = [_end_of_part(spellings, place=place, start=start) for spellings in _parts(turn)]
        if None in ends:
            return f"turn {number} ({turn['role']}): the chat template leaves its text out"
        cursor = max(ends) if is_learned else cursor
    return ""


def _parts(turn: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return what a template must print of a turn, each in the spellings it may have: as it is or as JSON text."""
    content = turn["content"] or ""
    spellings = [content.rpartition("</think>")[2] if turn["role"] in ("user", "assistant") else content]
    if turn["role"] == "tool":  # Llama 3.1 and gpt-oss print tool results through `tojson`
        spellings += _as_json(content)
    names = [(_squeezed(call["function"]["name"]),) for call in turn.get("tool_calls", ())]
    return [tuple(_squeezed(spelling) for spelling in spellings), *names]


def _end_of_part(spellings: tuple[str, ...], *, place: str, start: int) -> int | None:
    """Return where the first spelling found from `start` on ends; None when none is found."""
    found = ((place.find(spelling, start), spelling) for spelling in spellings)
    return next((at + len(spelling) for at, spelling in found if at >= 0), None)


def _missing_parts(messages: _Turns, *, text: str) -> Iterator[str]:
    """Yield what is missing of calls' arguments, speakers' names, and what others say before `</think>`."""
    for turn in messages:
        texts = [leaf for call in turn.get("tool_calls") or () for leaf in _texts_of(call["function"]["arguments"])]
        if any(not _is_in(leaf, text=text) for leaf in texts):
            yield "arguments_left_out"
        if turn["role"] in ("user", "assistant") and turn.get("name") and _squeezed(turn["name"]) not in text:
            yield "name_left_out"
        if turn["role"] == "user" and any(part not in text for part in _thoughts(turn)):
            yield "text_left_out"


def _is_in(value: str, *, text: str) -> bool:
    """Return whether a text stands in another as it is, as JSON text, or as JSON text within JSON text."""
    once = _as_json(value)
    spellings = [value, *once, *(twice for spelling in once for twice in _as_json(spelling))]
    return any(_squeezed(spelling) in text for spelling in spellings)


def _texts_of(value: Any) -> Iterator[str]:
    """Yield the texts among the values of a JSON value, at any depth."""
    pending = [value]
    while pending:
        entry = pending.pop()
        if isinstance(entry, str):
            yield entry
        elif isinstance(entry, dict):
            pending += entry.values()
        elif isinstance(entry, list):
            pending += entry


def _reasoning(
    messages: _Turns, *, text: str, squeezed: str, spans: list[tuple[int, int]]
) -> Iterator[tuple[int, bool, bool]]:
    """Yield each assistant turn that reasons: its number, whether the text has its reasoning, whether that is learned.

    Where every turn that bears loss has a span of its own, its reasoning is looked for there and just before. Elsewhere
    the text as a whole must hold it as often as turns have it; where it is too few times, the earlier turns lack it.
    """
    said = [(number, turn) for number, turn in enumerate(messages, start=1) if turn["role"] == "assistant"]
    reasoning = [(number, turn, parts) for number, turn in said if (parts := _thoughts(turn))]
    learned_turns = [number for number, turn in said if turn.get("loss", True)]
    span_of = dict(zip(learned_turns, spans, strict=True)) if len(spans) == len(learned_turns) else {}
    span_of = {} if spans == [(0, len(text))] else span_of
    begins = [0, *(end for _, end in spans)]
    is_counted = any(number not in span_of for number, _, _ in reasoning)
    left = Counter({part: squeezed.count(part) for _, _, parts in reasoning * is_counted for part in parts})
    for number, turn, parts in reversed(reasoning):
        is_in_text = all(left[part] > 0 for part in parts)
        left.subtract(parts)
        if number not in span_of:
            yield number, is_in_text, is_in_text
            continue
        start, end = span_of[number]
        before = _squeezed(text[begins[learned_turns.index(number)] : start])
        inside = _without_answer(_squeezed(text[start:end]), turn=turn)
        yield number, all(part in before or part in inside for part in parts), all(part in inside for part in parts)


def _thoughts(turn: dict[str, Any]) -> list[str]:
    """Return what a turn thinks, without white space: `reasoning_content` and what its content says in `<think>`."""
    inline = (turn["content"] or "").rpartition("</think>")[0]
    parts = [turn.get("reasoning_content") or "", *_THINKING_TAG.split(inline)]
    return [squeezed for part in parts if (squeezed := _squeezed(part))]


def _without_answer(span: str, *, turn: dict[str, Any]) -> str:
    """Return a turn's span without its answer, which may happen to say what its reasoning says."""
    head, _, tail = span.rpartition(_squeezed((turn["content"] or "").rpartition("</think>")[2]) or "\0")
    return head + tail


def _as_json(text: str) -> list[str]:
    """Return a text as JSON spells it, with ASCII only and with every character."""
    return [json.dumps(text, ensure_ascii=is_ascii)[1:-1] for is_ascii in (False, True)]


def _squeezed(text: str) -> str:
    """Return a text without white space."""
    return "".join(text.split())
