"""Recognise the form of a record (chat, ShareGPT, Alpaca, ...) and return its example: turns, or plain text.

A form is a small function that recognises a record by its keys and returns None if it does not. The first form that
returns an example wins. A record that no form recognises is refused, with its columns in the message.
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
_VERDICT_KEYS = (
    *("label", "kto_tag", "desirable", "is_desirable", "chosen", "is_chosen", "preferred", "is_preferred"),
    *("accepted", "is_accepted"),
)
_REJECTED_TEXTS = ("false", "rejected", "reject", "undesirable", "dispreferred")


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One conversation or plain text, whatever form its record had."""

    turns: Turns = ()
    """Messages with `role` (system, user, assistant, tool), `content`, and optionally `tool_calls`,
    `reasoning_content` and `loss: False`; empty for plain text."""
    tools: tuple[dict[str, Any], ...] = ()
    """Descriptions of the tools that the assistant may call."""
    text: str | None = None
    """Plain text; None for a conversation."""
    unread: tuple[str, ...] = ()
    """Columns, and keys of messages, whose text is in no turn: it is not trained on."""
    unread_labels: tuple[str, ...] = ()
    """The same for labels (an id, a source), and for columns that the recipe's `columns` leaves out."""

    def texts(self) -> list[str]:
        """Return all texts of the example, for training a tokenizer."""
        if self.text is not None:
            return [self.text]
        return [turn["content"] for turn in self.turns if turn["content"]]


