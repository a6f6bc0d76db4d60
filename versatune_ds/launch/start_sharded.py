"""Start `versatune evaluate --sharded` or `detect --sharded` on several machines, and run it in their processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from versatune_ds.distributed import World
from versatune_ds.launch.launchers import check_allocation, choose_launcher
from versatune_ds.launch.rank_pool import leading, remove_folders, serve
from versatune_ds.launch.start import LaunchOptions, layout_of, num_visible_gpus, run_ranks
from versatune_ds.training.signals import StopSignals
from versatune_ds.training.worker import as_start_error, run_rank, take_place


def start_sharded(
    words: Sequence[str], *, is_sharded: bool, nodes: int | None, hostfile: Path | None, processes: int | None
) -> int:
    """Start the processes of a command, with the launcher that `versatune train` would use; return their exit code.

    Args:
        words: The command line, from the name of the subcommand on.
        is_sharded: Whether it has --sharded.
        nodes: Number of machines.
        hostfile: Machines to start on.
        processes: Processes on each machine; None means one per GPU, or 1 without a GPU.

    Raises:
        ValueError: If the machines or the number of processes are wrong, before any process is started.
    """
    if not is_sharded:
        raise ValueError(
            "--nodes and --hostfile need --sharded: without it the processes of one machine share the work"
        )
    num_gpus = num_visible_gpus()
    options = LaunchOptions(processes=processes, nodes=nodes, hostfile=hostfile)
    layout = layout_of(options, num_gpus=num_gpus)
    launcher = choose_launcher(None, environ=os.environ, num_nodes=layout.nodes)
    if launcher == "srun":
        check_allocation(os.environ)
    elif not layout.hosts:
        os.environ.setdefault("DS_ACCELERATOR", "cuda" if num_gpus else "cpu")
    return run_ranks(launcher, layout, hostfile=hostfile, script="sharded.py", words=words)


def run_sharded_rank(command: Callable[[World], int], *, is_quiet: bool) -> int:
    """Run one process: rank 0 runs the command, whose pools use all of them. Returns the exit code.

    Args:
        command: Gets rank 0's place and returns an exit code.
        is_quiet: Whether only warnings are shown.
    """

    def work(world: World, stop_signals: StopSignals) -> int:
        as_start_error(lambda: take_place(world), world)
        if not world.is_rank_zero:
            as_start_error(lambda: serve(world), world)
            return 0
        with leading(world):
            return as_start_error(lambda: command(world), world)

    return run_rank(work, is_quiet=is_quiet, clean_up=remove_folders)
