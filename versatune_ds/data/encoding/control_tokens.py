"""Tokenise control tokens in a turn's text as ordinary text, so that the text of a turn cannot end or begin a turn.

A tokenizer turns the text `<|im_end|>` into the token that ends a turn, wherever it is. So before a template is
rendered, such text in turns is replaced by one private character each. In the rendered text the characters are replaced
by the text again, which a copy of the tokenizer reads as ordinary text:

    content     say <|im_end|> twice            hidden      say X twice
    rendered    <|im_start|>say X twice<|im_end|>
    revealed    <|im_start|>say <|im_end|> twice<|im_end|>      ordinary text: characters 16 .. 25
    tokenised   Ssay <|im_end|> twiceE          S, E: tokens of the copy, with the ids of <|im_start|> and <|im_end|>

Control tokens are those that the template prints around turns, and the tokenizer's begin, end and padding tokens.
Thinking tags are not, because examples contain them on purpose.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tokenizers import AddedToken, Tokenizer

from versatune_ds.data.encoding.templates import TemplateMismatchError
from versatune_ds.data.sources.records import texts_in

_FIRST_PRIVATE = 0xF0000  # private use planes, which ordinary text does not use
_LAST_PRIVATE = 0xFFFFD
_THINKING = re.compile("think|reason", re.IGNORECASE)
_MARK = re.compile(r"<\|[^<>|\s]{1,40}\|>|\[/?[A-Z_]{3,}\]|<(?:start|end)_of_turn>")
_UNLIKELY = -1e6  # score of a Unigram piece that no segmentation uses

Spans = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlTokens:
    """The tokens that a template and a tokenizer put around turns and texts."""

    of_turns: tuple[str, ...] = ()
    """Tokens around turns; in the text of a turn they are always ordinary text."""
    of_calls: tuple[str, ...] = ()
    """Tokens around tool calls: tokens in the assistant's text, which may contain calls, ordinary text elsewhere."""
    marks: tuple[str, ...] = ()
    """Text around turns that is not a token: in a turn it cannot be distinguished from the template's own."""
    others: tuple[str, ...] = ()
    """Further special tokens, which examples may use on purpose."""

    @property
    def all(self) -> tuple[str, ...]:
        """Return the tokens of turns and of calls."""
        return self.of_turns + self.of_calls


