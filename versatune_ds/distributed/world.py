"""Find this process's rank and world size from its launcher's environment variables.

Launchers nest (torchrun under srun, mpirun in a batch job), so several may have set variables. The innermost is used,
and one that contradicts those around it is an error: a wrong rank means two runs in one folder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_LAUNCHERS: dict[str, tuple[str, str, str]] = {
    "deepspeed/torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    "Open MPI": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    "MPICH": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    "Slurm": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
}
"""Launcher -> names of the variables for (rank, world size, local rank), the innermost first."""

_NUM_LAUNCHERS = ("GROUP_WORLD_SIZE", "CROSS_SIZE")
"""Number of launchers that form one world: torchrun's variable, the deepspeed launcher's."""

_FIRST_RESERVED_STEP = 0xFFFFFFF0
"""Slurm's step ids from here on are not steps of tasks: batch script, extern, interactive shell, pending."""

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Which process this is, of how many, and which launcher started it."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    launcher: str = "one process"

    @property
    def is_rank_zero(self) -> bool:
        """Return whether this process decides, logs and writes."""
        return self.rank == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Variables of one launcher; the local rank is None where it sets none."""

    launcher: str
    rank: int
    world_size: int
    local_rank: int | None

    def __str__(self) -> str:
        rank, world_size, _ = _LAUNCHERS[self.launcher]
        return f"{rank}={self.rank} {world_size}={self.world_size}"

    def is_same_as(self, other: _Place) -> bool:
        return (self.rank, self.world_size) == (other.rank, other.world_size)


def discover_world(environ: Mapping[str, str]) -> World:
    """Return this process's place from its launchers' environment variables.

    A batch script under Slurm runs outside any step and sees SLURM_NTASKS without being a task: Slurm's variables
    count only inside a step of tasks.

    Raises:
        ValueError: If a launcher's variables are incomplete, impossible, or contradict another launcher's.
    """
    places = [
        _read_place(environ, launcher=launcher)
        for launcher, names in _LAUNCHERS.items()
        if names[0] in environ and (launcher != "Slurm" or is_slurm_task(environ))
    ]
    if not places:
        return World()
    place = places[0]
    for outer in places[1:]:
        _check_nesting(place, outer, environ)
    same = [other for other in places if other.is_same_as(place)]
    if place.launcher == "MPICH" and same[-1].launcher == "Slurm":
        place, same = same[-1], same[::-1]  # srun --mpi=pmi2 sets PMI_RANK, but not MPICH's local rank
    local_ranks = [other.local_rank for other in same if other.local_rank is not None]
    local_rank = local_ranks[0] if local_ranks else _local_rank_on_one_machine(place, environ)
    return World(rank=place.rank, world_size=place.world_size, local_rank=local_rank, launcher=place.launcher)


def _read_place(environ: Mapping[str, str], *, launcher: str) -> _Place:
    """Return one launcher's variables, checked."""
    rank_name, size_name, local_name = _LAUNCHERS[launcher]
    rank, world_size = (_read_number(environ, name, launcher=launcher) for name in (rank_name, size_name))
    local_rank = _read_number(environ, local_name, launcher=launcher) if local_name in environ else None
    if rank >= world_size:
        raise ValueError(f"{rank_name}={rank} but {size_name}={world_size}: a rank lies below the world's size")
    return _Place(launcher=launcher, rank=rank, world_size=world_size, local_rank=local_rank)


def _read_number(environ: Mapping[str, str], name: str, *, launcher: str) -> int:
    """Return a variable's number."""
    text = environ.get(name)
    if text is None or not text.isdigit():
        raise ValueError(
            f"{name}={text!r}: expected a number, as {launcher} sets it; is the launcher's setup complete?"
        )
    return int(text)


def _check_nesting(inner: _Place, outer: _Place, environ: Mapping[str, str]) -> None:
    """Check that a place fits into that of the launcher around it.

    Either both agree, or each process of the outer launcher is a launcher of its own: `srun torchrun`, one
    torchrun a node, or mpirun, which starts a daemon on each node through srun. Then there are at least as many inner
    launchers as outer processes. Fewer means that each of those would be a world of its own.

    Raises:
        ValueError: If they contradict each other; the message has both launchers' variables.
    """
    if inner.is_same_as(outer):
        return
    num_launchers = next((int(environ[name]) for name in _NUM_LAUNCHERS if environ.get(name, "").isdigit()), None)
    if inner.launcher == "deepspeed/torchrun":
        fits = num_launchers is not None and num_launchers >= outer.world_size
    else:
        fits = inner.world_size > outer.world_size
    if not fits:
        raise ValueError(
            f"{inner} ({inner.launcher}), but {outer} ({outer.launcher}): these contradict each other; "
            "start the processes with one of the two launchers, and unset the other's variables"
        )


def _local_rank_on_one_machine(place: _Place, environ: Mapping[str, str]) -> int:
    """Return the local rank where no launcher sets it, which is certain on one machine only.

    Raises:
        ValueError: If the world may span machines.
    """
    if place.world_size == 1 or environ.get("MASTER_ADDR") in _LOOPBACK:
        return place.rank
    raise ValueError(
        f"{_LAUNCHERS[place.launcher][2]} is not set, and the {place.world_size} processes may be on several machines; "
        "set it to this process's number on its machine, from 0"
    )


def is_slurm_task(environ: Mapping[str, str]) -> bool:
    """Return whether srun started this process as a task, rather than as a batch script or an interactive shell."""
    step_id = environ.get("SLURM_STEP_ID", "")
    return step_id.isdigit() and int(step_id) < _FIRST_RESERVED_STEP


def num_tasks_on_this_node(environ: Mapping[str, str]) -> int | None:
    """Return how many tasks of the step share this node; None outside a task or without Slurm's counts."""
    counts, node = environ.get("SLURM_STEP_TASKS_PER_NODE"), environ.get("SLURM_NODEID", "")
    if not is_slurm_task(environ) or not counts or not node.isdigit():
        return None
    num_tasks_by_node = expand_counts(counts)
    return num_tasks_by_node[int(node)] if int(node) < len(num_tasks_by_node) else None


def expand_counts(text: str) -> list[int]:
    """Return Slurm's short form of counts in full: `2(x3),1` is [2, 2, 2, 1].

    Raises:
        ValueError: If the text is not of that form.
    """
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise ValueError(f"SLURM_STEP_TASKS_PER_NODE={text!r}: expected counts such as 2(x3),1")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts
