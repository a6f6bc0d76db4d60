"""Check that a model has a position for every token of the longest example.

Positions restart with every packed example, so a row may be longer than the model's positions; an example may not.
"""

from __future__ import annotations

import logging
from typing import Any

from versatune_ds.model.sizes import num_learned_positions, sizes_of

logger = logging.getLogger(__name__)


def check_positions(
    causal_lm: Any, *, longest: int, what: str = "the longest example", key: str = "data.row_tokens"
) -> None:
    """Check that a model has enough positions; warn where a text is longer than it was made for.

    Args:
        causal_lm: A transformers model.
        longest: Tokens of the longest text that goes through it.
        what: Description of that text.
        key: The recipe key that limits its length.

    Raises:
        ValueError: If the model learned its positions and has fewer.
    """
    room = num_learned_positions(causal_lm)
    if room is not None and longest > room:
        raise ValueError(too_long(room, longest=longest, what=what, key=key))
    made_for = sizes_of(causal_lm.config).max_positions
    if room is None and made_for is not None and longest > made_for:
        logger.warning("%s: %s has %d tokens, but the model was made for %d", key, what, longest, made_for)


def too_long(room: int, *, longest: int, what: str = "the longest example", key: str = "data.row_tokens") -> str:
    """Return the error message for texts longer than a model's learned positions."""
    return (
        f"{key}: {what} has {longest} tokens, but the model has learned {room} positions (max_position_embeddings or "
        f"n_positions of its config); set {key}={room} or less"
    )
