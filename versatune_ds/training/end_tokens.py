"""Find out which tokens ended the assistant's turns in training, so that an exported model stops where it learned to.

A base model's generation settings often name its end-of-text token alone, while the chat template ends turns with
another one: generation would then run past the answer into further turns.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from versatune_ds.config import RunConfig
from versatune_ds.data.encoding.encode import encode_messages
from versatune_ds.data.encoding.loss_spans import TemplateMismatchError
from versatune_ds.data.encoding.templates import choose_template
from versatune_ds.data.encoding.tokenizer import render_conversation, special_ids_of
from versatune_ds.data.prepare.domains import PreparedData
from versatune_ds.run_folder.names import ENDINGS_FILE

logger = logging.getLogger(__name__)

_EXAMPLES_PER_DOMAIN = 200
_LEAST_SHARE = 0.01
"""Share of the examples that a token must end; fewer are accidents of the texts."""

_QUESTION = {"role": "user", "content": "a question"}
_CONVERSATION = (_QUESTION, {"role": "assistant", "content": "an answer"})

Example = tuple[np.ndarray, np.ndarray]
"""Token ids and which of them bear loss."""


def endings_of_data(config: RunConfig, tokenizer: Any, data: PreparedData) -> dict[str, Any]:
    """Return the content of a run's ENDINGS_FILE, from examples spread over every domain's training data.

    Examples as long as a row are skipped: most of them were cut off, and end anywhere.
    """
    examples = [
        shards.read(index)
        for shards in data.train
        for index in np.unique(np.linspace(0, len(shards) - 1, min(len(shards), _EXAMPLES_PER_DOMAIN)).astype(int))
        if shards.lengths[index] < config.data.row_tokens
    ]
    template = _template_of(config, tokenizer)
    is_used = template is not None and _has_conversations(examples, tokenizer=tokenizer, template=template)
    ids = ends_of_examples(examples, tokenizer=tokenizer)
    if not ids and is_used:
        ids = ends_of_template(tokenizer, template)
    return {"end_token_ids": ids, "chat_template": template if is_used else None}


def ends_of_examples(examples: Iterable[Example], *, tokenizer: Any) -> list[int]:
    """Return the special tokens that are the last loss tokens of examples, ignoring white space after them."""
    special_ids = set(special_ids_of(tokenizer).tolist())
    lasts = [_last_loss_token(*example, tokenizer=tokenizer) for example in examples]
    counts = Counter(token_id for token_id in lasts if token_id in special_ids)
    return sorted(token_id for token_id, count in counts.items() if count >= _LEAST_SHARE * len(lasts))


def ends_of_template(tokenizer: Any, template: str) -> list[int]:
    """Return the token that ends an answer in a template, as a list; empty where none does."""
    try:
        example = encode_messages(list(_CONVERSATION), tokenizer=tokenizer, template=template)
    except TemplateMismatchError:
        return []
    return ends_of_examples([example], tokenizer=tokenizer)


def _last_loss_token(input_ids: np.ndarray, is_loss: np.ndarray, *, tokenizer: Any) -> int | None:
    """Return the last token that bears loss and is more than white space."""
    for token_id in input_ids[is_loss][:-4:-1].tolist():
        if tokenizer.decode([token_id]).strip():
            return token_id
    return None


def _has_conversations(examples: Sequence[Example], *, tokenizer: Any, template: str) -> bool:
    """Return whether examples were written with a template, rather than being plain text."""
    if any(not is_loss[1:].all() for _, is_loss in examples):
        return True
    try:
        prompts = [
            render_conversation([_QUESTION], tokenizer=tokenizer, template=template, add_generation_prompt=is_prompt)[0]
            for is_prompt in (False, True)
        ]
    except Exception:  # a template is code, and may refuse a question without an answer in its own way
        return False
    header = prompts[1].removeprefix(prompts[0]).strip()
    return bool(header) and any(header in tokenizer.decode(ids.tolist()) for ids, _ in examples)


def _template_of(config: RunConfig, tokenizer: Any) -> str | None:
    """Return the chat template of a recipe, None where there is none."""
    try:
        return choose_template(tokenizer, path=config.data.chat_template)
    except ValueError:
        return None


def recorded_endings(run_dir: Path, config: RunConfig, tokenizer: Any) -> dict[str, Any]:
    """Return the content of a run's ENDINGS_FILE; without the file, derive it from the chat template."""
    path = run_dir / ENDINGS_FILE
    if path.is_file():
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return {
                "end_token_ids": [int(i) for i in values["end_token_ids"]],
                "chat_template": values["chat_template"],
            }
        except (ValueError, KeyError, TypeError):
            logger.warning("%s: not readable; the ends of turns are taken from the chat template", path)
    template = _template_of(config, tokenizer)
    ids = [] if template is None else ends_of_template(tokenizer, template)
    if not ids and tokenizer.eos_token_id is not None:
        ids = [tokenizer.eos_token_id]
    return {"end_token_ids": ids, "chat_template": None}


def stops_of(*settings: Any) -> list[int]:
    """Return the ids at which generation stops by some settings, each an object with `eos_token_id` or None."""
    found: list[int] = []
    for part in settings:
        ids = getattr(part, "eos_token_id", None)
        found += [ids] if isinstance(ids, int) else list(ids or ())
    return list(dict.fromkeys(found))


def stop_at_ends(folder: Path, end_ids: Sequence[int], *, tokenizer: Any) -> None:
    """Add the ids that ended turns to what a saved model stops at; ids that are there stay, the first one first.

    They are in the folder's generation_config.json and, perhaps, config.json.

    The files are changed and not the object: transformers saves generation settings that were changed only where all
    of them are valid, and those of many models are not.
    """
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        if not path.is_file():
            continue
        values = json.loads(path.read_text(encoding="utf-8"))
        parts = [part for part in (values, values.get("text_config")) if isinstance(part, dict)]
        before = stops_of(*(SimpleNamespace(eos_token_id=part.get("eos_token_id")) for part in parts))
        added = [token_id for token_id in end_ids if token_id not in before]
        if not added:
            continue
        stops = [*before, *added]
        values["eos_token_id"] = stops if len(stops) > 1 else stops[0]
        path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        if name == "generation_config.json":
            logger.info(
                "generation stops at %s too, which ended the answers in training; it stopped at %s only",
                named_tokens(added, tokenizer),
                named_tokens(before, tokenizer) or "no token",
            )


def named_tokens(token_ids: Sequence[int], tokenizer: Any) -> str:
    """Return token ids with their texts, for messages."""
    return ", ".join(f"{tokenizer.convert_ids_to_tokens(token_id)} ({token_id})" for token_id in token_ids)
