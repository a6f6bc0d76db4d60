"""Sort small integers in linear time.

The one idea: rows, offsets, lengths and domains of a batch are small integers, so two passes over them sort a batch of
200,000 examples in about a millisecond, where a comparison sort takes twenty.
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def stable_order(key_n: np.ndarray, num_keys: int) -> np.ndarray:
    """Return the positions of integers in 0..num_keys-1 by rising value, equal ones in their order, int64 [n].

    Example: keys 2 0 2 1 give 1 3 0 2.
    """
    start = np.zeros(num_keys + 1, np.int64)
    for key in key_n:
        start[key + 1] += 1
    for key in range(num_keys):
        start[key + 1] += start[key]
    order_n = np.empty(len(key_n), np.int64)
    for i in range(len(key_n)):
        order_n[start[key_n[i]]] = i
        start[key_n[i]] += 1
    return order_n
