"""Present a fixed subset of a domain's examples like a complete domain.

The subset depends only on the run's seed, the domain's name and its size. So the same held-out examples are measured at
every update and after every resume, and changes between measurements are paired.
"""

from __future__ import annotations

import numpy as np

from versatune_ds.data.order.permutation import domain_key, draw_indices
from versatune_ds.data.shards import DomainShards


class ExampleSubset:
    """Some examples of a domain's shards, in the order of the shards.

    Attributes:
        name: The domain's name.
        num_examples: Examples in the subset.
        indices: int64 [num_examples], rising, in the complete domain. A smaller subset is part of a larger one.
        lengths: int32 [num_examples] tokens of each example.
        loss_lengths: int32 [num_examples] tokens that bear loss.
    """

    def __init__(self, shards: DomainShards, *, max_examples: int, seed: int) -> None:
        """Choose the examples.

        Args:
            shards: The complete domain.
            max_examples: Size of the subset; of a smaller domain all examples are used.
            seed: The run's seed.
        """
        count = min(max_examples, shards.num_examples)
        key = domain_key(seed, f"subset of {shards.name}")
        _, indices = draw_indices(key, first_draw=0, count=count, size=max(shards.num_examples, 1))
        self._shards = shards
        self.indices = np.sort(indices)
        self.name = shards.name
        self.num_examples = count
        self.lengths = np.asarray(shards.lengths)[self.indices]
        self.loss_lengths = np.asarray(shards.loss_lengths)[self.indices]

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (input_ids, is_loss) of an example of the subset."""
        return self._shards.read(int(self.indices[index]))
