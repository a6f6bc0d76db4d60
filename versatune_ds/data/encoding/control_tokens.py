"""Read control tokens inside a turn's text as ordinary text, so that what somebody wrote ends or begins no turn.

A tokenizer turns the text `<|im_end|>` into the token that ends a turn, wherever it stands. So before a template is
rendered, such text in turns is replaced by one private character each; where these come out again, the row's text is
read as text by a copy of the tokenizer:

    content     say <|im_end|> twice            hidden      say X twice
    rendered    <|im_start|>say X twice<|im_end|>
    row text    <|im_start|>say <|im_end|> twice<|im_end|>      text: characters 16 .. 25
    tokenised   Ssay <|im_end|> twiceE          S, E: tokens of the copy, with the ids of <|im_start|> and <|im_end|>

Only tokens that the template itself prints around turns, and the tokenizer's begin, end and padding tokens, are control
tokens; thinking tags are not, because rows write them on purpose.
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

_FIRST_PRIVATE = 0xF0000  # private use planes: no text has these characters
_LAST_PRIVATE = 0xFFFFD
_THINKING = re.compile("think|reason", re.IGNORECASE)
_MARK = re.compile(r"<\|[^<>|\s]{1,40}\|>|\[/?[A-Z_]{3,}\]|<(?:start|end)_of_turn>")
_UNLIKELY = -1e6  # score of a Unigram piece that no segmentation takes

Spans = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlTokens:
    """The tokens by which a template and a tokenizer frame turns and texts."""

    of_turns: tuple[str, ...] = ()
    """Never read as tokens inside what somebody says."""
    of_calls: tuple[str, ...] = ()
    """Tokens around tool calls: the assistant may write calls out, what others say is text."""
    marks: tuple[str, ...] = ()
    """Text that frames turns without being a token: in a turn it cannot be told from the template's own."""
    others: tuple[str, ...] = ()
    """Further special tokens, which rows may use on purpose."""

    @property
    def all(self) -> tuple[str, ...]:
        """Return the tokens of turns and of calls."""
        return self.of_turns + self.of_calls


@dataclass(frozen=True, slots=True, kw_only=True)
class HiddenExample:
    """A conversation without the text of control tokens, and what stands for it."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    token_of_stand_in: dict[str, str]
    """One private character to the text it stands for; empty when nothing is hidden."""


def find_control_tokens(
    tokenizer: Any, *, frames: Sequence[str], tool_frames: Sequence[str], call_frames: Sequence[str]
) -> ControlTokens:
    """Return the control tokens of a template.

    Args:
        tokenizer: A fast tokenizer.
        frames: Conversations rendered with it, of next to no text.
        tool_frames: The same with tools, calls and results. Of their tokens only special ones count: tags like
            <tool_response> are what rows without such turns write themselves.
        call_frames: The same, up to a call.
    """
    is_special = {token.content: token.special for token in tokenizer.added_tokens_decoder.values()}
    named = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.sep_token, tokenizer.cls_token)
    kept = {token for token in is_special if _THINKING.search(token)} | {tokenizer.unk_token}
    special = {token for token, special in is_special.items() if special}
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
    """Return a conversation in which private characters stand for control tokens that its texts hold.

    A token at the end of what the assistant says stays: nothing follows it but the end of the turn.

    Raises:
        ValueError: If the conversation holds control tokens and private characters of its own.
    """
    tokens = control.all
    everything = "\0".join(_strings([messages, tools]))
    if not tokens or not _pattern(tokens).search(everything):
        return HiddenExample(messages=messages, tools=tools, token_of_stand_in={})
    if any(_FIRST_PRIVATE <= ord(character) <= _LAST_PRIVATE for character in everything):
        raise ValueError("holds control tokens of the chat template and private characters (U+F0000 ...); remove one")
    stand_ins = {token: chr(_FIRST_PRIVATE + i) for i, token in enumerate(tokens)}
    of_turns = {token: stand_ins[token] for token in control.of_turns}
    return HiddenExample(
        messages=[_hidden_turn(turn, stand_ins=stand_ins, of_turns=of_turns) for turn in messages],
        tools=_replaced_in(tools, stand_ins),
        token_of_stand_in={character: token for token, character in stand_ins.items()},
    )


def reveal(text: str, *, hidden: HiddenExample) -> tuple[str, Callable[[int], int], Spans]:
    """Return a rendered text with the hidden tokens in it, where each of its places is now, and where they stand."""
    if not hidden.token_of_stand_in:
        return text, lambda place: place, ()
    spelled = {json.dumps(character)[1:-1]: token for character, token in hidden.token_of_stand_in.items()}
    return _exchanged(text, new_of_old={**hidden.token_of_stand_in, **spelled})


def encode_with_text(
    text: str, *, tokenizer: Any, as_text: Spans, control: ControlTokens
) -> tuple[Any, list[int], Any]:
    """Tokenise a row in which some control tokens are ordinary text.

    Args:
        text: The row's text.
        tokenizer: A fast tokenizer.
        as_text: Where control tokens are ordinary text.
        control: All of them.

    Returns:
        The encoding (its offsets are those of a text with stand-ins), the token ids, and a function from a place in
        `text` to the place in that text.
    """
    backend, stand_ins, ids = _text_reader(tokenizer, control.all)
    with_stand_ins, moved, _ = _exchanged(text, new_of_old=stand_ins, untouched=as_text)
    encoding = backend.encode(with_stand_ins, add_special_tokens=False)
    return encoding, [ids.get(token_id, token_id) for token_id in encoding.ids], moved


def texts_hold(value: Any, texts: Sequence[str]) -> bool:
    """Return whether any text within a value holds one of some texts."""
    return bool(texts) and any(_pattern(tuple(texts)).search(string) for string in _strings(value))


@lru_cache(maxsize=64)
def _pattern(texts: tuple[str, ...]) -> re.Pattern[str]:
    """Return a pattern that matches any of some texts, the longest where several begin alike."""
    return re.compile("|".join(map(re.escape, _longest_first(texts))))


@lru_cache(maxsize=4)
def _text_reader(tokenizer: Any, tokens: tuple[str, ...]) -> tuple[Tokenizer, dict[str, str], dict[int, int]]:
    """Return a copy of a tokenizer that reads control tokens as text and their stand-ins as the tokens.

    Returns:
        The copy, the stand-in of each token, and the token's id to the stand-in's.
    """
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in parts["added_tokens"]:
        token["special"] = token["content"] in tokens
    if parts["model"].get("type") == "Unigram":  # its pieces may be the very texts of control tokens
        parts["model"]["vocab"] = [
            [piece, _UNLIKELY if piece in tokens else score] for piece, score in parts["model"]["vocab"]
        ]
    backend = Tokenizer.from_str(json.dumps(parts))
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
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
    """Return a turn with stand-ins in its texts; its role and, if it is the assistant's, its ending token stay."""
    hidden = _replaced_in({key: value for key, value in turn.items() if key != "role"}, stand_ins)
    if turn["role"] == "assistant" and turn["content"]:
        body, ending = turn["content"], ""
        while token := next((token for token in of_turns if body.rstrip().endswith(token)), ""):
            at = body.rindex(token)
            body, ending = body[:at], body[at:] + ending
        hidden["content"] = _replaced_in(body, of_turns) + ending
    return {"role": turn["role"], **hidden}


