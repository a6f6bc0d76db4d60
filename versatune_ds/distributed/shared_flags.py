"""Exchange flags of all ranks while something else runs, so that no rank waits for the slowest one.

A rank's flags are read when the exchange starts. So what is set later is seen by the next exchange, on every rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist


class SharedFlags:
    """Flags that are set on at least one rank: `start` an exchange, and get its result later, in this order.

    One process exchanges nothing: its flags are read when the result is asked for.
    """

    def __init__(self) -> None:
        self._read: Callable[[], Sequence[bool]] | None = None
        self._total: torch.Tensor | None = None
        self._work: dist.Work | None = None

    def start(self, read: Callable[[], Sequence[bool]]) -> None:
        """Start to exchange the flags that `read` returns, as many on every rank; an unread result is discarded.

        Communication: one all-reduce of a number a flag on the CPU, which nothing waits for here.
        """
        self._read, self._work = read, None
        if dist.is_initialized() and dist.get_world_size() > 1:
            self._total = torch.tensor([float(flag) for flag in read()])
            self._work = dist.all_reduce(self._total, async_op=True)

    def result(self) -> tuple[bool, ...]:
        """Return which flags were set on any rank, the same on all; every `start` has one result.

        Communication: waits for the end of the exchange, which is over where every rank has started its own.
        """
        assert self._read is not None, "start it first"
        read, self._read = self._read, None
        if self._work is None:
            return tuple(bool(flag) for flag in read())
        self._work.wait()
        self._work = None
        return tuple((self._total > 0).tolist())