def parse_example(record_json: str, *, columns: Mapping[str, str] | None = None) -> Example:
    """Return the example of a record.

    Args:
        record_json: The record's JSON text.
        columns: Part of an example -> column; None recognises the form.

    Raises:
        BadRowError: If it is not a JSON object, has no known form, or a form that cannot be trained on.
    """
    try:
        record = parse_json(record_json)
        if not isinstance(record, dict):
            raise BadRowError(f"expected a JSON object with named columns, found {type(record).__name__}")
        return _mapped(record, columns=columns) if columns else _recognised(record)
    except json.JSONDecodeError as error:
        raise BadRowError(f"not valid JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise BadRowError("nested too deeply to be read") from None


def _recognised(record: Mapping[str, Any]) -> Example:
    columns = Columns(record)
    for form in _FORMS:
        example = form(columns)
        if example is not None:
            return _with_unread(example, columns=columns)
    found = ", ".join(str(key) for key in list(record)[:12]) or "none"
    raise BadRowError(f"form not recognised; columns: {found}; name the columns to use under `columns`")


def _with_unread(example: Example, *, columns: Columns, column_of_part: Mapping[str, str] | None = None) -> Example:
    """Return an example with the names of the columns whose text it does not have."""
    text, labels = columns.unread(_all_texts(example))
    if column_of_part is not None:
        text, labels = ([column_of_part[part] for part in parts] for parts in (text, labels))
    return dataclasses.replace(
        example, unread=(*text, *example.unread), unread_labels=(*labels, *example.unread_labels)
    )


def _all_texts(example: Example) -> list[str]:
    """Return the texts of an example and the reasoning of its turns."""
    return [*example.texts(), *(turn["reasoning_content"] for turn in example.turns if "reasoning_content" in turn)]


def _mapped(record: Mapping[str, Any], *, columns: Mapping[str, str]) -> Example:
    """Return the example of a record whose columns the recipe gives; other columns count as labels."""
    missing = [column for column in columns.values() if column not in record]
    if missing:
        raise BadRowError(f"no column {missing[0]!r}; columns: {', '.join(map(str, record))}")
    # Make the example from the parts.
    parts = Columns({part: record[column] for part, column in columns.items()})
    if "text" in columns:
        example = _text_example(parts.take("text"), what="text")
    elif "messages" in columns:
        example = _conversation(parts.take("messages"), record=parts)
    else:
        example = _question(parts, asking="prompt", answering="answer", context="context")
    # List the columns that are not used.
    others = Columns({name: value for name, value in record.items() if name not in columns.values()})
    names = tuple(name for names in others.unread(_all_texts(example)) for name in names)
    example = dataclasses.replace(example, unread_labels=(*names, *example.unread_labels))
    return _with_unread(example, columns=parts, column_of_part=columns)


def _preference_pair(record: Columns) -> Example | None:
    for better, worse in _PREFERENCE_PAIRS:
        if better in record and worse in record:
            raise BadRowError(
                f"preference pair ({better}, {worse}): made for DPO or reward models, not for supervised fine-tuning, "
                "which needs one answer a row"
            )
    return None


def _rejected_answer(record: Columns) -> Example | None:
    """Refuse answers marked as bad: unpaired preferences, which KTO learns from."""
    has_answer = record.first(_CHAT_KEYS) or (record.first(_PROMPT_KEYS) and record.first(_ANSWER_KEYS))
    if not has_answer:
        return None
    is_kto = "prompt" in record and "completion" in record  # there 0 and 1 are verdicts, elsewhere perhaps classes
    for key in _VERDICT_KEYS:
        value = record.get(key)
        is_rejected = value is False or (isinstance(value, str) and value.strip().lower() in _REJECTED_TEXTS)
        if is_rejected or (is_kto and key == "label" and value in (0, "0")):
            raise BadRowError(
                f"rejected answer ({key}: {value}): made for KTO or reward models, not for supervised fine-tuning, "
                f"which learns from good answers; leave such rows out, or rename {key} if it is no verdict"
            )
    return None


def _multiple_choice(record: Columns) -> Example | None:
    """Refuse multiple-choice questions, which measure a model but are not text that it should write."""
    if isinstance(record.get("choices"), (list, dict)) and "answer" in record:
        raise BadRowError("multiple-choice question: made for evaluation; write the right choice out as an answer")
    return None


def _chat(record: Columns) -> Example | None:
    """Recognise `messages`, and `conversations` as in ShareGPT."""
    key = record.first(_CHAT_KEYS)
    return None if key is None else _conversation(record.take(key), record=record)


def _conversational_completion(record: Columns) -> Example | None:
    """Recognise a prompt and a completion that are lists of messages; only the completion bears loss."""
    if not (isinstance(record.get("prompt"), list) and isinstance(record.get("completion"), list)):
        return None
    prompt, completion = (parsed_messages(record.take(key)) for key in ("prompt", "completion"))
    prompt_turns = tuple({**turn, "loss": False} for turn in turns_of(prompt))
    example = _with_side_columns(prompt_turns + turns_of(completion), record=record)
    return _with_unread_keys(example, messages=[*prompt, *completion])


def _single_turn(record: Columns) -> Example | None:
    """Recognise Alpaca, Dolly, prompt/completion and question/answer: a column that asks and one that answers."""
    asking, answering = record.first(_PROMPT_KEYS), record.first(_ANSWER_KEYS)
    if asking is None or answering is None:
        return None
    return _question(record, asking=asking, answering=answering, context=record.first_filled(_CONTEXT_KEYS))


def _plain_text(record: Columns) -> Example | None:
    key = record.first(_TEXT_KEYS)
    return None if key is None else _text_example(record.take(key), what=key)


def _null_part(record: Columns) -> Example | None:
    """Recognise the forms above with a null column, which counts as empty text."""
    asking = record.first(_PROMPT_KEYS) or record.first_null(_PROMPT_KEYS)
    answering = record.first(_ANSWER_KEYS) or record.first_null(_ANSWER_KEYS)
    if asking and answering:
        return _question(record, asking=asking, answering=answering, context=record.first_filled(_CONTEXT_KEYS))
    if key := record.first_null((*_CHAT_KEYS, *_TEXT_KEYS)):
        raise BadRowError(f"{key} is empty")
    return None


def _text_example(value: Any, *, what: str) -> Example:
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
    """Return the example of a list of messages, with the system text, reasoning and tools in other columns."""
    messages = parsed_messages(messages)
    example = _with_side_columns(turns_of(messages), record=record)
    if not any(turn["role"] == "assistant" for turn in example.turns):
        raise BadRowError("no assistant turn, so nothing to learn")
    return _with_unread_keys(example, messages=messages)


def _with_side_columns(turns: Turns, *, record: Columns) -> Example:
    """Return the example of turns, with the system text, reasoning and tools in other columns."""
    turns = with_reasoning(with_system(turns, record=record), record=record)
    return Example(turns=turns, tools=tools_of(record))


def _with_unread_keys(example: Example, *, messages: list[dict[str, Any]]) -> Example:
    """Return an example with the keys of its messages whose text it does not have."""
    text, labels = unread_message_keys(messages, _all_texts(example))
    return dataclasses.replace(example, unread=tuple(text), unread_labels=tuple(labels))


def _question(record: Columns, *, asking: str, answering: str, context: str | None) -> Example:
    """Return a conversation of earlier turns, one question, with its context below it, and one answer."""
    # Read the parts.
    prompt = text_of(record.take(asking), what="prompt")
    context_text = text_of(record.take(context) if context else None, what="context")
    answer = record.take(answering)
    if isinstance(answer, list) and len([text for text in answer if text]) > 1:
        raise BadRowError(f"{answering}: a list of {len(answer)} answers; keep the right one, or join them")
    answer_text = text_of(answer, what="answer")
    if not (prompt + context_text).strip():
        raise BadRowError("the prompt is empty")
    if not answer_text.strip():
        raise BadRowError("the answer is empty")
    # Join them.
    question = "\n\n".join(part for part in (prompt, context_text) if part.strip())
    last_turns = ({"role": "user", "content": question}, {"role": "assistant", "content": answer_text})
    return _with_side_columns(earlier_turns(record) + last_turns, record=record)
