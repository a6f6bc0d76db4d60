"""Recognise the form of a record and bring it to one shape: turns with roles, or plain text.

The one idea: a form is a small function that knows a record by its keys and answers None when they are not its own.
The first that answers wins; a record that none knows is refused with the columns it has.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from versatune_ds.data.turns import BadRowError, Turns, normalised_turns, parsed_json, text_of

Record = Mapping[str, Any]

_PROMPT_KEYS = ("instruction", "question", "query", "prompt")
_CONTEXT_KEYS = ("input", "context", "contexts")
_ANSWER_KEYS = ("output", "response", "completion", "answer", "long_answer")
_TEXT_KEYS = ("text", "content")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Hold one row in the one shape that is tokenised."""

    turns: Turns = ()
    """Messages with `role` (system, user, assistant, tool), `content`, perhaps `tool_calls`, `reasoning_content` and
    `loss: False`; empty for plain text."""
    tools: tuple[dict[str, Any], ...] = ()
    """Descriptions of the tools the assistant may call."""
    text: str | None = None
    """Plain text; None for a conversation."""

    def texts(self) -> list[str]:
        """Return every piece of text of the row, for training a tokenizer."""
        return [self.text] if self.text is not None else [turn["content"] for turn in self.turns if turn["content"]]


def parse_row(record_json: str, *, columns: Mapping[str, str] | None = None) -> Row:
    """Return the row that a record's JSON text holds.

    Raises:
        BadRowError: If it is no JSON object, no known form, or a form that cannot be trained on; the message says why.
    """
    record = _loaded(record_json)
    if not isinstance(record, dict):
        raise BadRowError(f"expected an object with named columns, found {type(record).__name__}")
    return _mapped(record, columns=columns) if columns else _recognised(record)


def _loaded(record_json: str) -> Any:
    """Return the value of a record's JSON text; raise BadRowError if Python cannot hold it."""
    try:
        return json.loads(record_json)
    except json.JSONDecodeError as error:
        raise BadRowError(f"not valid JSON: {error.msg} at column {error.colno}") from None
    except ValueError:  # Python refuses to convert integers of more than 4300 digits
        raise BadRowError("holds a number with too many digits; write it as text") from None
    except RecursionError:
        raise BadRowError("nested too deep to be read") from None


def _recognised(record: Record) -> Row:
    """Return the row of the first form that knows the record."""
    lowered = {str(key).lower(): value for key, value in record.items() if value is not None}
    for form in _FORMS:
        row = form(lowered)
        if row is not None:
            return row
    found = ", ".join(str(key) for key in list(record)[:12]) or "none"
    raise BadRowError(f"form not recognised; columns: {found}; say which is which with `columns`")


def _mapped(record: Record, *, columns: Mapping[str, str]) -> Row:
    """Return the row of a record whose columns the recipe names."""
    missing = [column for column in columns.values() if column not in record]
    if missing:
        raise BadRowError(f"no column {missing[0]!r}; columns: {', '.join(map(str, record))}")
    parts = {part: record[column] for part, column in columns.items() if record[column] is not None}
    if "text" in columns:
        return _plain_text({"text": parts.get("text")})
    if "messages" in columns:
        return _conversation(parts.get("messages"), record=parts)
    return _question(parts, prompt=parts.get("prompt"), context=parts.get("context"), answer=parts.get("answer"))


def _preference_pair(record: Record) -> Row | None:
    """Refuse pairs of a better and a worse answer."""
    if "chosen" in record and "rejected" in record:
        raise BadRowError(
            "preference pair (chosen, rejected): made for DPO or reward models, not for supervised fine-tuning, which "
            "needs one answer a row"
        )
    return None


def _multiple_choice(record: Record) -> Row | None:
    """Refuse questions with options, which measure a model and do not say what it should write."""
    if isinstance(record.get("choices"), (list, dict)) and "answer" in record:
        raise BadRowError("multiple-choice question: made for evaluation; write the right choice out as an answer")
    return None


def _chat(record: Record) -> Row | None:
    """Recognise `messages` and ShareGPT's `conversations`."""
    for key in ("messages", "conversations", "conversation"):
        if key in record:
            return _conversation(record[key], record=record)
    return None


