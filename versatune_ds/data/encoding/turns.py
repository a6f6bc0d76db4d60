"""Normalise the messages of a conversation, whatever tool wrote them.

A message that is not understood is refused, with its turn and the reason, and never skipped: a conversation is trained
on complete or not at all.
"""

from __future__ import annotations

import json
import math
from typing import Any

from versatune_ds.data.encoding.reasoning import is_in_content, reasoning_beside, split_thinking
from versatune_ds.data.sources.records import parse_json, why_unreadable

Turns = tuple[dict[str, Any], ...]

_NAMES_OF_ROLE = {
    "system": ("system", "developer"),
    "user": ("user", "human", "prompter"),
    "assistant": ("assistant", "gpt", "chatgpt", "bot", "model", "function_call", "tool_call"),
    "tool": ("tool", "function", "observation", "tool_response", "ipython"),
}
_ROLE_OF_NAME = {name: role for role, names in _NAMES_OF_ROLE.items() for name in names}
CONTENT_KEYS = ("content", "value", "text")
_NESTED_KEYS = (*CONTENT_KEYS, "tool_calls", "function_call")
_MAX_EXACT_INTEGER = 2**53
_CALL_NAMES = ("function_call", "tool_call")
_WEIGHT_KEYS = ("weight", "loss_weight", "train")


class BadRowError(ValueError):
    """A record cannot be trained on; the message says why in half a sentence."""


def turns_of(messages: list[dict[str, Any]]) -> Turns:
    """Return messages as turns with `role`, `content` and, where they have them, `tool_calls`, `reasoning_content`.

    Ids of calls, `tool_call_id` and `name` are kept. A turn whose own weight is 0 gets `loss: False`. Empty system
    turns are dropped.

    Args:
        messages: From `parsed_messages`, with `role`/`from` and `content`/`value`/`text`.

    Raises:
        BadRowError: If a turn has an unknown role, is empty, or contains anything but text.
    """
    turns = []
    for number, message in enumerate(messages, start=1):
        for part in _with_calls_beside_content(message):
            turn = _normalised_turn(part, what=f"turn {number}")
            if turn["role"] != "system" or turn["content"].strip():
                turns.append(turn)
    return tuple(turns)


def parsed_messages(messages: Any) -> list[dict[str, Any]]:
    """Return messages as a list of mappings; the list or each message may be JSON text.

    Raises:
        BadRowError: If they are anything else, or there are none.
    """
    if reason := why_unreadable(messages):
        raise BadRowError(reason)
    messages = parsed_json(messages, what="messages") if isinstance(messages, str) else messages
    if not isinstance(messages, list) or not messages:
        raise BadRowError("messages: expected a list with at least one message")
    parsed = []
    for number, message in enumerate(messages, start=1):
        if isinstance(message, str):  # `datasets` stores messages with different keys as text
            message = parsed_json(message, what=f"turn {number}")
        if not isinstance(message, dict):
            raise BadRowError(f"turn {number}: expected a message, found {type(message).__name__}")
        parsed.append({**message, **{key: as_in_any_format(message[key]) for key in _NESTED_KEYS if key in message}})
    return parsed


def as_in_any_format(value: Any) -> Any:
    """Return tools or tool calls in the same way for every file format: no null keys, whole numbers without `.0`.

    Parquet and Arrow have one schema for all rows: a call `{"city": "Oslo"}` beside a call `{"day": 3}` is read as
    `{"city": "Oslo", "day": null}`, and 3 beside 2.5 as 3.0. So a null in a mapping means that the key is absent,
    whatever the format. Text is not changed: arguments given as JSON text keep their nulls and numbers.

    Raises:
        BadRowError: If a part cannot be read.
    """
    if reason := why_unreadable(value):
        raise BadRowError(reason)
    if isinstance(value, dict):
        return {key: as_in_any_format(entry) for key, entry in value.items() if entry is not None}
    if isinstance(value, list):
        return [as_in_any_format(entry) for entry in value]
    return _whole(value) if isinstance(value, float) else value


