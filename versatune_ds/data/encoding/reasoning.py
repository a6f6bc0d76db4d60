"""Find an assistant's reasoning under the names that data sets give it.

It becomes the turn's `reasoning_content`, from which chat templates print a thinking block.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NAMES = "reasoning_content reasoning thinking thinking_content thoughts thought think chain_of_thought cot complex_cot"
REASONING_KEYS = tuple(_NAMES.split())
_KEYS = frozenset(REASONING_KEYS)
MIN_QUOTED_CHARACTERS = 24
"""A shorter text inside another may be there by chance."""
_THINKING_PARTS = ("thinking", "reasoning", "think")
# `reasoning: "on"` and `thinking: "high"` ask for reasoning but are not reasoning.
_SWITCH_WORDS = "on off yes no true false none null n/a nan auto enabled disabled minimal low medium high max"
_SWITCHES = frozenset(_SWITCH_WORDS.split())


def reasoning_text(value: Any) -> str:
    """Return reasoning given as text or as a list of texts; empty for a switch (`on`, true), a number or a mapping."""
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        value = "\n\n".join(value)
    if not isinstance(value, str) or value.strip().lower() in _SWITCHES:
        return ""
    return value if value.strip() else ""


def reasoning_beside(message: Mapping[str, Any]) -> str:
    """Return the reasoning under a key of a message; of several, the first that is not empty."""
    if _KEYS.isdisjoint(message):
        return ""
    return next((text for key in REASONING_KEYS if (text := reasoning_text(message.get(key)))), "")


def is_in_content(reasoning: str, *, content: str) -> bool:
    """Return whether an answer already contains its reasoning: some data sets write it in both places."""
    text = reasoning.strip()
    return "<think>" in content or (len(text) >= MIN_QUOTED_CHARACTERS and text in content)


def split_thinking(content: Any) -> tuple[Any, str]:
    """Return an assistant's content without its leading thinking parts, and their text.

    Typed parts are Anthropic's `{"type": "thinking", "thinking": text}` and similar. A thinking part after the first
    text stays, and is later refused as content: templates print reasoning before the text.
    """
    if not isinstance(content, list):
        return content, ""
    num_leading = next((i for i, part in enumerate(content) if not _is_thinking(part)), len(content))
    thoughts = [_part_reasoning(part) for part in content[:num_leading]]
    return content[num_leading:], "\n\n".join(filter(None, thoughts))


def _is_thinking(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") in _THINKING_PARTS and bool(_part_reasoning(part))


def _part_reasoning(part: Mapping[str, Any]) -> str:
    """Return the text of a typed part of reasoning, which is text or a list of text parts."""
    for key in (*_THINKING_PARTS, "text", "content", "summary"):
        value = part.get(key)
        if isinstance(value, list):
            value = [inner.get("text") if isinstance(inner, dict) else inner for inner in value]
        if text := reasoning_text(value):
            return text
    return ""
