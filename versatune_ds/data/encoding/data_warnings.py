"""What may be odd about rows that are trained on, in words: counted for each domain, by `prepare` and `check` alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from versatune_ds.data.encoding.template_abilities import TemplateAbilities

MAX_CUT_SHARE = 0.05
"""Share of a domain's tokens above which cutting is a warning, and of its rows above which losing them is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remark:
    """One oddity of rows."""

    found: str
    todo: str = ""
    is_warning: bool = True


_PER_TURN = (
    "make a row of each assistant turn with the turns before it, or give data.chat_template=FILE with one that prints "
    "the reasoning of every turn"
)
_OWN_TEMPLATE = "give data.chat_template=FILE with a template that prints them"
DATA_WARNINGS = {
    "reasoning_left_out": Remark(
        found="the chat template leaves the reasoning of earlier assistant turns out, so they are trained without it",
        todo=_PER_TURN,
    ),
    "reasoning_without_loss": Remark(
        found="the chat template prints reasoning where no loss falls, so it is read but not learned",
        todo="give data.chat_template=FILE with {% generation %} marks around it",
    ),
    "arguments_left_out": Remark(
        found="the chat template leaves arguments of tool calls out", todo="give data.chat_template=FILE with another"
    ),
    "text_left_out": Remark(found="the chat template leaves out what a user turn says before </think>"),
    "name_left_out": Remark(found="the chat template does not print the names of the speakers", is_warning=False),
    "tools_as_text": Remark(
        found="the chat template prints no tool descriptions, or not before every turn, so they join the system text",
        todo=_OWN_TEMPLATE,
    ),
    "calls_as_text": Remark(
        found="the chat template prints no tool calls in their form, or not beside text, so they are written as "
        "<tool_call> text",
        todo=_OWN_TEMPLATE,
    ),
    "results_as_text": Remark(
        found="the chat template prints no tool results in their form, so they become user turns in <tool_response>",
        todo=_OWN_TEMPLATE,
    ),
    "results_reordered": Remark(
        found="tool results are put in the order of their calls, because the text has no ids", is_warning=False
    ),
    "ids_changed": Remark(
        found="ids of tool calls are made up, or shortened to nine characters, because the chat template asks for them",
        is_warning=False,
    ),
    "reasoning_as_text": Remark(
        found="the chat template prints no reasoning_content, so it is written as <think> text", is_warning=False
    ),
    "system_in_question": Remark(
        found="the chat template prints no system turn before whole conversations, so it joins the first user turn",
        is_warning=False,
    ),
    "control_as_text": Remark(
        found="control tokens of the chat template stand in what turns say; they are read as ordinary text there, so "
        "they neither end nor begin a turn",
        todo="take them out if they are left over from another format",
    ),
    "ended_twice": Remark(
        found="answers end with a control token of their own, and the chat template adds one, so turns end twice",
        todo="take it out",
    ),
    "control_in_text": Remark(
        found="plain texts hold control tokens, which are read as such",
        todo="take them out unless they are meant to end or begin something",
    ),
    "marks_in_text": Remark(
        found="what turns say holds text by which the chat template frames turns, and the tokenizer cannot tell them "
        "apart, so it can end or begin a turn",
        todo="take it out, or use a tokenizer that has them as tokens",
    ),
    "special_in_text": Remark(
        found="what turns say holds special tokens that the chat template does not use; they are read as such",
        is_warning=False,
    ),
}


def describe_warnings(
    counts: Mapping[str, int], *, num_rows: int, what: str, abilities: TemplateAbilities
) -> Iterator[tuple[str, Remark]]:
    """Yield a sentence for each kind of oddity that rows have, without what to do, and the kind.

    Args:
        counts: Rows of each kind, by the keys of `DATA_WARNINGS`.
        num_rows: Rows there are.
        what: What the rows are, as in `law: 3 of 10 sampled rows`.
        abilities: Names the template's control tokens and what it refuses.
    """
    examples = {"control_as_text": abilities.control.all, "control_in_text": abilities.control.all}
    examples |= {"ended_twice": abilities.control.of_turns, "marks_in_text": abilities.control.marks}
    for kind, remark in DATA_WARNINGS.items():
        if not counts.get(kind):
            continue
        shown = ", ".join(examples.get(kind, ())[:4])
        reason = abilities.reason_without_calls if kind == "calls_as_text" else ""
        details = f" ({shown} ...)" if shown else f" (it says: {reason})" if reason else ""
        yield f"{counts[kind]:,} of {num_rows:,} {what}: {remark.found}{details}", remark


def cut_share(*, num_cut_tokens: int, num_kept_tokens: int) -> float:
    """Return the share of tokens that is cut off."""
    return num_cut_tokens / max(num_cut_tokens + num_kept_tokens, 1)


def describe_cut(share: float, *, row_tokens: int, is_split: bool) -> tuple[str, str]:
    """Return what is wrong when more than MAX_CUT_SHARE of the tokens is cut off, and what to do."""
    todo = f"raise data.row_tokens from {row_tokens}"
    return f"{share:.1%} of the tokens cut off", todo if is_split else f"{todo}, or set data.long_examples=split"