def _whole(number: float) -> float | int:
    """Return a whole number as an int: in a column with one missing cell, a table stores every 3 as 3.0."""
    return int(number) if number.is_integer() and abs(number) <= _MAX_EXACT_INTEGER else number


def text_of(value: Any, *, what: str) -> str:
    """Return a value as text, in the same way for every file format.

    Text is unchanged (`nan` and `None` too, which may be an answer), null is ''. Whole numbers are written without
    `.0`, true and false as True and False; the non-null entries of a list of texts are joined by blank lines. The
    readers have already turned dates into ISO text, decimals into digits, binary into UTF-8, and NaN and infinity into
    null.

    Raises:
        BadRowError: If the value is anything else.
    """
    if reason := why_unreadable(value):
        raise BadRowError(reason)
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float)):
        return str(_whole(value) if isinstance(value, float) else value)
    if isinstance(value, list) and all(isinstance(part, str) for part in value if part is not None):
        return "\n\n".join(part for part in value if part is not None)
    raise BadRowError(f"{what}: expected text, found {type(value).__name__}")


def parsed_json(text: str, *, what: str) -> Any:
    """Return the value of a JSON text; raise BadRowError, with `what` it should be, if it is not JSON."""
    try:
        return parse_json(text)
    except (ValueError, RecursionError):
        raise BadRowError(f"{what}: expected JSON, found {text[:40]!r}") from None


def is_unicode(text: str) -> bool:
    """Return whether a text is valid Unicode: JSON can contain half of a surrogate pair, which UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _normalised_turn(message: dict[str, Any], *, what: str) -> dict[str, Any]:
    # Role.
    name = str(message.get("role") or message.get("from") or "").lower()
    role = _ROLE_OF_NAME.get(name)
    if role is None:
        raise BadRowError(f"{what}: unknown role {name!r}; known: {', '.join(_ROLE_OF_NAME)}")
    # Content, calls and leading reasoning.
    content = next((message[key] for key in CONTENT_KEYS if message.get(key) is not None), None)
    calls = message.get("tool_calls") or ([message["function_call"]] if message.get("function_call") else [])
    if name in _CALL_NAMES:
        content, calls = "", content
    leading_reasoning = ""
    if role == "assistant":
        content, leading_reasoning = split_thinking(content)
    turn: dict[str, Any] = {"role": role, "content": _content_text(content, what=f"{what} ({role})")}
    if calls:
        turn["tool_calls"] = _tool_calls(calls, what=what)
    turn |= _names_and_ids(message)
    # Reasoning, unless the content repeats it.
    reasoning = (reasoning_beside(message) or leading_reasoning) if role == "assistant" else ""
    if reasoning and not is_in_content(reasoning, content=turn["content"]):
        turn["reasoning_content"] = reasoning
    # Emptiness and loss.
    if not turn["content"].strip() and not calls and role in ("user", "assistant"):
        raise BadRowError(f"{what} ({role}) is empty")
    if not _bears_loss(message, what=what):
        turn["loss"] = False
    return turn


def _with_calls_beside_content(message: dict[str, Any]) -> list[dict[str, Any]]:
    """Split Anthropic's typed parts: one message for each tool result, then the message with its calls as `tool_calls`.

    A message without such parts is returned unchanged, and so is one with text after a call or before a result, which
    no template can print.
    """
    content = message.get("content")
    if not isinstance(content, list):
        return [message]
    kinds = [part.get("type") if isinstance(part, dict) else "text" for part in content]
    num_results, num_calls = kinds.count("tool_result"), kinds.count("tool_use")
    first_call = len(kinds) - num_calls
    is_ordered = "tool_result" not in kinds[num_results:] and "tool_use" not in kinds[:first_call]
    if not (num_results or num_calls) or not is_ordered:
        return [message]
    text_parts, calls = content[num_results:first_call], content[first_call:]
    results = [
        {"role": "tool", "tool_call_id": part.get("tool_use_id"), "content": part.get("content")}
        for part in content[:num_results]
    ]
    if not (text_parts or calls):
        return results
    rest = {**message, "content": text_parts}
    if calls:
        rest["tool_calls"] = [
            {"id": part.get("id"), "function": {"name": part.get("name"), "arguments": part.get("input") or {}}}
            for part in calls
        ]
    return [*results, rest]


def _names_and_ids(message: dict[str, Any]) -> dict[str, str]:
    """Return a message's `name` and `tool_call_id`, if it has them; an id may be a number."""
    found = {key: message.get(key) for key in ("name", "tool_call_id")}
    return {key: str(value) for key, value in found.items() if isinstance(value, (str, int)) and str(value).strip()}


