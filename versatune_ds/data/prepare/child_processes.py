"""End the processes that tokenise when this one ends, however it ends.

`datasets` starts its own workers and offers no hook. If their parent is killed, they block forever and keep their
memory. On Linux each child can ask the kernel, after its fork, to be killed with its parent.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import signal
import sys
import threading
from collections.abc import Iterator

_PR_SET_PDEATHSIG = 1
_is_asked_for = threading.Event()


@contextlib.contextmanager
def ending_with_parent() -> Iterator[None]:
    """Have children forked within the block killed when this process dies; elsewhere than on Linux, do nothing."""
    if sys.platform == "linux":
        _watch_forks()
        _is_asked_for.set()
    try:
        yield
    finally:
        _is_asked_for.clear()


@functools.cache
def _watch_forks() -> None:
    """Register, once a process, what children do after a fork."""
    library = ctypes.CDLL(None)  # loaded here: a child of a process with threads should load nothing

    def ask_in_child() -> None:
        if _is_asked_for.is_set():
            library.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    os.register_at_fork(after_in_child=ask_in_child)