@dataclass(frozen=True, slots=True, kw_only=True)
class HiddenExample:
    """A conversation in which private characters stand in for the text of control tokens."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    token_of_stand_in: dict[str, str]
    """Private character -> the text it stands for; empty if nothing is hidden."""


def find_control_tokens(
    tokenizer: Any, *, frames: Sequence[str], tool_frames: Sequence[str], call_frames: Sequence[str]
) -> ControlTokens:
    """Return the control tokens of a template.

    Args:
        tokenizer: A fast tokenizer.
        frames: Rendered conversations with almost no text.
        tool_frames: The same with tools, calls and results. Only their special tokens count: examples may write tags
            like <tool_response> themselves.
        call_frames: The same, up to a call.
    """
    # All added tokens, and those that are never control tokens.
    is_special = {token.content: token.special for token in tokenizer.added_tokens_decoder.values()}
    named = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.sep_token, tokenizer.cls_token)
    kept = {token for token in is_special if _THINKING.search(token)} | {tokenizer.unk_token}
    special = {token for token, special in is_special.items() if special}
    # Which of them the template prints, and where.
    printed = _found(frames, texts=is_special)
    of_calls = (_found(call_frames, texts=special) - printed) - kept
    of_turns = (printed | _found(tool_frames, texts=special) | ({*named} & {*is_special})) - of_calls - kept
    marks = {mark for text in frames for mark in _MARK.findall(text)} - {*is_special}
    return ControlTokens(
        of_turns=_longest_first(of_turns),
        of_calls=_longest_first(of_calls),
        marks=_longest_first(mark for mark in marks if not _THINKING.search(mark)),
        others=_longest_first(special - of_turns - of_calls - kept),
    )


def hide_control_tokens(
    messages: list[dict[str, Any]], *, tools: list[dict[str, Any]] | None, control: ControlTokens
) -> HiddenExample:
    """Return a conversation in which private characters stand in for control tokens in its texts.

    A token at the end of the assistant's text stays: only the end of the turn follows it.

    Raises:
        TemplateMismatchError: If the conversation contains both control tokens and private characters.
    """
    # Nothing to hide, or no way to.
    tokens = control.all
    everything = "\0".join(texts_in([messages, tools], with_keys=True))
    if not tokens or not _pattern(tokens).search(everything):
        return HiddenExample(messages=messages, tools=tools, token_of_stand_in={})
    if any(_FIRST_PRIVATE <= ord(character) <= _LAST_PRIVATE for character in everything):
        raise TemplateMismatchError(
            "has control tokens of the chat template and private characters (U+F0000 ...); remove one"
        )
    # One character for each token.
    stand_ins = {token: chr(_FIRST_PRIVATE + i) for i, token in enumerate(tokens)}
    of_turns = {token: stand_ins[token] for token in control.of_turns}
    return HiddenExample(
        messages=[_hidden_turn(turn, stand_ins=stand_ins, of_turns=of_turns) for turn in messages],
        tools=_replaced_in(tools, stand_ins),
        token_of_stand_in={character: token for token, character in stand_ins.items()},
    )


def reveal(text: str, *, hidden: HiddenExample) -> tuple[str, Callable[[int], int], Spans]:
    """Return a rendered text with its hidden tokens, a function from old to new positions, and the tokens' spans."""
    if not hidden.token_of_stand_in:
        return text, lambda place: place, ()
    spelled = {json.dumps(character)[1:-1]: token for character, token in hidden.token_of_stand_in.items()}
    return _replaced(text, new_of_old={**hidden.token_of_stand_in, **spelled})


def encode_with_text(
    text: str, *, tokenizer: Any, as_text: Spans, control: ControlTokens
) -> tuple[Any, list[int], Any]:
    """Tokenise an example in which some control tokens are ordinary text.

    Args:
        text: The example's text.
        tokenizer: A fast tokenizer.
        as_text: Spans of control tokens that are ordinary text.
        control: All control tokens.

    Returns:
        The encoding (its offsets are positions in a text with stand-ins), the token ids, and a function from positions
        in `text` to positions in the text with stand-ins.
    """
    backend, stand_ins, ids = _text_reader(tokenizer, control.all)
    with_stand_ins, moved, _ = _replaced(text, new_of_old=stand_ins, unchanged=as_text)
    encoding = backend.encode(with_stand_ins, add_special_tokens=False)
    return encoding, [ids.get(token_id, token_id) for token_id in encoding.ids], moved


def texts_found(value: Any, texts: Sequence[str]) -> list[str]:
    """Return which of some texts the texts in a value contain, each once."""
    if not texts:
        return []
    matches = (match for string in texts_in(value, with_keys=True) for match in _pattern(tuple(texts)).findall(string))
    return list(dict.fromkeys(matches))


@lru_cache(maxsize=64)
def _pattern(texts: tuple[str, ...]) -> re.Pattern[str]:
    """Return a pattern that matches any of some texts, and the longest of those with the same beginning."""
    return re.compile("|".join(map(re.escape, _longest_first(texts))))