def _content_text(content: Any, *, what: str) -> str:
    """Return content given as text or as a list of typed parts; raise BadRowError if a part is not text."""
    if not isinstance(content, list):
        return text_of(content, what=what)
    return "".join(part if isinstance(part, str) else _part_text(part, what=what) for part in content)


def _part_text(part: Any, *, what: str) -> str:
    kind = part.get("type", "text") if isinstance(part, dict) else type(part).__name__
    if kind not in ("text", "input_text", "output_text"):
        raise BadRowError(f"{what} has {kind} content; only text can be trained on")
    return text_of(next((part[key] for key in ("text", "value", "content") if key in part), None), what=what)


def _tool_calls(calls: Any, *, what: str) -> list[dict[str, Any]]:
    """Return tool calls as `{type, function: {name, arguments}}`, with arguments as a mapping."""
    calls = parsed_json(calls, what=f"{what} (tool call)") if isinstance(calls, str) else calls
    calls = calls if isinstance(calls, list) else [calls]
    return [_tool_call(call, what=f"{what} (tool call)") for call in calls]


def _tool_call(call: Any, *, what: str) -> dict[str, Any]:
    """Return one tool call in the form that chat templates expect."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadRowError(f"{what}: expected a name and arguments")
    arguments = function.get("arguments", function.get("parameters", {}))
    arguments = _parsed_arguments(arguments, what=f"{what} arguments") if isinstance(arguments, str) else arguments
    made = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    call_id = call.get("id", call.get("call_id"))
    is_id = isinstance(call_id, (str, int)) and str(call_id).strip()
    return {"id": str(call_id), **made} if is_id else made


def _parsed_arguments(text: str, *, what: str) -> Any:
    """Return arguments that are JSON text; a key that is NaN or infinite is absent, as in any other format.

    A null that somebody wrote stays: JSON text is stored as it is, so no format added it.
    """
    nothing = object()

    def without_nothing(value: Any) -> Any:
        """Return a value without the keys that are no numbers; such an element of a list becomes None."""
        if isinstance(value, dict):
            return {key: without_nothing(entry) for key, entry in value.items() if entry is not nothing}
        if isinstance(value, list):
            return [None if entry is nothing else without_nothing(entry) for entry in value]
        return value

    def finite(number: str) -> Any:
        return float(number) if math.isfinite(float(number)) else nothing

    try:
        value = json.loads(text, parse_constant=lambda _: nothing, parse_float=finite)
    except (ValueError, RecursionError):
        return parsed_json(text, what=what)
    return without_nothing({} if value is nothing else value)


def _bears_loss(message: dict[str, Any], *, what: str) -> bool:
    """Return whether a message bears loss by its own weight, 0 or 1; it does by default."""
    weight = next((message[key] for key in _WEIGHT_KEYS if message.get(key) is not None), 1)
    if weight not in (0, 1):  # a fraction would be lost silently
        raise BadRowError(f"{what}: weight {weight!r}; expected 0 or 1")
    return bool(weight)
