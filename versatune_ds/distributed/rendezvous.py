"""Join and leave the process group: find rank 0's address and port, then initialise torch.distributed.

Every rank derives the same address by itself, or receives it from rank 0 through MPI.
"""

from __future__ import annotations

import datetime
import logging
import os
import re
import socket
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from versatune_ds.distributed.interfaces import set_gloo_interface
from versatune_ds.distributed.roll_call import join_roll_call, logging_the_wait_for_rank_zero
from versatune_ds.distributed.world import World

logger = logging.getLogger(__name__)

TIMEOUT = datetime.timedelta(minutes=30)
_RECONNECT_TIMEOUT = datetime.timedelta(seconds=10)

_FIRST_PORT, _NUM_PORTS = 16384, 16384
"""Ports below 32768, where Linux starts to assign ports to outgoing connections."""


def join_world(world: World, *, device: torch.device, is_one_machine: bool = True) -> None:
    """Make the process group: nccl for the device's tensors if it is a GPU, gloo for the CPU's in any case.

    Args:
        world: This process's rank and the number of ranks.
        device: Its device.
        is_one_machine: Whether all ranks are on this machine; otherwise gloo is given the interface to use.

    Raises:
        ValueError: If the address of rank 0 is not known, or MPI sees another world than its launcher set.
        RuntimeError: On rank 0, if a rank has not joined within half an hour.
    """
    provide_rendezvous(world)
    store = None
    if world.world_size > 1 or not is_one_machine:
        store = connect_store(is_host=is_store_host(world))  # until the process group, which uses the same server
        join_roll_call(world, store, limit_seconds=TIMEOUT.total_seconds())
    if store is not None and not is_one_machine:
        interface = set_gloo_interface(os.environ["MASTER_ADDR"], store=store, world_size=world.world_size)
        if interface is not None and world.is_rank_zero:
            logger.info("gloo connects the machines through %s, %s (GLOO_SOCKET_IFNAME chooses another)", *interface)
    export_place(world, device=device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, rank=world.rank, world_size=world.world_size, timeout=TIMEOUT)


def export_place(world: World, *, device: torch.device) -> None:
    """Export this process's rank and chosen device for DeepSpeed, through the environment.

    deepspeed 0.19.8 uses LOCAL_RANK as the index of the GPU. It differs from the local rank where each process sees
    one GPU only (srun --gpus-per-task=1), and DeepSpeed would then ask for a GPU that is not there. It also asserts
    that Open MPI's variable says the same.
    """
    local_rank = str(world.local_rank if device.index is None else device.index)
    os.environ.update(RANK=str(world.rank), WORLD_SIZE=str(world.world_size), LOCAL_RANK=local_rank)
    if "OMPI_COMM_WORLD_LOCAL_RANK" in os.environ:
        os.environ["OMPI_COMM_WORLD_LOCAL_RANK"] = local_rank


def provide_rendezvous(world: World) -> None:
    """Set MASTER_ADDR and MASTER_PORT where the launcher has not; every rank must find the same values."""
    if "MASTER_ADDR" in os.environ and "MASTER_PORT" in os.environ:
        return
    if world.world_size == 1:
        address, port = "127.0.0.1", str(free_port())
    elif world.launcher in ("Open MPI", "MPICH"):
        address, port = _agree_through_mpi(world)
    elif world.launcher == "Slurm":
        address, port = slurm_rendezvous(os.environ)
    else:
        raise ValueError(
            f"MASTER_ADDR and MASTER_PORT are not set; {world.launcher} needs both for {world.world_size} ranks"
        )
    os.environ.setdefault("MASTER_ADDR", address)
    os.environ.setdefault("MASTER_PORT", port)


def is_store_host(world: World) -> bool:
    """Return whether this process serves the rendezvous store: rank 0, unless torchrun's agent does."""
    return world.is_rank_zero and not is_agent_store()


