"""Find out what a chat template can print, and write out as text what it cannot.

The one idea: templates drop what they do not know without a word. So each ability is probed once, by rendering a
marker and looking for it; a row's tools, tool calls and reasoning reach the model as text where the template would
lose them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from versatune_ds.data.rows import Row
from versatune_ds.data.tokenize import render_conversation

_MARKER = "marker7319"
_USER = {"role": "user", "content": "a"}
_CALL = {"type": "function", "function": {"name": _MARKER, "arguments": {}}}
_CALL_TURN = {"role": "assistant", "content": "", "tool_calls": [_CALL]}


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateAbilities:
    """Say what a template prints."""

    has_system: bool
    has_tools: bool
    has_tool_calls: bool
    has_tool_turns: bool
    has_reasoning: bool
    closes_turns: bool
    """Something follows an assistant's text, so that a model can learn to stop."""


def probe_template(template: str, *, tokenizer: Any) -> TemplateAbilities:
    """Return what a template prints, found by rendering markers."""

    def rendered(*messages: dict[str, Any], tools: list[dict[str, Any]] | None = None) -> str:
        try:
            return render_conversation(list(messages), tokenizer=tokenizer, template=template, tools=tools)[0]
        except Exception:  # whatever a template raises at a shape it does not know, it cannot print that shape
            return ""

    def prints(*messages: dict[str, Any], tools: list[dict[str, Any]] | None = None) -> bool:
        return _MARKER in rendered(*messages, tools=tools)

    tool = {"type": "function", "function": {"name": _MARKER, "description": "", "parameters": {"type": "object"}}}
    return TemplateAbilities(
        has_system=prints({"role": "system", "content": _MARKER}, _USER),
        has_tools=prints(_USER, tools=[tool]),
        has_tool_calls=prints(_USER, _CALL_TURN),
        has_tool_turns=prints(_USER, _CALL_TURN, {"role": "tool", "content": _MARKER, "name": "a"}),
        has_reasoning=prints(_USER, {"role": "assistant", "content": "a", "reasoning_content": _MARKER}),
        closes_turns=bool(rendered(_USER, {"role": "assistant", "content": _MARKER}).rpartition(_MARKER)[2].strip()),
    )


def fit_to_template(row: Row, *, abilities: TemplateAbilities) -> Row:
    """Return a conversation in which everything the template cannot print stands as text.

    Tools join the system turn, calls and reasoning the assistant's content, tool results become user turns, and the
    system turn joins the first user turn.
    """
    turns, tools = list(row.turns), row.tools
    if tools and not abilities.has_tools:
        turns, tools = _with_tools_as_system(turns, tools=list(tools)), ()
    turns = [_fit_turn(turn, abilities=abilities) for turn in turns]
    if not abilities.has_system and turns and turns[0]["role"] == "system":
        turns = _with_system_in_first_question(turns)
    return Row(turns=tuple(turns), tools=tools)


def _fit_turn(turn: dict[str, Any], *, abilities: TemplateAbilities) -> dict[str, Any]:
    """Return a turn whose reasoning, calls and role the template prints."""
    if turn["role"] == "tool" and not (abilities.has_tool_turns and abilities.has_tool_calls):
        return {"role": "user", "content": f"<tool_response>\n{turn['content']}\n</tool_response>"}
    fitted = dict(turn)
    if "reasoning_content" in turn and not abilities.has_reasoning:
        fitted["content"] = f"<think>\n{fitted.pop('reasoning_content')}\n</think>\n\n{fitted['content']}"
    if "tool_calls" in turn and not abilities.has_tool_calls:
        calls = [f"<tool_call>\n{_json_text(call['function'])}\n</tool_call>" for call in fitted.pop("tool_calls")]
        fitted["content"] = "\n".join([fitted["content"], *calls] if fitted["content"] else calls)
    return fitted


def _with_tools_as_system(turns: list[dict[str, Any]], *, tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the turns with the tools listed in the system turn, which is made when there is none."""
    listing = f"Tools:\n{_json_text(tools)}"
    if turns and turns[0]["role"] == "system":
        return [{**turns[0], "content": f"{turns[0]['content']}\n\n{listing}"}, *turns[1:]]
    return [{"role": "system", "content": listing}, *turns]


def _with_system_in_first_question(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the turns with the system text put before the first user turn's, or as a user turn when there is none."""
    system, *rest = turns
    if rest and rest[0]["role"] == "user":
        return [{**rest[0], "content": f"{system['content']}\n\n{rest[0]['content']}"}, *rest[1:]]
    return [{**system, "role": "user"}, *rest]


def _json_text(value: Any) -> str:
    """Return a value as JSON text with every script readable."""
    return json.dumps(value, ensure_ascii=False)