@lru_cache(maxsize=4)
def _text_reader(tokenizer: Any, tokens: tuple[str, ...]) -> tuple[Tokenizer, dict[str, str], dict[int, int]]:
    """Make a copy of a tokenizer that reads control tokens as text and their stand-ins as the tokens.

    Returns:
        The copy, the stand-in of each token, and a mapping from the id of each stand-in to that of its token.
    """
    # A copy in which control tokens are text.
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in parts["added_tokens"]:
        token["special"] = token["content"] in tokens
    if parts["model"].get("type") == "Unigram":  # the text of a control token may be one of its pieces
        parts["model"]["vocab"] = [
            [piece, _UNLIKELY if piece in tokens else score] for piece, score in parts["model"]["vocab"]
        ]
    backend = Tokenizer.from_str(json.dumps(parts))
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    # The stand-ins, as new tokens.
    added = {token.content: token for token in tokenizer.added_tokens_decoder.values()}
    stand_ins = {token: chr(_FIRST_PRIVATE + i) for i, token in enumerate(tokens)}
    backend.add_tokens(
        [
            AddedToken(
                character,
                special=False,
                normalized=False,
                lstrip=added[token].lstrip,
                rstrip=added[token].rstrip,
                single_word=added[token].single_word,
            )
            for token, character in stand_ins.items()
        ]
    )
    ids = {
        backend.token_to_id(stand_in): tokenizer.convert_tokens_to_ids(token) for token, stand_in in stand_ins.items()
    }
    return backend, stand_ins, ids


def _hidden_turn(turn: dict[str, Any], *, stand_ins: dict[str, str], of_turns: dict[str, str]) -> dict[str, Any]:
    """Return a turn with stand-ins in its texts, except in its role and for tokens that end the assistant's text."""
    hidden = _replaced_in({key: value for key, value in turn.items() if key != "role"}, stand_ins)
    if turn["role"] == "assistant" and turn["content"]:
        body, ending = turn["content"], ""
        while token := next((token for token in of_turns if body.rstrip().endswith(token)), ""):
            at = body.rindex(token)
            body, ending = body[:at], body[at:] + ending
        hidden["content"] = _replaced_in(body, of_turns) + ending
    return {"role": turn["role"], **hidden}


def _replaced_in(value: Any, stand_ins: dict[str, str]) -> Any:
    """Return a JSON-like value with the tokens in its texts and keys replaced."""
    if isinstance(value, str):
        return _replaced(value, new_of_old=stand_ins)[0] if any(token in value for token in stand_ins) else value
    if isinstance(value, dict):
        return {_replaced_in(key, stand_ins): _replaced_in(entry, stand_ins) for key, entry in value.items()}
    return [_replaced_in(entry, stand_ins) for entry in value] if isinstance(value, (list, tuple)) else value


def _replaced(
    text: str, *, new_of_old: dict[str, str], unchanged: Spans = ()
) -> tuple[str, Callable[[int], int], Spans]:
    """Replace parts of a text.

    Returns:
        The new text, a function from positions in the old text to positions in the new one, and the spans of the new
        parts.
    """
    pattern = _pattern(tuple(new_of_old))
    pieces, spans, old_ends, shifts, copied = [], [], [0], [0], 0
    for start, end, new in _replacements(text, pattern=pattern, new_of_old=new_of_old, unchanged=unchanged):
        pieces += [text[copied:start], new]
        new_start = start + shifts[-1]
        spans.append((new_start, new_start + len(new)))
        copied = end
        old_ends.append(end)
        shifts.append(new_start + len(new) - end)
    pieces.append(text[copied:])

    def moved(position: int) -> int:
        return position + shifts[bisect_right(old_ends, position) - 1]

    return "".join(pieces), moved, tuple(spans)


def _replacements(
    text: str, *, pattern: re.Pattern[str], new_of_old: dict[str, str], unchanged: Spans
) -> list[tuple[int, int, str]]:
    """Return (start, end, new text) of every replacement, in order, outside the unchanged spans."""
    found, start = [], 0
    for stop, next_start in [*unchanged, (len(text), len(text))]:
        found += [(m.start(), m.end(), new_of_old[m.group()]) for m in pattern.finditer(text, start, stop)]
        start = next_start
    return found


def _found(texts_in: Sequence[str], *, texts: Any) -> set[str]:
    return {text for text in texts if text and any(text in place for place in texts_in)}


def _longest_first(texts: Any) -> tuple[str, ...]:
    """Return texts sorted by falling length, so that each comes before its own prefixes."""
    return tuple(sorted(texts, key=lambda text: (-len(text), text)))
