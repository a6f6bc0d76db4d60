"""Collective calls on the CPU: sums, flags, texts, and work that rank 0 does for all.

One process needs no process group: every call then returns its own value without communication.

Rank 0 alone may read data, write files or decide for hours, so the calls that wait for it have a timeout of days. A
rank that is gone is noticed by the launcher or by the closed connection, not by a clock.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import zlib
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from versatune_ds.distributed.failures import RankZeroError
from versatune_ds.distributed.world import World

T = TypeVar("T")

_PATIENT_TIMEOUT = datetime.timedelta(days=7)

_FIRST_BYTES = 4096
"""Length of the first broadcast of a text: nearly every text fits."""
_LENGTH_BYTES = 8
_TEXT, _COMPRESSED_TEXT, _BYTES = 0, 1, 2


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

    Communication: one broadcast of 4 KiB on the CPU, which waits for rank 0 as long as it takes; a second one of the
    rest where the text, compressed, is longer. Without pickle and without a device.
    """
    if world.world_size == 1:
        return text or ""
    return unpacked_text(_broadcast_packed(packed_text(text or "") if world.is_rank_zero else b""))


def _broadcast_packed(packed: bytes) -> bytes:
    """Return rank 0's bytes, which begin with their number, on every rank; what the others give is ignored."""
    is_rank_zero = dist.get_rank() == 0
    first = _as_tensor(packed[:_FIRST_BYTES].ljust(_FIRST_BYTES, b"\0"))
    _broadcast_patiently(first)
    received = bytes(first.numpy())
    num_bytes = int.from_bytes(received[:_LENGTH_BYTES], "little")
    if num_bytes > _FIRST_BYTES:
        rest = _as_tensor(packed[_FIRST_BYTES:] if is_rank_zero else bytes(num_bytes - _FIRST_BYTES))
        dist.broadcast(rest, src=0)
        received += bytes(rest.numpy())
    return received[:num_bytes]


def packed_text(text: str) -> bytes:
    """Return a text as bytes with their number in front, compressed where it would not fit the first broadcast."""
    encoded = text.encode()
    is_compressed = len(encoded) > _FIRST_BYTES - _LENGTH_BYTES - 1
    body = zlib.compress(encoded, level=1) if is_compressed else encoded
    return _packed(body, kind=_COMPRESSED_TEXT if is_compressed else _TEXT)


def unpacked_text(packed: bytes) -> str:
    """Return the text of `packed_text`."""
    kind, body = packed[_LENGTH_BYTES], packed[_LENGTH_BYTES + 1 :]
    return (zlib.decompress(body) if kind == _COMPRESSED_TEXT else body).decode()


def _packed(body: bytes, *, kind: int) -> bytes:
    """Return bytes with their number and their kind in front."""
    return (_LENGTH_BYTES + 1 + len(body)).to_bytes(_LENGTH_BYTES, "little") + bytes([kind]) + body


def _as_tensor(data: bytes) -> torch.Tensor:
    """Return bytes as a CPU tensor of its own."""
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _broadcast_patiently(tensor: torch.Tensor) -> None:
    """Fill a CPU tensor with rank 0's, waiting for days where the group's own timeout is half an hour."""
    options = dist.BroadcastOptions()
    options.rootRank, options.rootTensor, options.timeout = 0, 0, _PATIENT_TIMEOUT
    dist.group.WORLD.broadcast([tensor], options).wait()


def texts_of_ranks(text: str, world: World) -> list[str]:
    """Return the texts of all ranks by rank, on every rank.

    Communication: one all-reduce of a number a rank, one of all texts' bytes; both on the CPU, without pickle.
    """
    encoded = text.encode()
    lengths = np.zeros(world.world_size)
    lengths[world.rank] = len(encoded)
    lengths = sum_over_ranks(lengths).astype(int)  # below 2^53, so exact in float64
    ends = np.cumsum(lengths)
    starts = ends - lengths
    joined = bytearray(int(ends[-1]))
    joined[starts[world.rank] : ends[world.rank]] = encoded
    if dist.is_initialized() and joined:
        tensor = torch.frombuffer(joined, dtype=torch.uint8)  # shares memory; each byte is zero on all ranks but one
        dist.all_reduce(tensor)
    return [bytes(joined[start:end]).decode() for start, end in zip(starts, ends, strict=True)]


