"""Find out what a chat template can print, and write the rest as text.

Templates silently drop what they do not support. So each ability is probed once, by rendering a marker and looking for
it. Tools, tool calls and reasoning that the template would drop are written as text.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from versatune_ds.data.encoding.control_tokens import ControlTokens, find_control_tokens
from versatune_ds.data.encoding.forms import Example
from versatune_ds.data.encoding.tokenizer import has_generation_marks
from versatune_ds.data.encoding.tool_calls import (
    MARKER,
    NINE,
    USER,
    Probe,
    ToolCallFormat,
    call_turn,
    find_tool_call_format,
    results_in_call_order,
    with_call_ids,
)

_ANSWER = {"role": "assistant", "content": "a"}
_TWO_QUESTIONS = (USER, {"role": "assistant", "content": "answer5081"}, USER, _ANSWER)
_SYSTEM = {"role": "system", "content": MARKER}
_TOOL = {"type": "function", "function": {"name": MARKER, "description": "", "parameters": {"type": "object"}}}


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateAbilities:
    """What a template can print."""

    has_system: bool
    has_tools: bool
    moves_tools: bool
    """Tools are printed elsewhere if a second question follows: then the loss spans before it could not be found."""
    has_tool_calls: bool
    has_tool_turns: bool
    has_reasoning: bool
    closes_turns: bool
    """Something follows the assistant's text, so that a model can learn to stop."""
    call_format: ToolCallFormat = field(default_factory=ToolCallFormat)
    control: ControlTokens = field(default_factory=ControlTokens)
    reason_without_calls: str = ""
    """The template's error message for a tool call, if it refuses tool calls."""


def probe_template(template: str, *, tokenizer: Any) -> TemplateAbilities:
    """Return what a template can print, found by rendering markers."""
    # Tool calls.
    probe = Probe(template, tokenizer)
    found_format, has_marks = find_tool_call_format(probe), has_generation_marks(template)
    reason = probe.refusal if found_format is None else ""
    call_format = found_format or ToolCallFormat()
    # Conversations in which to look for markers and control tokens.
    result = {"role": "tool", "content": MARKER, "name": "a", "tool_call_id": NINE}
    frames = probe.text(USER, _ANSWER, USER, _ANSWER)
    with_system = probe.text({"role": "system", "content": "a"}, USER, _ANSWER)
    exchange = (USER, call_turn(call_format, call_id=NINE, name="a"), {**result, "content": "a"}, _ANSWER)
    return TemplateAbilities(
        has_system=probe.prints(_SYSTEM, USER, _ANSWER)
        and (has_marks or not _is_after_answer(probe.text(_SYSTEM, *_TWO_QUESTIONS))),
        has_tools=probe.prints(USER, _ANSWER, tools=[_TOOL]),
        moves_tools=not has_marks and _is_after_answer(probe.text(*_TWO_QUESTIONS, tools=[_TOOL])),
        has_tool_calls=found_format is not None,
        has_tool_turns=probe.prints(USER, call_turn(call_format, call_id=NINE), result),
        has_reasoning=probe.prints(USER, {**_ANSWER, "reasoning_content": MARKER}),
        closes_turns=bool(probe.text(USER, {**_ANSWER, "content": MARKER}).rpartition(MARKER)[2].strip()),
        call_format=call_format,
        control=find_control_tokens(
            tokenizer,
            frames=(frames, with_system),
            tool_frames=(probe.text(*exchange, tools=[_TOOL]),),
            call_frames=(probe.text(*exchange[:2]),),
        ),
        reason_without_calls=reason,
    )


def _is_after_answer(text: str) -> bool:
    """Return whether the marker is missing before the first answer of a conversation; False for an empty text.

    Mistral's templates print system text and tools with the last user turn. So the beginning of a conversation is
    rendered differently than in the full conversation, and the loss spans could not be found.
    """
    return bool(text) and MARKER not in text.partition("answer5081")[0]


