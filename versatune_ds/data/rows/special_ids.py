"""Tell the tokens that stand for the form of a conversation from those that stand for text."""

from __future__ import annotations

from typing import Any

import numpy as np


def special_ids_of(tokenizer: Any) -> np.ndarray:
    """Return the ids of a tokenizer's special tokens: what stands for the form of a conversation and not for text."""
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return np.array(sorted({*added, *tokenizer.all_special_ids}), dtype=np.int64)