def _replaced_in(value: Any, stand_ins: dict[str, str]) -> Any:
    """Return a JSON-like value with the tokens in its texts replaced; keys of mappings too."""
    if isinstance(value, str):
        return _exchanged(value, new_of_old=stand_ins)[0] if any(token in value for token in stand_ins) else value
    if isinstance(value, dict):
        return {_replaced_in(key, stand_ins): _replaced_in(entry, stand_ins) for key, entry in value.items()}
    return [_replaced_in(entry, stand_ins) for entry in value] if isinstance(value, (list, tuple)) else value


def _exchanged(
    text: str, *, new_of_old: dict[str, str], untouched: Spans = ()
) -> tuple[str, Callable[[int], int], Spans]:
    """Return a text with some texts exchanged, where each of its places is now, and where the new texts stand."""
    pattern = _pattern(tuple(new_of_old))
    pieces, spans, old_ends, shifts, copied = [], [], [0], [0], 0
    for start, end, new in _exchanges(text, pattern=pattern, new_of_old=new_of_old, untouched=untouched):
        pieces += [text[copied:start], new]
        new_start = start + shifts[-1]
        spans.append((new_start, new_start + len(new)))
        copied = end
        old_ends.append(end)
        shifts.append(new_start + len(new) - end)
    pieces.append(text[copied:])

    def moved(place: int) -> int:
        return place + shifts[bisect_right(old_ends, place) - 1]

    return "".join(pieces), moved, tuple(spans)


def _exchanges(
    text: str, *, pattern: re.Pattern[str], new_of_old: dict[str, str], untouched: Spans
) -> list[tuple[int, int, str]]:
    """Return start, end and new text of every exchange, in order, none of them inside the untouched spans."""
    found, start = [], 0
    for stop, resume in [*untouched, (len(text), len(text))]:
        found += [(m.start(), m.end(), new_of_old[m.group()]) for m in pattern.finditer(text, start, stop)]
        start = resume
    return found


def _strings(value: Any) -> list[str]:
    """Return every text within a JSON-like value, keys of mappings included, at any depth."""
    found, pending = [], [value]
    while pending:
        entry = pending.pop()
        if isinstance(entry, str):
            found.append(entry)
        elif isinstance(entry, dict):
            pending += [*entry.keys(), *entry.values()]
        elif isinstance(entry, (list, tuple)):
            pending += entry
    return found


def _found(texts_in: Sequence[str], *, texts: Any) -> set[str]:
    """Return which of some texts stand in others."""
    return {text for text in texts if text and any(text in place for place in texts_in)}


def _longest_first(texts: Any) -> tuple[str, ...]:
    """Return texts sorted so that one comes before those it begins with."""
    return tuple(sorted(texts, key=lambda text: (-len(text), text)))
