"""Find the format of tool calls that a chat template accepts, by rendering some, and give calls the ids that it needs.

Templates differ: arguments as a mapping or as JSON text, calls together with text or only with the content None, ids of
any length, of nine characters, or none.

An id says which result belongs to which call. In an example without ids the order does: the first result is that of the
first call. If a template refuses an id (Mistral's accept nine characters), the call and its result get the same nine
characters, computed from the id alone, so that the same examples always give the same tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from versatune_ds.data.encoding.tokenizer import render_conversation

MARKER = "marker7319"
USER = {"role": "user", "content": "a"}
NINE, LONG, SHORT = "a1b2c3d4e", "call_a1b2c3d4e5f6g7h8i9j0k1l2", "a1"
"""Ids of tool calls: of the length that Mistral's templates require, in OpenAI's form, and a short one."""

_Turns = list[dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCallFormat:
    """The format of tool calls that a template accepts."""

    takes_text: bool = False
    """Arguments are JSON text, not a mapping."""
    takes_none: bool = False
    """The content of a turn with calls must be None."""
    takes_content: bool = True
    """The text of a turn with calls is printed too."""
    uses_ids: bool = False
    """Ids are printed or required."""
    takes_nine: bool = True
    """Ids of nine characters are accepted; the next two say the same for longer and shorter ones."""
    takes_long_ids: bool = True
    takes_short_ids: bool = True

    def is_id_accepted(self, call_id: str) -> bool:
        """Return whether the template accepts an id of this length, or no id that could replace it."""
        if len(call_id) == len(NINE) or not self.takes_nine:
            return True
        return self.takes_long_ids if len(call_id) > len(NINE) else self.takes_short_ids


class Probe:
    """Render made-up conversations with one template.

    Args:
        template: Jinja text.
        tokenizer: Its special tokens are used by the template.
    """

    def __init__(self, template: str, tokenizer: Any) -> None:
        self._template = template
        self._tokenizer = tokenizer
        self.refusal = ""

    def text(self, *messages: dict[str, Any], tools: list[dict[str, Any]] | None = None) -> str:
        """Return a conversation's text; '' if the template raises, with the message in `refusal`."""
        try:
            text, _ = render_conversation(
                list(messages), tokenizer=self._tokenizer, template=self._template, tools=tools
            )
        except Exception as error:  # a template can raise anything for input that it does not support
            self.refusal = " ".join(str(error).split())
            return ""
        return text

    def prints(self, *messages: dict[str, Any], tools: list[dict[str, Any]] | None = None) -> bool:
        """Return whether a conversation's text contains the marker."""
        return MARKER in self.text(*messages, tools=tools)


def find_tool_call_format(probe: Probe) -> ToolCallFormat | None:
    """Return the format in which a template prints tool calls and their results; None if it prints no calls.

    In that case `probe.refusal` is the template's message for a call in the usual format; '' if it drops it silently.
    """
    probe.text(USER, call_turn(ToolCallFormat(), call_id=NINE))
    refusal = probe.refusal
    for with_result, takes_none, takes_text in product((True, False), (False, True), (False, True)):
        plain = ToolCallFormat(takes_text=takes_text, takes_none=takes_none)
        # Which ids are accepted, if any.
        context = {"probe": probe, "call_format": plain, "with_result": with_result}
        accepted = next((call_id for call_id in (NINE, LONG, SHORT) if _call_text(call_id, **context)), None)
        text_without_id = _call_text(None, **context)
        if accepted is None and not text_without_id:
            continue
        probe.refusal = ""
        return ToolCallFormat(
            takes_text=takes_text,
            takes_none=takes_none,
            takes_content=bool(_call_text(accepted, content="content5081", **context)),
            uses_ids=accepted is not None and (accepted in _call_text(accepted, **context) or not text_without_id),
            takes_nine=accepted == NINE,
            takes_long_ids=bool(_call_text(LONG, **context)),
            takes_short_ids=bool(_call_text(SHORT, **context)),
        )
    probe.refusal = refusal
    return None


def _call_text(
    call_id: str | None, *, probe: Probe, call_format: ToolCallFormat, with_result: bool, content: str = ""
) -> str:
    """Return the text of a conversation with a tool call; '' if the call, its result or `content` is not all there."""
    turn = call_turn(call_format, call_id=call_id)
    if content:
        turn["content"] = content
    turns = [USER, turn]
    if with_result:
        id_of_result = {} if call_id is None else {"tool_call_id": call_id}
        turns.append({"role": "tool", "content": "result5081", "name": MARKER, **id_of_result})
    text = probe.text(*turns)
    before, _, after = text.partition(MARKER)
    has_result = not with_result or "result5081" in after
    is_complete = bool(before) and "argument5081" in after and has_result and content in text
    return text if is_complete else ""