def _conversational_completion(record: Record) -> Row | None:
    """Recognise a prompt and a completion that are lists of messages; only the completion bears loss."""
    prompt, completion = record.get("prompt"), record.get("completion")
    if not (isinstance(prompt, list) and isinstance(completion, list)):
        return None
    asked = tuple({**turn, "loss": False} for turn in normalised_turns(prompt))
    return Row(turns=asked + normalised_turns(completion), tools=_tools(record))


def _single_turn(record: Record) -> Row | None:
    """Recognise Alpaca, Dolly, prompt/completion and question/answer: one key that asks, one that answers."""
    asking = next((key for key in _PROMPT_KEYS if key in record), None)
    answering = next((key for key in _ANSWER_KEYS if key in record), None)
    if asking is None or answering is None:
        return None
    context = next((record[key] for key in _CONTEXT_KEYS if key in record), None)
    return _question(record, prompt=record[asking], context=context, answer=record[answering])


def _plain_text(record: Record) -> Row | None:
    """Recognise plain text."""
    key = next((key for key in _TEXT_KEYS if key in record), None)
    if key is None:
        return None
    text = text_of(record[key], what=key)
    if not text.strip():
        raise BadRowError(f"{key} is empty")
    return Row(text=text)


_FORMS: tuple[Callable[[Record], Row | None], ...] = (
    _preference_pair,
    _multiple_choice,
    _chat,
    _conversational_completion,
    _single_turn,
    _plain_text,
)


def _conversation(messages: Any, *, record: Record) -> Row:
    """Return the row of a list of messages and the system text and tools beside it."""
    row = Row(turns=_with_system(normalised_turns(messages), record=record), tools=_tools(record))
    if not any(turn["role"] == "assistant" for turn in row.turns):
        raise BadRowError("no assistant turn, so nothing to learn")
    return row


def _question(record: Record, *, prompt: Any, context: Any, answer: Any) -> Row:
    """Return a conversation of earlier turns, one question, with its context below it, and one answer."""
    asked, given = text_of(prompt, what="prompt"), text_of(context, what="context")
    answered = text_of(answer, what="answer")
    if not (asked + given).strip():
        raise BadRowError("the prompt is empty")
    if not answered.strip():
        raise BadRowError("the answer is empty")
    question = "\n\n".join(part for part in (asked, given) if part.strip())
    last = ({"role": "user", "content": question}, {"role": "assistant", "content": answered})
    return Row(turns=_with_system(_history(record) + last, record=record), tools=_tools(record))


def _history(record: Record) -> Turns:
    """Return the earlier turns of Alpaca's `history`: a list of [question, answer]."""
    turns: list[dict[str, Any]] = []
    history = record.get("history") or []
    for pair in history if isinstance(history, list) else [history]:
        if not (isinstance(pair, list) and len(pair) == 2):
            raise BadRowError("history: expected a list of [question, answer] pairs")
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return normalised_turns(turns) if turns else ()


def _with_system(turns: Turns, *, record: Record) -> Turns:
    """Return the turns led by the record's `system` text, if it has one and they do not begin with one."""
    system = record.get("system")
    if not isinstance(system, str) or not system.strip() or (turns and turns[0]["role"] == "system"):
        return turns
    return ({"role": "system", "content": system}, *turns)


def _tools(record: Record) -> tuple[dict[str, Any], ...]:
    """Return tool descriptions, given as a list or as its JSON text, in the shape chat templates expect."""
    tools = record.get("tools")
    if tools is None or (isinstance(tools, str) and not tools.strip()):
        return ()
    tools = parsed_json(tools, what="tools") if isinstance(tools, str) else tools
    tools = [tools] if isinstance(tools, dict) else tools
    if isinstance(tools, list):
        tools = [parsed_json(tool, what="tools") if isinstance(tool, str) else tool for tool in tools]
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise BadRowError("tools: expected a list of tool descriptions")
    return tuple(tool if "function" in tool else {"type": "function", "function": tool} for tool in tools)