def fit_to_template(example: Example, *, abilities: TemplateAbilities) -> tuple[Example, list[str]]:
    """Return a conversation in which everything that the template cannot print is written as text.

    Tools are added to the system turn, calls and reasoning to the assistant's content; tool results become user turns;
    the system turn is added to the first user turn.

    Returns:
        The conversation, and keys of `data_warnings.DATA_WARNINGS` for what was changed or is written as text.
    """
    turns, tools, warnings = list(example.turns), example.tools, []
    prints_calls = _prints_calls(example, abilities=abilities)
    # Tools.
    if tools and not _prints_tools(example, abilities=abilities):
        turns, tools = _with_tools_as_system(turns, tools=list(tools)), ()
        warnings.append("tools_as_text")
    # Calls and their results: their ids, or the order of results if the template prints no ids.
    if prints_calls and abilities.call_format.uses_ids:
        matched, change = with_call_ids(turns, is_accepted=abilities.call_format.is_id_accepted), "ids_changed"
    else:
        matched, change = results_in_call_order(turns), "results_reordered"
    changes = [change] if matched != turns else []
    if not prints_calls and any("tool_calls" in turn for turn in turns):
        warnings.append("calls_as_text")
    if not (abilities.has_tool_turns and prints_calls) and any(turn["role"] == "tool" for turn in turns):
        warnings.append("results_as_text")
    # Reasoning and system text.
    if not abilities.has_reasoning and any("reasoning_content" in turn for turn in turns):
        warnings.append("reasoning_as_text")
    if not abilities.has_system and example.turns and example.turns[0]["role"] == "system":
        warnings.append("system_in_question")
    turns = [_fit_turn(turn, abilities=abilities, prints_calls=prints_calls) for turn in matched]
    if not abilities.has_system and turns and turns[0]["role"] == "system":
        turns = _with_system_in_first_question(turns)
    return Example(turns=tuple(turns), tools=tools), [*warnings, *changes]


def _prints_tools(example: Example, *, abilities: TemplateAbilities) -> bool:
    """Return whether the template prints the tools of an example, always in the same place."""
    keeps_results = abilities.has_tool_turns and _prints_calls(example, abilities=abilities)
    roles = ("user",) if keeps_results else ("user", "tool")  # results that are written as text become user turns
    num_questions = sum(turn["role"] in roles for turn in example.turns)
    return abilities.has_tools and not (abilities.moves_tools and num_questions > 1)


def _prints_calls(example: Example, *, abilities: TemplateAbilities) -> bool:
    """Return whether the template prints the calls of an example: some templates drop either calls or content."""
    if not abilities.has_tool_calls or abilities.call_format.takes_content:
        return abilities.has_tool_calls
    calling = [turn for turn in example.turns if turn.get("tool_calls")]
    has_content = any(turn["content"].strip() for turn in calling)
    has_reasoning = any("reasoning_content" in turn for turn in calling)
    return not has_content and (abilities.has_reasoning or not has_reasoning)


def _fit_turn(turn: dict[str, Any], *, abilities: TemplateAbilities, prints_calls: bool) -> dict[str, Any]:
    """Return a turn of which the template prints role, reasoning and calls."""
    if turn["role"] == "tool" and not (abilities.has_tool_turns and prints_calls):
        return {"role": "user", "content": f"<tool_response>\n{turn['content']}\n</tool_response>"}
    fitted = dict(turn)
    if "reasoning_content" in turn and not abilities.has_reasoning:
        fitted["content"] = f"<think>\n{fitted.pop('reasoning_content')}\n</think>\n\n{fitted['content']}"
    if "tool_calls" in turn and not prints_calls:
        calls = [f"<tool_call>\n{_json_text(call['function'])}\n</tool_call>" for call in fitted.pop("tool_calls")]
        fitted["content"] = "\n".join([fitted["content"], *calls] if fitted["content"] else calls)
    elif turn.get("tool_calls"):
        fitted |= _in_call_format(fitted, call_format=abilities.call_format)
    return fitted


def _in_call_format(turn: dict[str, Any], *, call_format: ToolCallFormat) -> dict[str, Any]:
    """Return the content and calls of a turn that must change for the template to accept them."""
    changed: dict[str, Any] = {}
    if call_format.takes_none and not turn["content"].strip():
        changed["content"] = None
    if call_format.takes_text:
        changed["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": _json_text(call["function"]["arguments"])}}
            for call in turn["tool_calls"]
        ]
    return changed


def _with_tools_as_system(turns: list[dict[str, Any]], *, tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the turns with the tools listed in the system turn, which is added if there is none."""
    listing = f"Tools:\n{_json_text(tools)}"
    if turns and turns[0]["role"] == "system":
        return [{**turns[0], "content": f"{turns[0]['content']}\n\n{listing}"}, *turns[1:]]
    return [{"role": "system", "content": listing}, *turns]


def _with_system_in_first_question(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the turns with the system text before that of the first user turn, or as a user turn of its own."""
    system, *rest = turns
    if rest and rest[0]["role"] == "user":
        return [{**rest[0], "content": f"{system['content']}\n\n{rest[0]['content']}"}, *rest[1:]]
    return [{**system, "role": "user"}, *rest]


def _json_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
