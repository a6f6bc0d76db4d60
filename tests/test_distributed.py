"""The world is found from what launchers leave behind, and collectives give every rank the same."""

import numpy as np
import pytest
from ranks import run_ranks

from versatune_ds.distributed import (
    World,
    any_rank,
    broadcast_text,
    check_same_on_all_ranks,
    discover_world,
    run_on_rank_zero,
    sum_over_ranks,
)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, (0, 1, 0, "one process")),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, (3, 8, 1, "deepspeed/torchrun")),
        ({"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1"}, (1, 2, 1, "MPICH")),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "0"},
         (0, 2, 0, "Open MPI")),
        ({"SLURM_PROCID": "5", "SLURM_NTASKS": "6", "SLURM_LOCALID": "2", "SLURM_STEP_ID": "0"}, (5, 6, 2, "Slurm")),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "6", "SLURM_LOCALID": "0"}, (0, 1, 0, "one process")),
    ],
)  # fmt: skip
def test_each_launchers_variables_give_the_place_in_the_world(environ, expected):
    world = discover_world(environ)
    assert (world.rank, world.world_size, world.local_rank, world.launcher) == expected


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"RANK": "x", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, r"^RANK='x': expected a number"),
        ({"RANK": "1"}, r"^WORLD_SIZE=None: expected a number"),
        ({"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, r"^RANK=2 but WORLD_SIZE=2"),
    ],
)
def test_a_broken_environment_is_named(environ, message):
    with pytest.raises(ValueError, match=message):
        discover_world(environ)


def test_sums_flags_and_texts_reach_every_rank(tmp_path):
    def work(world):
        total = sum_over_ranks(np.array([world.rank + 1.0, 0.1]))
        text = broadcast_text("Gewicht ½" if world.is_rank_zero else None, world)
        empty = broadcast_text(None, world)
        return total.tolist(), any_rank(world.rank == 1), any_rank(False), text, empty

    first, second = run_ranks(work, world_size=2, folder=tmp_path)
    assert first == second == ([3.0, 0.2], True, False, "Gewicht ½", "")


def test_ranks_that_disagree_stop_all_ranks_and_are_named(tmp_path):
    def work(world):
        check_same_on_all_ranks("same", world, what="schedule")
        with pytest.raises(RuntimeError, match=r"^schedule: ranks \[2\] do not agree with rank 0") as error:
            check_same_on_all_ranks("a" if world.rank < 2 else "b", world, what="schedule")
        return str(error.value)

    assert len(set(run_ranks(work, world_size=3, folder=tmp_path))) == 1


@pytest.mark.parametrize(
    ("raised", "expected"), [(ValueError("data.folder: none"), ValueError), (OSError("disk"), None)]
)
def test_what_fails_on_rank_zero_fails_on_every_rank(tmp_path, raised, expected):
    def work(world):
        def fail():
            raise raised

        try:
            run_on_rank_zero(fail, world)
        except Exception as error:
            return type(error), str(error)

    first, second = run_ranks(work, world_size=2, folder=tmp_path)
    if expected is ValueError:
        assert first == second == (ValueError, "data.folder: none")
    else:
        assert first == (OSError, "disk")
        assert second == (RuntimeError, "rank 0 failed: OSError('disk')")


def test_a_world_of_one_is_its_own_rank_zero():
    assert World().is_rank_zero
