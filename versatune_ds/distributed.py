"""Know which process this is, and make the few collective calls the framework needs, on one process as on many.

The one idea: the world is a value (`World`) found once from the environment and handed on. Control traffic (decisions,
flags, sums of a few numbers) goes through a gloo group on the CPU, so that it never waits for a device.
"""

from __future__ import annotations

import datetime
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

_TIMEOUT = datetime.timedelta(minutes=30)

_LAUNCHERS: dict[str, tuple[str, str, str]] = {
    "deepspeed/torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    "Open MPI": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    "MPICH": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    "Slurm": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
}
"""Launcher -> names of the variables for (rank, world size, local rank), in the order they are believed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Say which process this is and how the others are found."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    launcher: str = "one process"

    @property
    def is_rank_zero(self) -> bool:
        """Return whether this process decides, logs and writes."""
        return self.rank == 0


def discover_world(environ: Mapping[str, str]) -> World:
    """Find this process's place from what its launcher left in the environment.

    A batch script under Slurm runs outside any step and sees SLURM_NTASKS without being a task: Slurm's variables
    count only inside a step other than the script's own.

    Args:
        environ: The environment's variables, usually `os.environ`.

    Raises:
        ValueError: If a launcher's variables are incomplete or no place in a world.
    """
    for launcher, names in _LAUNCHERS.items():
        if names[0] not in environ or (launcher == "Slurm" and not _is_slurm_task(environ)):
            continue
        rank, world_size, local_rank = _read_place(environ, launcher=launcher, names=names)
        return World(rank=rank, world_size=world_size, local_rank=local_rank, launcher=launcher)
    return World()


def _is_slurm_task(environ: Mapping[str, str]) -> bool:
    """Return whether this process was started by srun rather than being a batch script or an interactive shell."""
    return environ.get("SLURM_STEP_ID", "").isdigit()


def _read_place(environ: Mapping[str, str], *, launcher: str, names: tuple[str, str, str]) -> tuple[int, int, int]:
    """Return (rank, world_size, local_rank) of one launcher's variables, checked."""
    values = []
    for name, fallback in zip(names, (None, None, environ.get(names[0])), strict=True):
        text = environ.get(name, fallback)
        if text is None or not text.isdigit():
            raise ValueError(
                f"{name}={text!r}: expected a number, as {launcher} sets it; is the launcher's setup whole?"
            )
        values.append(int(text))
    rank, world_size, local_rank = values
    if rank >= world_size:
        raise ValueError(f"{names[0]}={rank} but {names[1]}={world_size}: a rank lies below the world's size")
    return rank, world_size, local_rank


def join_world(world: World, *, device: torch.device) -> None:
    """Make the process group: nccl for the device's tensors if it is a GPU, gloo for the CPU's in any case."""
    _provide_rendezvous(world)
    for name, value in (("RANK", world.rank), ("WORLD_SIZE", world.world_size), ("LOCAL_RANK", world.local_rank)):
        os.environ[name] = str(value)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, rank=world.rank, world_size=world.world_size, timeout=_TIMEOUT)


def _provide_rendezvous(world: World) -> None:
    """Set MASTER_ADDR and MASTER_PORT where the launcher has not; every rank must come to the same values."""
    if "MASTER_ADDR" in os.environ and "MASTER_PORT" in os.environ:
        return
    if world.world_size == 1:
        address, port = "127.0.0.1", str(free_port())
    elif world.launcher in ("Open MPI", "MPICH"):
        address, port = _agree_through_mpi()
    else:
        raise ValueError(
            f"MASTER_ADDR and MASTER_PORT are not set; {world.launcher} needs both for {world.world_size} ranks"
        )
    os.environ.setdefault("MASTER_ADDR", address)
    os.environ.setdefault("MASTER_PORT", port)


def free_port() -> int:
    """Return a TCP port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _agree_through_mpi() -> tuple[str, str]:
    """Let MPI's rank 0 choose host and port and tell the others. Needs the extra `mpi`."""
    from mpi4py import MPI  # initialises MPI: only where mpirun started us

    comm = MPI.COMM_WORLD
    place = (socket.gethostname(), str(free_port())) if comm.rank == 0 else None
    address, port = comm.bcast(place, root=0)
    return (_local_or(address, comm.size), port)


def _local_or(address: str, world_size: int) -> str:
    """Return the loopback address where a host's own name does not resolve, as in bare containers."""
    try:
        socket.getaddrinfo(address, None)
    except socket.gaierror:
        if world_size <= (os.cpu_count() or 1) * 8:
            return "127.0.0.1"
        raise
    return address


def leave_world() -> None:
    """Destroy the process group; a gloo process that exits without this aborts."""
    if dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    """Wait for all ranks. Communication: one all-reduce of one number on the CPU."""
    sum_over_ranks(np.zeros(1))


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

    Communication: two broadcasts (length, bytes) on the CPU; no pickle, and no device is asked.
    """
    encoded = (text or "").encode()
    length = torch.tensor([len(encoded)])
    dist.broadcast(length, src=0)
    payload = torch.zeros(int(length), dtype=torch.uint8)
    if world.is_rank_zero and encoded:
        payload = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
    if payload.numel():
        dist.broadcast(payload, src=0)
    return bytes(payload.numpy()).decode()


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
            message, error = f"rank 0 failed: {raised!r}", raised
    message = broadcast_text(message, world)
    if error is not None:
        raise error
    if message.startswith("rank 0 failed: "):
        raise RuntimeError(message)
    if message:
        raise ValueError(message)
