"""Read the parts of an example that are in columns of their own: earlier turns, system text, reasoning, tools."""

from __future__ import annotations

from typing import Any

from versatune_ds.data.encoding.columns import Columns
from versatune_ds.data.encoding.reasoning import REASONING_KEYS, is_in_content, reasoning_text
from versatune_ds.data.encoding.turns import (
    BadRowError,
    Turns,
    as_in_any_format,
    parsed_json,
    parsed_messages,
    text_of,
    turns_of,
)

_SYSTEM_KEYS = ("system", "system_prompt", "system_message", "system_instruction", "sys")


def earlier_turns(record: Columns) -> Turns:
    """Return the earlier turns of Alpaca's `history`: a list of [question, answer]."""
    turns: list[dict[str, Any]] = []
    history = record.take("history") or []
    for pair in history if isinstance(history, list) else [history]:
        if not (isinstance(pair, list) and len(pair) == 2):
            raise BadRowError("history: expected a list of [question, answer] pairs")
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return turns_of(parsed_messages(turns)) if turns else ()


def with_system(turns: Turns, *, record: Columns) -> Turns:
    """Return the turns with the record's system text first, unless they already begin with a system turn."""
    key = record.first_filled(_SYSTEM_KEYS)
    if key is None or not isinstance(record.get(key), (str, list)) or (turns and turns[0]["role"] == "system"):
        return turns
    return ({"role": "system", "content": text_of(record.take(key), what=key)}, *turns)


def with_reasoning(turns: Turns, *, record: Columns) -> Turns:
    """Return the turns with the record's reasoning in the assistant's turn.

    The column stays unused if several turns could be meant, or the turn already has reasoning.
    """
    places = [i for i, turn in enumerate(turns) if turn["role"] == "assistant" and turn.get("loss", True)]
    key = next((key for key in REASONING_KEYS if reasoning_text(record.get(key))), None)
    if key is None or not places or "reasoning_content" in turns[places[-1]]:
        return turns
    if len(places) > 1 and "history" not in record:
        return turns
    answer, reasoning = turns[places[-1]], reasoning_text(record.get(key))
    if is_in_content(reasoning, content=answer["content"]):
        return turns
    record.take(key)
    return (*turns[: places[-1]], {**answer, "reasoning_content": reasoning}, *turns[places[-1] + 1 :])


def tools_of(record: Columns) -> tuple[dict[str, Any], ...]:
    """Return tool descriptions, given as a list or as JSON text, in the form that chat templates expect."""
    # Read the column.
    is_legacy = "tools" not in record and _are_tools(record.get("functions"))  # OpenAI's name before `tools`
    tools = record.take("functions" if is_legacy else "tools")
    if tools is None or (isinstance(tools, str) and not tools.strip()):
        return ()
    tools = parsed_json(tools, what="tools") if isinstance(tools, str) else as_in_any_format(tools)
    # Bring it to a list of descriptions.
    tools = [tools] if isinstance(tools, dict) else tools
    if isinstance(tools, list):
        tools = [parsed_json(tool, what="tools") if isinstance(tool, str) else tool for tool in tools]
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise BadRowError("tools: expected a list of tool descriptions")
    return tuple(tool if "function" in tool else {"type": "function", "function": tool} for tool in tools)


def _are_tools(value: Any) -> bool:
    is_list = isinstance(value, list) and bool(value)
    return is_list and all(isinstance(tool, dict) and isinstance(tool.get("name"), str) for tool in value)
