"""Count where a piece of code reads a tensor's value into Python: on a GPU each read waits for the device."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

_READS = ("aten::_local_scalar_dense", "aten::is_nonzero", "aten::item")


class _ReadCounter(TorchDispatchMode):
    """Count the operators that give Python a tensor's value, by the function that asked."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.name().partition(".")[0] in _READS:
            self.reads[_caller()] += 1
        return function(*args, **(kwargs or {}))


def _caller() -> str:
    """Return the name of the innermost function that is neither torch's nor in this file."""
    frame = sys._getframe(2)
    while "/torch/" in frame.f_code.co_filename:
        frame = frame.f_back
    return frame.f_code.co_name


@contextmanager
def counted_reads() -> Iterator[Counter[str]]:
    """Count the reads of a block: {function that read: times}."""
    with _ReadCounter() as counter:
        yield counter.reads
