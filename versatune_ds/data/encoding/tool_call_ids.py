"""Give tool calls and their results the ids that a chat template prints or requires.

An id says which result belongs to which call. In an example without ids the order does: the first result is that of the
first call. If a template refuses an id (Mistral's accept nine characters), the call and its result get the same nine
characters, computed from the id alone, so that the same examples always give the same tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

ID_CHARACTERS = 9
"""Length of an id that every known template accepts."""

_Turns = list[dict[str, Any]]


def with_call_ids(turns: Sequence[dict[str, Any]], *, is_accepted: Callable[[str], bool]) -> _Turns:
    """Return turns in which every call has an id that a template accepts, and every result the id of its call.

    Args:
        turns: Turns as `normalised_turns` returns them.
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
    return hashlib.blake2b(call_id.encode("utf-8", "replace")).hexdigest()[:ID_CHARACTERS]


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
