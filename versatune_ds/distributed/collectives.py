"""Collective calls on the CPU: sums, flags, texts, and work that rank 0 does for all.

One process needs no process group: every call then returns its own value without communication.

Rank 0 alone may read data, write files or decide for hours, so the calls that wait for it have a timeout of days. A
rank that is gone is noticed by the launcher or by the closed connection, not by a clock.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist

from versatune_ds.distributed.failures import RankZeroError
from versatune_ds.distributed.world import World

T = TypeVar("T")

_PATIENT_TIMEOUT = datetime.timedelta(days=7)


def barrier() -> None:
    """Wait for all ranks, for days if one is busy that long. Communication: one all-reduce of one number on the CPU."""
    if not dist.is_initialized():
        return
    options = dist.AllreduceOptions()
    options.timeout = _PATIENT_TIMEOUT
    dist.group.WORLD.allreduce([torch.zeros(1)], options).wait()


def sum_over_ranks(values: np.ndarray) -> np.ndarray:
    """Return the element-wise float64 sum over all ranks, the same bits on each.

    Communication: one all-reduce of `values.size` float64 numbers on the CPU.
    """
    total = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float64).copy())
    if dist.is_initialized():
        dist.all_reduce(total)
    return total.numpy()


def any_rank(flag: bool) -> bool:
    """Return whether the flag is set on at least one rank. Communication: one all-reduce of one number."""
    return bool(sum_over_ranks(np.array([float(flag)]))[0] > 0)


def broadcast_text(text: str | None, world: World) -> str:
    """Return rank 0's text on every rank.

    Communication: two broadcasts (length, bytes) on the CPU, without pickle and without a device. The first waits for
    rank 0 as long as it takes.
    """
    if world.world_size == 1:
        return text or ""
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
    """Stop every rank where ranks have different texts, such as digests; `what` describes them in the message.

    Communication: rank 0's text is broadcast, then one all-reduce of a flag per rank.

    Raises:
        RuntimeError: On every rank; it lists the ranks that differ from rank 0.
    """
    differs_by_rank = np.zeros(world.world_size)
    differs_by_rank[world.rank] = float(broadcast_text(text, world) != text)
    different = np.flatnonzero(sum_over_ranks(differs_by_rank)).tolist()
    if different:
        raise RuntimeError(f"{what}: ranks {different} do not agree with rank 0; stopping before they diverge")


def run_on_rank_zero(action: Callable[[], T], world: World) -> T | None:
    """Run an action on rank 0 while the others wait; return its value on rank 0 and None elsewhere.

    Communication: one broadcast of a text.

    Raises:
        ValueError: On every rank, if rank 0's action raised it: what a user wrote is wrong.
        RankZeroError: On the other ranks, if rank 0's action raised anything else.
    """
    value: T | None = None
    error: BaseException | None = None
    if world.is_rank_zero:
        try:
            value = action()
        except BaseException as raised:  # the others must not wait for a rank that is gone
            error = raised
    failure = json.loads(broadcast_text(json.dumps(_describe(error)), world))
    if error is not None:
        raise error
    if failure is not None:
        raise ValueError(failure["text"]) if failure["is_user_error"] else RankZeroError(failure["text"])
    return value


def from_rank_zero(action: Callable[[], T], world: World) -> T:
    """Run an action on rank 0 and return its value, which must be JSON-able, on every rank.

    Communication: two broadcasts of a text: whether it failed, then the value.

    Raises:
        ValueError: As `run_on_rank_zero` does.
    """
    value = run_on_rank_zero(action, world)
    return json.loads(broadcast_text(json.dumps(value), world))


def _describe(error: BaseException | None) -> dict[str, str | bool] | None:
    """Return what the other ranks must know of rank 0's error, None where there is none."""
    if error is None:
        return None
    if isinstance(error, ValueError):
        return {"is_user_error": True, "text": str(error) or type(error).__name__}
    return {"is_user_error": False, "text": f"rank 0 failed: {error!r}"}
