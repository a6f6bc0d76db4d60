"""Warnings about examples that are trained on: parts that the chat template omits, control tokens, too much cut off.

Examples are counted by warning, for each domain, when data is prepared and in `versatune check`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from versatune_ds.data.encoding.template_abilities import TemplateAbilities

MAX_CUT_SHARE = 0.05
"""Share of a domain's tokens that may be cut off, and of its examples that may be dropped, without a warning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataWarning:
    """What is unusual about some examples, and what to do."""

    found: str
    todo: str = ""
    is_minor: bool = False
    """Whether it is logged as information instead of a warning."""


_PER_TURN = (
    "make a row of each assistant turn with the turns before it, or give data.chat_template=FILE with one that prints "
    "the reasoning of every turn"
)
_OWN_TEMPLATE = "give data.chat_template=FILE with a template that prints them"
DATA_WARNINGS = {
    "reasoning_left_out": DataWarning(
        found="the chat template leaves the reasoning of earlier assistant turns out, so they are trained without it",
        todo=_PER_TURN,
    ),
    "reasoning_without_loss": DataWarning(
        found="the chat template prints reasoning where no loss falls, so it is read but not learned",
        todo="give data.chat_template=FILE with {% generation %} marks around it",
    ),
    "arguments_left_out": DataWarning(
        found="the chat template leaves arguments of tool calls out", todo="give data.chat_template=FILE with another"
    ),
    "text_left_out": DataWarning(found="the chat template leaves out what a user turn says before </think>"),
    "name_left_out": DataWarning(found="the chat template does not print the names of the speakers", is_minor=True),
    "tools_as_text": DataWarning(
        found="the chat template prints no tool descriptions, or not before every turn, so they join the system text",
        todo=_OWN_TEMPLATE,
    ),
    "calls_as_text": DataWarning(
        found="the chat template prints no tool calls in their form, or not beside text, so they are written as "
        "<tool_call> text",
        todo=_OWN_TEMPLATE,
    ),
    "results_as_text": DataWarning(
        found="the chat template prints no tool results in their form, so they become user turns in <tool_response>",
        todo=_OWN_TEMPLATE,
    ),
    "results_reordered": DataWarning(
        found="tool results are put in the order of their calls, because the text has no ids", is_minor=True
    ),
    "ids_changed": DataWarning(
        found="ids of tool calls are made up, or shortened to nine characters, because the chat template asks for them",
        is_minor=True,
    ),
    "reasoning_as_text": DataWarning(
        found="the chat template prints no reasoning_content, so it is written as <think> text", is_minor=True
    ),
    "system_in_question": DataWarning(
        found="the chat template prints no system turn before complete conversations, so it joins the first user turn",
        is_minor=True,
    ),
    "control_as_text": DataWarning(
        found="messages contain control tokens of the chat template; they are tokenised as plain text",
        todo="remove them if they are left over from another format",
    ),
    "ended_twice": DataWarning(
        found="answers end with a control token of their own, and the chat template adds one, so turns end twice",
        todo="remove it",
    ),
    "control_in_text": DataWarning(
        found="plain texts contain control tokens, which are tokenised as such",
        todo="remove them unless they are meant to end or begin something",
    ),
    "marks_in_text": DataWarning(
        found="messages contain turn markers of the chat template that are not special tokens, so they can end or "
        "begin a turn",
        todo="remove it, or use a tokenizer that has them as tokens",
    ),
    "special_in_text": DataWarning(
        found="messages contain special tokens that the chat template does not use; they are tokenised as such",
        is_minor=True,
    ),
}


def with_details(kind: str, found: Sequence[str]) -> list[str]:
    """Return the keys under which an example's warning is counted: its kind, and the kind with each text found."""
    return [kind, *(f"{kind} {text}" for text in found)] if found else []


def describe_warnings(
    counts: Mapping[str, int], *, num_rows: int, what: str, abilities: TemplateAbilities
) -> Iterator[tuple[str, DataWarning]]:
    """Yield a sentence (without what to do) and the warning, for each warning that applies.

    Args:
        counts: Number of examples of each warning, by the keys of `DATA_WARNINGS`, and of each text that `with_details`
            adds to one.
        num_rows: Number of all examples.
        what: What the examples are called, as in `law: 3 of 10 sampled rows`.
        abilities: The template's control tokens, and what it refuses.
    """
    examples = {"control_as_text": abilities.control.all, "control_in_text": abilities.control.all}
    examples |= {"ended_twice": abilities.control.of_turns, "marks_in_text": abilities.control.marks}
    for kind, warning in DATA_WARNINGS.items():
        if not counts.get(kind):
            continue
        found = [key.removeprefix(f"{kind} ") for key in counts if key.startswith(f"{kind} ")]
        shown = ", ".join((found or examples.get(kind, ()))[:4])
        reason = abilities.reason_without_calls if kind == "calls_as_text" else ""
        details = ""
        if shown:
            details = f" ({shown})" if 0 < len(found) <= 4 else f" ({shown} ...)"
        elif reason:
            details = f" (it says: {reason})"
        yield f"{counts[kind]:,} of {num_rows:,} {what}: {warning.found}{details}", warning


def cut_share(*, num_cut_tokens: int, num_kept_tokens: int) -> float:
    """Return the share of tokens that is cut off."""
    return num_cut_tokens / max(num_cut_tokens + num_kept_tokens, 1)


def describe_cut(share: float, *, row_tokens: int, is_split: bool) -> tuple[str, str]:
    """Return a message that too much is cut off, and what to do."""
    todo = f"raise data.row_tokens from {row_tokens}"
    if not is_split:
        todo += ", or set data.long_examples=split"
    return f"{share:.1%} of the tokens cut off", todo