def is_agent_store() -> bool:
    """Return whether torchrun's agent on rank 0's machine serves the rendezvous store."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def reconnect_store() -> dist.Store | None:
    """Connect to the rendezvous store again; None if nothing answers at its address within seconds."""
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        socket.create_connection(address, timeout=_RECONNECT_TIMEOUT.total_seconds()).close()
        return connect_store(is_host=False, timeout=_RECONNECT_TIMEOUT)
    except (OSError, RuntimeError):
        return None


def connect_store(*, is_host: bool, world: World | None = None, timeout: datetime.timedelta = TIMEOUT) -> dist.Store:
    """Connect to the rendezvous store; the process group uses the same server.

    torchrun's agent keeps its store when it restarts the ranks, so each attempt has its own prefix.

    Args:
        is_host: Whether this process serves the store.
        world: This process's place, where a long wait for rank 0 is to be logged: at the first connection.
        timeout: How long to wait for rank 0.
    """
    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    is_logged = not is_host and world is not None and (world.rank == 1 or world.local_rank == 0)
    with logging_the_wait_for_rank_zero(f"{address}:{port}", is_logged=is_logged):
        store = dist.TCPStore(
            address, int(port), is_master=is_host, timeout=timeout, wait_for_workers=False, multi_tenant=True
        )
    return dist.PrefixStore(f"versatune/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def free_port() -> int:
    """Return a TCP port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def slurm_rendezvous(environ: Mapping[str, str]) -> tuple[str, str]:
    """Return address and port of rank 0, the same on every task of the step: all see the same node list and ids.

    Slurm gives rank 0 to the first node of the step's list, unless the user requested an arbitrary order. A step on
    one node meets on the loopback address, since a node's name need not resolve there.

    Raises:
        ValueError: If Slurm's variables lack the step's nodes.
    """
    node_list = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST")
    job_id = environ.get("SLURM_JOB_ID", "")
    if not node_list or not job_id.isdigit():
        raise ValueError(
            f"SLURM_STEP_NODELIST={node_list!r}, SLURM_JOB_ID={job_id!r}: cannot tell where rank 0 is; "
            "export MASTER_ADDR and MASTER_PORT before srun"
        )
    host = first_host(node_list)
    # An odd factor: jobs fewer than 16384 apart have different ports, and so have the steps of one job.
    port = _FIRST_PORT + (int(job_id) * 7919 + int(environ["SLURM_STEP_ID"])) % _NUM_PORTS
    return ("127.0.0.1" if host == node_list else host), str(port)


def first_host(node_list: str) -> str:
    """Return the first host of Slurm's short form of a node list: `node[01-03,7],gpu1` begins with node01."""
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", node_list).split(",")[0]


def _agree_through_mpi(world: World) -> tuple[str, str]:
    """Let MPI's rank 0 choose host and port and broadcast them. Needs the extra `mpi`.

    Communication: a split of MPI's world by shared memory, then one broadcast.

    Raises:
        ValueError: If mpi4py cannot be loaded, or belongs to another MPI than the mpirun that started this process.
    """
    mpi = _load_mpi()
    comm = mpi.COMM_WORLD
    if (comm.rank, comm.size) != (world.rank, world.world_size):
        raise ValueError(
            f"mpirun ({world.launcher}) started rank {world.rank} of {world.world_size}, but mpi4py sees rank "
            f"{comm.rank} of {comm.size}: they belong to different MPIs; use the mpirun that mpi4py was built for, or "
            "export MASTER_ADDR and MASTER_PORT, and mpi4py is not asked"
        )
    is_one_machine = comm.Split_type(mpi.COMM_TYPE_SHARED).size == comm.size
    place = None
    if comm.rank == 0:
        # A host's own name may not resolve, as in bare containers: it is used only where other machines must find it.
        place = ("127.0.0.1" if is_one_machine else socket.gethostname(), str(free_port()))
    return comm.bcast(place, root=0)


def _load_mpi() -> Any:
    """Return mpi4py's MPI, which initialises MPI when loaded: only where mpirun started us."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py is there, an MPI library is not
        raise ValueError(
            f"mpirun started this process, but mpi4py cannot be loaded ({error}); "
            "pip install -e '.[mpi]', or export MASTER_ADDR and MASTER_PORT"
        ) from error
    return MPI


def leave_world() -> None:
    """Destroy the process group; a gloo process that exits without this aborts."""
    if dist.is_initialized():
        dist.destroy_process_group()