def call_turn(call_format: ToolCallFormat, *, call_id: str | None, name: str = MARKER) -> dict[str, Any]:
    """Return an assistant turn with one tool call in a format."""
    arguments: Any = {"key": "argument5081"}
    function = {"name": name, "arguments": json.dumps(arguments) if call_format.takes_text else arguments}
    call: dict[str, Any] = {"type": "function", "function": function}
    if call_id is not None:
        call["id"] = call_id
    return {"role": "assistant", "content": None if call_format.takes_none else "", "tool_calls": [call]}


def with_call_ids(turns: Sequence[dict[str, Any]], *, is_accepted: Callable[[str], bool]) -> _Turns:
    """Return turns in which every call has an id that a template accepts, and every result the id of its call.

    Args:
        turns: Turns as `turns_of` returns them.
        is_accepted: Whether the template accepts an id as it is.
    """
    made = [dict(turn) for turn in turns]
    new_ids = _unused_ids(made)
    for calls, results in _exchanges(made):
        # Calls without an id get that of a result which belongs to no other call, or a new one.
        claimed = {call["id"] for call in calls if "id" in call}
        unclaimed = iter(
            [turn["tool_call_id"] for turn in results if turn.get("tool_call_id", "") not in {"", *claimed}]
        )
        for call in calls:
            if "id" not in call:
                call["id"] = next(unclaimed, None) or next(new_ids)
        _set_ids_of_results(calls, results, new_ids=new_ids)
        # Ids that the template refuses are shortened, in calls and results alike.
        for entry, key in [*((call, "id") for call in calls), *((turn, "tool_call_id") for turn in results)]:
            if not is_accepted(entry[key]):
                entry[key] = shortened(entry[key])
    return made


def results_in_call_order(turns: Sequence[dict[str, Any]]) -> _Turns:
    """Return turns with results in the order of their calls, for templates that print no ids."""
    made = [dict(turn) for turn in turns]
    for calls, results in _exchanges(made):
        order = [call.get("id") for call in calls]
        ids = [turn.get("tool_call_id") for turn in results]
        if None in ids or len(set(ids)) < len(ids) or not set(ids) <= set(order):
            continue
        places = [i for i, turn in enumerate(made) if any(turn is result for result in results)]
        for i, turn in zip(places, sorted(results, key=lambda turn: order.index(turn["tool_call_id"])), strict=True):
            made[i] = turn
    return made


def shortened(call_id: str) -> str:
    """Return nine hexadecimal digits that depend only on an id."""
    return hashlib.blake2b(call_id.encode("utf-8", "replace")).hexdigest()[: len(NINE)]


def _exchanges(turns: _Turns) -> Iterator[tuple[list[dict[str, Any]], _Turns]]:
    """Yield the calls of each assistant turn, copied in place, with the tool turns before the next assistant turn."""
    calls: list[dict[str, Any]] = []
    results: _Turns = []
    for turn in turns:
        if turn["role"] == "tool":
            results.append(turn)
        elif turn["role"] == "assistant":
            yield calls, results
            calls = [dict(call) for call in turn.get("tool_calls") or ()]
            results = []
            if calls:
                turn["tool_calls"] = calls
    yield calls, results


def _set_ids_of_results(calls: list[dict[str, Any]], results: _Turns, *, new_ids: Iterator[str]) -> None:
    """Give each result without an id that of a call without a result: one of the same name, or else the first."""
    answered = {turn["tool_call_id"] for turn in results if "tool_call_id" in turn}
    pending = [call for call in calls if call["id"] not in answered]
    for turn in results:
        if "tool_call_id" in turn:
            continue
        call = next((call for call in pending if call["function"]["name"] == turn.get("name")), None)
        call = call or (pending[0] if pending else None)
        if call is None:
            turn["tool_call_id"] = next(new_ids)
        else:
            pending.remove(call)
            turn["tool_call_id"] = call["id"]


def _unused_ids(turns: _Turns) -> Iterator[str]:
    """Yield call00001, call00002, ... without those that are already in the conversation."""
    used = {turn.get("tool_call_id") for turn in turns}
    used |= {call.get("id") for turn in turns for call in turn.get("tool_calls") or ()}
    number = 0
    while True:
        number += 1
        if (made := f"call{number:05d}") not in used:
            yield made
