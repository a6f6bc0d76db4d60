"""Find the form in which a chat template prints tool calls, by rendering some.

Templates differ in what they take: arguments as a mapping or as JSON text, calls beside text or only where the content
is None, ids of any length, of nine characters, or none.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import product
from typing import Any

from versatune_ds.data.encoding.tokenizer import render_conversation

MARKER = "marker7319"
USER = {"role": "user", "content": "a"}
NINE, LONG, SHORT = "a1b2c3d4e", "call_a1b2c3d4e5f6g7h8i9j0k1l2", "a1"
"""Ids of tool calls: the length Mistral's templates demand, OpenAI's form, and a short one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCallFormat:
    """The form in which a template prints tool calls."""

    takes_text: bool = False
    """Arguments are JSON text, not a mapping."""
    takes_none: bool = False
    """A turn with calls has the content None."""
    takes_content: bool = True
    """What a turn says beside its calls is printed too."""
    uses_ids: bool = False
    """Ids are printed or demanded."""
    takes_nine: bool = True
    """Ids of nine characters are taken; the same for longer and for shorter ones."""
    takes_long_ids: bool = True
    takes_short_ids: bool = True

    def is_id_accepted(self, call_id: str) -> bool:
        """Return whether the template takes an id of this length, or none that could be put in its place."""
        if len(call_id) == len(NINE) or not self.takes_nine:
            return True
        return self.takes_long_ids if len(call_id) > len(NINE) else self.takes_short_ids


class Probe:
    """Renders made-up conversations with one template.

    Args:
        template: Jinja text.
        tokenizer: Gives the special tokens a template names.
    """

    def __init__(self, template: str, tokenizer: Any) -> None:
        self._template = template
        self._tokenizer = tokenizer
        self.refusal = ""

    def text(self, *messages: dict[str, Any], tools: list[dict[str, Any]] | None = None) -> str:
        """Return a conversation's text; '' where the template refuses it, and `refusal` says why."""
        try:
            text, _ = render_conversation(
                list(messages), tokenizer=self._tokenizer, template=self._template, tools=tools
            )
        except Exception as error:  # whatever a template raises at a shape it does not know, it cannot print that shape
            self.refusal = " ".join(str(error).split())
            return ""
        return text

    def prints(self, *messages: dict[str, Any], tools: list[dict[str, Any]] | None = None) -> bool:
        """Return whether a conversation's text holds the marker."""
        return MARKER in self.text(*messages, tools=tools)


def find_tool_call_format(probe: Probe) -> ToolCallFormat | None:
    """Return the form in which a template prints tool calls and their results; None when it prints no calls.

    Then `probe.refusal` is what the template says of a call in the usual form; '' when it drops it silently.
    """
    probe.text(USER, call_turn(ToolCallFormat(), call_id=NINE))
    refusal = probe.refusal
    for with_result, takes_none, takes_text in product((True, False), (False, True), (False, True)):
        plain = ToolCallFormat(takes_text=takes_text, takes_none=takes_none)

        def text(call_id: str | None, form: ToolCallFormat = plain, with_result: bool = with_result, said: str = "") -> str:
            turns = [USER, call_turn(form, call_id=call_id) | ({"content": said} if said else {})]
            id_of_result = {} if call_id is None else {"tool_call_id": call_id}
            turns += [{"role": "tool", "content": "result5081", "name": MARKER, **id_of_result}] * with_result
            made = probe.text(*turns)
            call, _, rest = made.partition(MARKER)
            is_complete = "argument5081" in rest and (not with_result or "result5081" in rest) and said in made
            return made if call and is_complete else ""

        taken = next((call_id for call_id in (NINE, LONG, SHORT) if text(call_id)), None)
        if taken is None and not text(None):
            continue
        probe.refusal = ""
        return ToolCallFormat(
            takes_text=takes_text,
            takes_none=takes_none,
            takes_content=bool(text(taken, said="content5081")),
            uses_ids=taken is not None and (taken in text(taken) or not text(None)),
            takes_nine=taken == NINE,
            takes_long_ids=bool(text(LONG)),
            takes_short_ids=bool(text(SHORT)),
        )
    probe.refusal = refusal
    return None


def call_turn(form: ToolCallFormat, *, call_id: str | None, name: str = MARKER) -> dict[str, Any]:
    """Return an assistant turn with one tool call in a form."""
    arguments: Any = {"key": "argument5081"}
    function = {"name": name, "arguments": json.dumps(arguments) if form.takes_text else arguments}
    call = {"type": "function", "function": function} | ({} if call_id is None else {"id": call_id})
    return {"role": "assistant", "content": None if form.takes_none else "", "tool_calls": [call]}
