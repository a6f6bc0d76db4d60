"""Find the tokens that every drawn sequence starts with.

A base model starts a document after its beginning token. A model that was tuned on conversations has learnt nothing
there: it starts with what its chat template prints before the first user's text, for example `<|im_start|>user`,
preceded by a system turn in some families. The template knows it, so no list of families is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from versatune_ds.config import USER_HEADER
from versatune_ds.data.encoding.tokenizer import render_conversation

_TEXT = "What the user writes."


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceStart:
    """The tokens that every sequence starts with."""

    token_ids: list[int]
    num_hidden: int
    """Of these, the first ones that are no part of the sequence's text."""


def sequence_start(tokenizer: Any, *, prefix: str, template: str) -> SequenceStart:
    """Return the start that `detect.sampling.prefix` describes.

    `user_header` starts as training rows do: with the template's text, without a further beginning token. Other texts
    follow the beginning token, else the end token, and belong to the sequence.

    Args:
        tokenizer: The base model's.
        prefix: `detect.sampling.prefix`.
        template: The chat template, Jinja text.

    Raises:
        ValueError: If the tokenizer has neither token, or the template prints nothing before the user's text.
    """
    if prefix == USER_HEADER:
        token_ids = tokenizer.encode(user_header(tokenizer, template=template), add_special_tokens=False)
        return SequenceStart(token_ids=token_ids, num_hidden=len(token_ids))
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if first is None:
        raise ValueError("model.tokenizer: neither a beginning nor an end token, so nothing to start a sequence with")
    return SequenceStart(token_ids=[first, *tokenizer.encode(prefix, add_special_tokens=False)], num_hidden=1)


def user_header(tokenizer: Any, *, template: str) -> str:
    """Return what a chat template prints before the text of a first user turn.

    Raises:
        ValueError: If it prints nothing there, or not the text.
    """
    text, _ = render_conversation([{"role": "user", "content": _TEXT}], tokenizer=tokenizer, template=template)
    header = text.partition(_TEXT)[0]
    if not header or _TEXT not in text:
        raise ValueError(
            "detect.sampling.prefix: the chat template prints nothing before a user's text; write the text to start "
            "with, or leave it empty to start from the beginning token"
        )
    return header
