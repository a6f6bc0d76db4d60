"""Record which collective calls the package itself starts, when it waits for their results, and the steps between them.

All of torch's collectives, blocking or not, call a method of the process group; a blocking one then waits for its work.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch.distributed as dist

from versatune_ds.engine.engine import Engine

COLLECTIVES = (
    "_allgather_base", "_reduce_scatter_base", "all_gather_single", "all_gather_single_coalesced", "all_to_all_single",
    "allgather", "allgather_coalesced", "allgather_into_tensor_coalesced", "allreduce", "allreduce_coalesced",
    "alltoall", "alltoall_base", "barrier", "broadcast", "gather", "monitored_barrier", "recv", "reduce",
    "reduce_scatter", "reduce_scatter_single", "reduce_scatter_single_coalesced", "reduce_scatter_tensor_coalesced",
    "scatter", "send",
)  # fmt: skip


def record_collectives(events: list[str]) -> None:
    """Append to the events of this process from now on: started, waited, step (its beginning) and stepped (its end).

    Calls of DeepSpeed are not recorded, nor those of a library that it calls.
    """
    for name in COLLECTIVES:
        if (usual := getattr(dist.ProcessGroup, name, None)) is not None:  # versions of torch differ
            setattr(dist.ProcessGroup, name, _recorded(usual, event="started", events=events))
    dist.Work.wait = _recorded(dist.Work.wait, event="waited", events=events)
    train_step = Engine.train_step

    def step(*arguments, **named):
        events.append("step")
        try:
            return train_step(*arguments, **named)
        finally:
            events.append("stepped")

    Engine.train_step = step


def _recorded(usual: Callable, *, event: str, events: list[str]) -> Callable:
    def call(*arguments, **named):
        if _is_ours():
            events.append(event)
        return usual(*arguments, **named)

    return call


def _is_ours() -> bool:
    """Return whether the package called, directly or through torch."""
    frame = sys._getframe(2)
    while frame.f_globals.get("__name__", "").startswith("torch."):
        frame = frame.f_back
    return frame.f_globals.get("__name__", "").startswith("versatune_ds.")
