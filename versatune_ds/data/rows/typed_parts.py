"""Write messages whose content holds tool calls and results as typed parts (Anthropic's form) in OpenAI's form."""

from __future__ import annotations

from typing import Any


def with_calls_beside_content(message: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a message as one whose calls stand beside its content, after one message for each tool result in it.

    A message without such parts is returned as it is, and so is one that says something after a call or before a
    result: no form has a place for that.
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
    said, calls = content[num_results:first_call], content[first_call:]
    results = [
        {"role": "tool", "tool_call_id": part.get("tool_use_id"), "content": part.get("content")}
        for part in content[:num_results]
    ]
    if not (said or calls):
        return results
    functions = [{"name": part.get("name"), "arguments": part.get("input") or {}} for part in calls]
    beside = [{"id": part.get("id"), "function": made} for part, made in zip(calls, functions, strict=True)]
    return [*results, {**message, "content": said, **({"tool_calls": beside} if beside else {})}]
