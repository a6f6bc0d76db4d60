"""Hold examples made in memory in the shape in which shards are read.

The one idea: whatever is scored by its likelihood is an example with loss on some tokens, so held-out rows and the
options of a multiple-choice question go the same way through the model: packed rows, one loss sum an example.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class ExamplesInMemory:
    """Give access to examples by number, as `Shards` of one domain do.

    Attributes:
        name: Domain name.
        lengths: int32, tokens of each example.
        loss_lengths: int32, tokens of each example that bear loss.
    """

    def __init__(self, name: str, examples: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        """Keep (input_ids int32, is_loss bool) pairs; the first token of an example bears no loss."""
        self.name = name
        self._examples = examples
        self.lengths = np.array([len(input_ids) for input_ids, _ in examples], dtype=np.int32)
        self.loss_lengths = np.array([is_loss.sum() for _, is_loss in examples], dtype=np.int32)

    @property
    def num_examples(self) -> int:
        """Return the number of examples."""
        return len(self._examples)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (input_ids, is_loss) of an example."""
        return self._examples[index]


def special_ids_of(tokenizer: object) -> np.ndarray:
    """Return the ids of a tokenizer's special tokens: what stands for the form of a conversation and not for text."""
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return np.array(sorted({*added, *tokenizer.all_special_ids}), dtype=np.int64)
