"""Recognise the form of a record and bring it to one shape: turns with roles, or plain text.

The one idea: a form is a small function that knows a record by its keys and answers None when they are not its own.
The first that answers wins; a record that none knows is refused with the columns it has.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from versatune_ds.data.encoding.columns import Columns, unread_message_keys
from versatune_ds.data.encoding.example_parts import earlier_turns, tools_of, with_reasoning, with_system
from versatune_ds.data.encoding.turns import BadRowError, Turns, parsed_messages, text_of, turns_of
from versatune_ds.data.sources.records import parse_json

_CHAT_KEYS = ("messages", "conversations", "conversation")
_PROMPT_KEYS = ("instruction", "question", "query", "prompt")
_CONTEXT_KEYS = ("input", "context", "contexts", "passage", "passages")
_ANSWER_KEYS = ("output", "response", "completion", "answer", "long_answer")
_TEXT_KEYS = ("text", "content")
_PREFERENCE_PAIRS = (
    ("chosen", "rejected"),
    ("chosen", "reject"),
    ("chosen_response", "rejected_response"),
    ("response_chosen", "response_rejected"),
    ("chosen_answer", "rejected_answer"),
    ("chosen_messages", "rejected_messages"),
    ("preferred", "dispreferred"),
)
_VERDICT_KEYS = ("label", "kto_tag", "desirable", "is_desirable", "chosen", "is_chosen", "preferred", "is_preferred")


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """Hold one row in the one shape that is tokenised."""

    turns: Turns = ()
    """Messages with `role` (system, user, assistant, tool), `content`, perhaps `tool_calls`, `reasoning_content` and
    `loss: False`; empty for plain text."""
    tools: tuple[dict[str, Any], ...] = ()
    """Descriptions of the tools the assistant may call."""
    text: str | None = None
    """Plain text; None for a conversation."""
    unread: tuple[str, ...] = ()
    """Columns, and keys of messages, with text that is in no turn: it is not trained on."""
    unread_labels: tuple[str, ...] = ()
    """The same for what describes a row (an id, a source) and for columns that the recipe's `columns` leaves out."""

    def texts(self) -> list[str]:
        """Return every piece of text of the row, for training a tokenizer."""
        return [self.text] if self.text is not None else [turn["content"] for turn in self.turns if turn["content"]]


