"""Load or train a tokenizer, compute its digest, and render conversations with a chat template.

The digest covers everything that decides token ids, and nothing else; prepared data is identified by it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from versatune_ds.data.encoding.templates import BUILT_IN_TEMPLATE, ROLE_MARKERS
from versatune_ds.log import first_line
from versatune_ds.paths import nearest_path

_BOS, _EOS, _PAD = "<|begin|>", "<|end|>", "<|pad|>"


def load_tokenizer(name_or_path: str | Path, *, trust_remote_code: bool = False, key: str = "model.tokenizer") -> Any:
    """Return the tokenizer of a folder saved by transformers, or of a Hub name.

    Args:
        name_or_path: Folder or Hub name.
        trust_remote_code: Run Python code that comes with it.
        key: Recipe key that gave the name; it opens every message.

    Raises:
        ValueError: If it cannot be loaded, or is not a fast tokenizer: only those give the characters of a token.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(name_or_path), trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        nearest = None if Path(name_or_path).exists() else nearest_path(Path(name_or_path))
        if nearest is not None:
            raise ValueError(f"{key}: no folder {str(name_or_path)!r}; did you mean {str(nearest)!r}?") from error
        reason = first_line(error)
        raise ValueError(f"{key}: cannot load {str(name_or_path)!r}: {reason}; give a folder or a Hub name") from error
    if not tokenizer.is_fast:
        raise ValueError(f"{key}: {str(name_or_path)!r} is not a fast tokenizer; convert it with transformers")
    return tokenizer


def train_tokenizer(texts: Iterable[str], *, vocab_size: int, folder: str | Path) -> Any:
    """Train a byte-level BPE tokenizer and save it as a folder that AutoTokenizer loads.

    It has all bytes, so no text is unknown, and the built-in chat template, whose role markers are single tokens. The
    same texts in the same order give the same tokenizer.

    Args:
        texts: Training texts.
        vocab_size: Number of tokens, with the 256 bytes and the special ones; fewer if the texts have too few pairs.
        folder: Where it is saved.

    Returns:
        The tokenizer as loaded from the folder.
    """
    # Train.
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special_tokens = [_BOS, _EOS, _PAD, *ROLE_MARKERS]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in special_tokens],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer=trainer)
    # Save it as transformers does.
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=_BOS,
        eos_token=_EOS,
        pad_token=_PAD,
        clean_up_tokenization_spaces=False,
        chat_template=BUILT_IN_TEMPLATE,
    )
    tokenizer.save_pretrained(str(folder))
    return load_tokenizer(folder)


def pad_token_id(tokenizer: Any) -> int:
    """Return the id of padding; it bears no loss, so any id will do if the tokenizer has none."""
    return next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)


def special_ids_of(tokenizer: Any) -> np.ndarray:
    """Return the ids of a tokenizer's special tokens, which mark the structure of a conversation and are not text."""
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return np.array(sorted({*added, *tokenizer.all_special_ids}), dtype=np.int64)


def tokenizer_digest(tokenizer: Any) -> str:
    """Return a digest of everything that decides token ids: vocabulary, merges, normalisation, special tokens.

    Truncation and padding, which a caller may change, and the chat template are not included.
    """
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    parts.pop("truncation", None)
    parts.pop("padding", None)
    parts["special_ids"] = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()


def render_conversation(
    messages: list[dict[str, Any]],
    *,
    tokenizer: Any,
    template: str,
    tools: list[dict[str, Any]] | None = None,
    add_generation_prompt: bool = False,
) -> tuple[str, list[tuple[int, int]]]:
    """Return a conversation's text and the character spans that the template marks as generated.

    Templates run in transformers' sandboxed Jinja environment.

    Args:
        messages: Turns with `role`, `content` and optionally `tool_calls`.
        tokenizer: Its special tokens are used by the template.
        template: Jinja text.
        tools: Tool descriptions for templates that print them.
        add_generation_prompt: End with the header of an assistant turn.

    Returns:
        The text, and (start, end) of every `{% generation %}` block in it; empty for a template without such blocks.
    """
    rendered, marks = render_jinja_template(
        conversations=[messages],
        tools=tools,
        chat_template=template,
        return_assistant_tokens_mask=has_generation_marks(template),
        add_generation_prompt=add_generation_prompt,
        **tokenizer.special_tokens_map,
    )
    return rendered[0], list(marks[0]) if marks else []


def has_generation_marks(template: str) -> bool:
    """Return whether a template marks the assistant's text with `{% generation %}`."""
    return "endgeneration" in template
