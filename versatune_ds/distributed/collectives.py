"""Make the few collective calls of the framework: sums, flags and texts, on the CPU.

The one idea: what rank 0 alone does (reading data, writing files, deciding) may take hours, so whoever waits for it
waits for days; a rank that is gone is noticed by the launcher, or by the closed connection, not by a clock.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable

import numpy as np
import torch
import torch.distributed as dist

from versatune_ds.distributed.failures import FAILED_ON_RANK_ZERO
from versatune_ds.distributed.world import World

_PATIENT_TIMEOUT = datetime.timedelta(days=7)


def barrier() -> None:
    """Wait for all ranks, for days if one is busy that long. Communication: one all-reduce of one number on the CPU."""
    options = dist.AllreduceOptions()
    options.timeout = _PATIENT_TIMEOUT
    dist.group.WORLD.allreduce([torch.zeros(1)], options).wait()


def sum_over_ranks(values: np.ndarray) -> np.ndarray:
    """Return the element-wise float64 sum over all ranks, the same bits on each.

    Communication: one all-reduce of `values.size` float64 numbers on the CPU.
    """
    total = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float64).copy())
    dist.all_reduce(total)
    return total.numpy()


def any_rank(flag: bool) -> bool:
    """Return whether the flag is set on at least one rank. Communication: one all-reduce of one number."""
    return bool(sum_over_ranks(np.array([float(flag)]))[0] > 0)


def broadcast_text(text: str | None, world: World) -> str:
    """Return rank 0's text on every rank.

    Communication: two broadcasts (length, bytes) on the CPU; no pickle, and no device is asked. The first waits for
    rank 0 as long as it takes.
    """
    encoded = (text or "").encode()
    length = torch.tensor([len(encoded)])
    _broadcast_patiently(length)
    payload = torch.zeros(int(length), dtype=torch.uint8)
    if world.is_rank_zero and encoded:
        payload = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
    if payload.numel():
        dist.broadcast(payload, src=0)
    return bytes(payload.numpy()).decode()


def _broadcast_patiently(tensor: torch.Tensor) -> None:
    """Fill a CPU tensor with rank 0's, waiting for days where the group's own timeout is half an hour."""
    options = dist.BroadcastOptions()
    options.rootRank, options.rootTensor, options.timeout = 0, 0, _PATIENT_TIMEOUT
    dist.group.WORLD.broadcast([tensor], options).wait()


def check_same_on_all_ranks(text: str, world: World, *, what: str) -> None:
    """Stop every rank when ranks hold different texts.

    Communication: rank 0's text is broadcast, then one all-reduce of a flag per rank.

    Args:
        text: What all ranks must agree on, such as a digest.
        world: This process's place.
        what: How the message names it.

    Raises:
        RuntimeError: On every rank, naming the ranks that differ from rank 0.
    """
    differs_by_rank = np.zeros(world.world_size)
    differs_by_rank[world.rank] = float(broadcast_text(text, world) != text)
    different = np.flatnonzero(sum_over_ranks(differs_by_rank)).tolist()
    if different:
        raise RuntimeError(f"{what}: ranks {different} do not agree with rank 0; stopping before they diverge")


def run_on_rank_zero(action: Callable[[], None], world: World) -> None:
    """Run an action on rank 0 while the others wait, and raise its ValueError on all of them.

    Communication: one broadcast of a text (empty when all went well).

    Raises:
        ValueError: On every rank, if rank 0's action raised it: what a user wrote is wrong.
    """
    message, error = "", None
    if world.is_rank_zero:
        try:
            action()
        except ValueError as raised:
            message = str(raised) or "ValueError"
        except BaseException as raised:  # the others must not wait for a rank that is gone
            message, error = f"{FAILED_ON_RANK_ZERO}{raised!r}", raised
    message = broadcast_text(message, world)
    if error is not None:
        raise error
    if message.startswith(FAILED_ON_RANK_ZERO):
        raise RuntimeError(message)
    if message:
        raise ValueError(message)