def check_same_on_all_ranks(text: str, world: World, *, what: str) -> None:
    """Stop every rank where ranks have different texts, such as digests; `what` describes them in the message.

    Communication: one all-reduce of 64 bytes, however long the text is. Where ranks differ, rank 0's digest is
    broadcast and one all-reduce finds out which.

    Raises:
        RuntimeError: On every rank; it lists the ranks that differ from rank 0.
    """
    if world.world_size == 1:
        return
    # The largest and, by its negative, the smallest value of each part of the digest: equal only where all ranks agree.
    digest = hashlib.blake2b(text.encode(), digest_size=32).digest()
    parts = torch.frombuffer(bytearray(digest), dtype=torch.int64) >> 1
    largest = torch.cat([parts, -parts])
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    if torch.equal(largest[: len(parts)], -largest[len(parts) :]):
        return
    differs_by_rank = np.zeros(world.world_size)
    differs_by_rank[world.rank] = float(broadcast_text(digest.hex(), world) != digest.hex())
    different = np.flatnonzero(sum_over_ranks(differs_by_rank)).tolist()
    raise RuntimeError(f"{what}: ranks {different} do not agree with rank 0; stopping before they diverge")


def run_on_rank_zero(action: Callable[[], T], world: World) -> T | None:
    """Run an action on rank 0 while the others wait; return its value on rank 0 and None elsewhere.

    Communication: one broadcast of a text.

    Raises:
        ValueError: On every rank, if rank 0's action raised it: what a user wrote is wrong.
        RankZeroError: On the other ranks, if rank 0's action raised anything else.
    """
    value, _ = _run_and_send(action, world, sent=lambda value: None)
    return value


def from_rank_zero(action: Callable[[], T], world: World) -> T:
    """Run an action on rank 0 and return its value, which must be JSON-able, on every rank.

    Communication: one broadcast of a text.

    Raises:
        ValueError: As `run_on_rank_zero` does.
    """
    _, received = _run_and_send(action, world, sent=lambda value: value)
    return received


def _run_and_send(action: Callable[[], T], world: World, *, sent: Callable[[T], Any]) -> tuple[T | None, Any]:
    """Run an action on rank 0; return its value (None elsewhere), and what is sent of it as every rank reads it."""
    value, error, failure = _attempt(action, world)
    message = ""
    if world.is_rank_zero and error is None:
        try:
            message = json.dumps({"value": sent(value)})
        except BaseException as raised:  # the others must not wait for a rank that is gone
            error, failure = raised, _describe(raised)
    received = json.loads(broadcast_text(message or json.dumps({"failure": failure}), world))
    _raise_failure(error, received.get("failure"))
    return value, received["value"]


def bytes_from_rank_zero(action: Callable[[], bytes], world: World) -> bytes:
    """Run an action on rank 0 and return its bytes on every rank.

    Communication: as one broadcast of a text, not compressed.

    Raises:
        ValueError, RankZeroError: As `run_on_rank_zero` does.
    """
    data, error, failure = _attempt(action, world)
    if world.world_size == 1:
        _raise_failure(error, failure)
        return data or b""
    sent = _packed(data or b"", kind=_BYTES) if failure is None else packed_text(json.dumps(failure))
    packed = _broadcast_packed(sent)
    is_failed = packed[_LENGTH_BYTES] != _BYTES
    _raise_failure(error, json.loads(unpacked_text(packed)) if is_failed else None)
    return packed[_LENGTH_BYTES + 1 :]


def _attempt(action: Callable[[], T], world: World) -> tuple[T | None, BaseException | None, dict[str, Any] | None]:
    """Run an action on rank 0; return its value there, or its error and what the others must know of it."""
    if not world.is_rank_zero:
        return None, None, None
    try:
        return action(), None, None
    except BaseException as raised:  # the others must not wait for a rank that is gone
        return None, raised, _describe(raised)


def _raise_failure(error: BaseException | None, failure: dict[str, Any] | None) -> None:
    """Raise rank 0's own error there, and elsewhere what it means for a rank that waited; nothing without a failure."""
    if error is not None:
        raise error
    if failure is not None:
        raise ValueError(failure["text"]) if failure["is_user_error"] else RankZeroError(failure["text"])


def _describe(error: BaseException) -> dict[str, str | bool]:
    """Return what the other ranks must know of rank 0's error."""
    if isinstance(error, ValueError):
        return {"is_user_error": True, "text": str(error) or type(error).__name__}
    return {"is_user_error": False, "text": f"rank 0 failed: {error!r}"}