def parse_example(record_json: str, *, columns: Mapping[str, str] | None = None) -> Example:
    """Return the row that a record's JSON text holds.

    Raises:
        BadRowError: If it is no JSON object, no known form, or a form that cannot be trained on; the message says why.
    """
    try:
        record = parse_json(record_json)
        if not isinstance(record, dict):
            raise BadRowError(f"expected an object with named columns, found {type(record).__name__}")
        return _mapped(record, columns=columns) if columns else _recognised(record)
    except json.JSONDecodeError as error:
        raise BadRowError(f"not valid JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise BadRowError("nested too deep to be read") from None


def _recognised(record: Mapping[str, Any]) -> Example:
    """Return the row of the first form that knows the record."""
    columns = Columns(record)
    for form in _FORMS:
        row = form(columns)
        if row is not None:
            return _with_unread(row, columns=columns)
    found = ", ".join(str(key) for key in list(record)[:12]) or "none"
    raise BadRowError(f"form not recognised; columns: {found}; say which is which with `columns`")


def _with_unread(row: Example, *, columns: Columns, column_of_part: Mapping[str, str] | None = None) -> Example:
    """Return a row with the names of the columns whose text it does not have."""
    text, labels = columns.unread(_all_texts(row))
    if column_of_part is not None:
        text, labels = ([column_of_part[part] for part in parts] for parts in (text, labels))
    return dataclasses.replace(row, unread=(*text, *row.unread), unread_labels=(*labels, *row.unread_labels))


def _all_texts(row: Example) -> list[str]:
    """Return the texts of a row with the reasoning of its turns."""
    return [*row.texts(), *(turn["reasoning_content"] for turn in row.turns if "reasoning_content" in turn)]


def _mapped(record: Mapping[str, Any], *, columns: Mapping[str, str]) -> Example:
    """Return the row of a record whose columns the recipe names; the columns it leaves out count as labels."""
    missing = [column for column in columns.values() if column not in record]
    if missing:
        raise BadRowError(f"no column {missing[0]!r}; columns: {', '.join(map(str, record))}")
    parts = Columns({part: record[column] for part, column in columns.items()})
    if "text" in columns:
        row = _text_row(parts.take("text"), what="text")
    elif "messages" in columns:
        row = _conversation(parts.take("messages"), record=parts)
    else:
        row = _question(parts, asking="prompt", answering="answer", context="context")
    left_out = Columns({name: value for name, value in record.items() if name not in columns.values()})
    chosen = tuple(name for names in left_out.unread(_all_texts(row)) for name in names)
    row = dataclasses.replace(row, unread_labels=(*chosen, *row.unread_labels))
    return _with_unread(row, columns=parts, column_of_part=columns)


def _preference_pair(record: Columns) -> Example | None:
    """Refuse pairs of a better and a worse answer."""
    for better, worse in _PREFERENCE_PAIRS:
        if better in record and worse in record:
            raise BadRowError(
                f"preference pair ({better}, {worse}): made for DPO or reward models, not for supervised fine-tuning, "
                "which needs one answer a row"
            )
    return None


def _rejected_answer(record: Columns) -> Example | None:
    """Refuse answers marked as bad ones: unpaired preference rows, as KTO learns from."""
    is_answer = record.first(_CHAT_KEYS) or (record.first(_PROMPT_KEYS) and record.first(_ANSWER_KEYS))
    is_kto = "prompt" in record and "completion" in record  # there 0 and 1 are verdicts, elsewhere perhaps classes
    for key in _VERDICT_KEYS if is_answer else ():
        value = record.get(key)
        is_rejected = value is False or (isinstance(value, str) and value.strip().lower() == "false")
        if is_rejected or (is_kto and key == "label" and value in (0, "0")):
            raise BadRowError(
                f"rejected answer ({key}: {value}): made for KTO or reward models, not for supervised fine-tuning, "
                f"which learns from good answers; leave such rows out, or rename {key} if it is no verdict"
            )
    return None


def _multiple_choice(record: Columns) -> Example | None:
    """Refuse questions with options, which measure a model and do not say what it should write."""
    if isinstance(record.get("choices"), (list, dict)) and "answer" in record:
        raise BadRowError("multiple-choice question: made for evaluation; write the right choice out as an answer")
    return None


def _chat(record: Columns) -> Example | None:
    """Recognise `messages` and ShareGPT's `conversations`."""
    key = record.first(_CHAT_KEYS)
    return None if key is None else _conversation(record.take(key), record=record)


def _conversational_completion(record: Columns) -> Example | None:
    """Recognise a prompt and a completion that are lists of messages; only the completion bears loss."""
    if not (isinstance(record.get("prompt"), list) and isinstance(record.get("completion"), list)):
        return None
    prompt, completion = (parsed_messages(record.take(key)) for key in ("prompt", "completion"))
    asked = tuple({**turn, "loss": False} for turn in turns_of(prompt))
    row = _dialogue(asked + turns_of(completion), record=record)
    return _with_unread_keys(row, messages=[*prompt, *completion])


def _single_turn(record: Columns) -> Example | None:
    """Recognise Alpaca, Dolly, prompt/completion and question/answer: one key that asks, one that answers."""
    asking, answering = record.first(_PROMPT_KEYS), record.first(_ANSWER_KEYS)
    if asking is None or answering is None:
        return None
    return _question(record, asking=asking, answering=answering, context=record.first_filled(_CONTEXT_KEYS))


def _plain_text(record: Columns) -> Example | None:
    """Recognise plain text."""
    key = record.first(_TEXT_KEYS)
    return None if key is None else _text_row(record.take(key), what=key)


def _null_part(record: Columns) -> Example | None:
    """Recognise the forms above with a part that is null: it is empty, as if its text were ''."""
    asking = record.first(_PROMPT_KEYS) or record.first_null(_PROMPT_KEYS)
    answering = record.first(_ANSWER_KEYS) or record.first_null(_ANSWER_KEYS)
    if asking and answering:
        return _question(record, asking=asking, answering=answering, context=record.first_filled(_CONTEXT_KEYS))
    if key := record.first_null((*_CHAT_KEYS, *_TEXT_KEYS)):
        raise BadRowError(f"{key} is empty")
    return None


def _text_row(value: Any, *, what: str) -> Example:
    """Return the row of a plain text."""
    text = text_of(value, what=what)
    if not text.strip():
        raise BadRowError(f"{what} is empty")
    return Example(text=text)


_FORMS: tuple[Callable[[Columns], Example | None], ...] = (
    _preference_pair,
    _rejected_answer,
    _multiple_choice,
    _chat,
    _conversational_completion,
    _single_turn,
    _plain_text,
    _null_part,
)


def _conversation(messages: Any, *, record: Columns) -> Example:
    """Return the row of a list of messages and the system text, reasoning and tools beside it."""
    messages = parsed_messages(messages)
    row = _dialogue(turns_of(messages), record=record)
    if not any(turn["role"] == "assistant" for turn in row.turns):
        raise BadRowError("no assistant turn, so nothing to learn")
    return _with_unread_keys(row, messages=messages)


def _dialogue(turns: Turns, *, record: Columns) -> Example:
    """Return the row of turns and what stands beside them."""
    turns = with_reasoning(with_system(turns, record=record), record=record)
    return Example(turns=turns, tools=tools_of(record))


def _with_unread_keys(row: Example, *, messages: list[dict[str, Any]]) -> Example:
    """Return a row with the keys of its messages that it does not have the text of."""
    text, labels = unread_message_keys(messages, _all_texts(row))
    return dataclasses.replace(row, unread=tuple(text), unread_labels=tuple(labels))


def _question(record: Columns, *, asking: str, answering: str, context: str | None) -> Example:
    """Return a conversation of earlier turns, one question, with its context below it, and one answer."""
    asked = text_of(record.take(asking), what="prompt")
    given = text_of(record.take(context) if context else None, what="context")
    answer = record.take(answering)
    if isinstance(answer, list) and len([text for text in answer if text]) > 1:
        raise BadRowError(f"{answering}: a list of {len(answer)} answers; keep the right one, or join them")
    answered = text_of(answer, what="answer")
    if not (asked + given).strip():
        raise BadRowError("the prompt is empty")
    if not answered.strip():
        raise BadRowError("the answer is empty")
    question = "\n\n".join(part for part in (asked, given) if part.strip())
    last = ({"role": "user", "content": question}, {"role": "assistant", "content": answered})
    return _dialogue(earlier_turns(record) + last, record=record)
