"""The world is read from the launchers' variables, and collectives return the same on every rank."""

import datetime
import os
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from ranks import run_ranks

from versatune_ds.distributed import (
    World,
    any_rank,
    barrier,
    broadcast_text,
    bytes_from_rank_zero,
    check_same_on_all_ranks,
    from_rank_zero,
    run_on_rank_zero,
    sum_over_ranks,
)
from versatune_ds.distributed.failures import RankZeroError
from versatune_ds.distributed.rendezvous import (
    _agree_through_mpi,
    export_place,
    first_host,
    provide_rendezvous,
    slurm_rendezvous,
)
from versatune_ds.distributed.world import discover_world, expand_counts, num_tasks_on_this_node

SLURM_1_OF_2 = {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0", "SLURM_STEP_ID": "3"}


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
        # Batch script, extern, interactive shell: steps with an id, but without tasks.
        *[({"SLURM_PROCID": "0", "SLURM_NTASKS": "6", "SLURM_LOCALID": "0", "SLURM_STEP_ID": str(2**32 - step)},
           (0, 1, 0, "one process")) for step in (4, 5, 6)],
        # srun --mpi=pmi2
        ({**SLURM_1_OF_2, "PMI_RANK": "1", "PMI_SIZE": "2"}, (1, 2, 0, "Slurm")),
        # srun with RANK and WORLD_SIZE mapped by the user
        ({**SLURM_1_OF_2, "RANK": "1", "WORLD_SIZE": "2"}, (1, 2, 0, "deepspeed/torchrun")),
        # one torchrun on each of two nodes, which numbers the nodes as it likes
        ({**SLURM_1_OF_2, "RANK": "2", "WORLD_SIZE": "8", "LOCAL_RANK": "2", "GROUP_WORLD_SIZE": "2"},
         (2, 8, 2, "deepspeed/torchrun")),
        # mpirun in a batch job: its daemons are Slurm's tasks, one a node
        ({**SLURM_1_OF_2, "PMI_RANK": "5", "PMI_SIZE": "8", "MPI_LOCALRANKID": "1"}, (5, 8, 1, "MPICH")),
        ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}, (1, 2, 1, "deepspeed/torchrun")),
        ({"PMI_RANK": "0", "PMI_SIZE": "1"}, (0, 1, 0, "MPICH")),
    ],
)  # fmt: skip
def test_each_launchers_variables_determine_rank_and_world_size(environ, expected):
    world = discover_world(environ)
    assert (world.rank, world.world_size, world.local_rank, world.launcher) == expected


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"RANK": "x", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, r"^RANK='x': expected a number"),
        ({"RANK": "1"}, r"^WORLD_SIZE=None: expected a number"),
        ({"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, r"^RANK=2 but WORLD_SIZE=2"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, r"^LOCAL_RANK is not set, and the 2 processes may be on several machines"),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, r"^MPI_LOCALRANKID is not set"),
        # left over in the shell that called srun
        ({**SLURM_1_OF_2, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"},
         r"^RANK=0 WORLD_SIZE=1 \(deepspeed/torchrun\), but SLURM_PROCID=1 SLURM_NTASKS=2 \(Slurm\)"),
        ({**SLURM_1_OF_2, "RANK": "0", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}, r"WORLD_SIZE=4 .* SLURM_NTASKS=2"),
        # two launchers in two tasks, each a world of its own
        ({**SLURM_1_OF_2, "RANK": "0", "WORLD_SIZE": "8", "LOCAL_RANK": "0", "GROUP_WORLD_SIZE": "1"},
         r"WORLD_SIZE=8 .* SLURM_NTASKS=2"),
        ({**SLURM_1_OF_2, "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "CROSS_SIZE": "1"}, r"contradict"),
        ({**SLURM_1_OF_2, "PMI_RANK": "0", "PMI_SIZE": "2"}, r"^PMI_RANK=0 PMI_SIZE=2 \(MPICH\), but SLURM_PROCID=1"),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "RANK": "0", "WORLD_SIZE": "1"},
         r"WORLD_SIZE=1 .* OMPI_COMM_WORLD_SIZE=2"),
    ],
)  # fmt: skip
def test_incomplete_or_contradictory_variables_are_refused_by_name(environ, message):
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


def test_texts_of_every_length_arrive_unchanged_and_short_ones_take_one_broadcast(tmp_path):
    # 4,096 bytes go at once: 8 of length, 1 flag, 4,087 of text. Digits of random bytes hardly shrink, zeros do.
    noise = np.random.default_rng(0).bytes(20_000).hex()
    texts = ["", "a", noise[:4086], noise[:4087], noise[:4088], noise, "0" * 100_000, "½" * 3000]

    def work(world):
        sent = []
        broadcast = dist.broadcast
        dist.broadcast = lambda tensor, src: (sent.append(tensor.numel()), broadcast(tensor, src=src))
        received = [broadcast_text(text if world.is_rank_zero else None, world) for text in texts[:4]]
        after_short = list(sent)
        received += [broadcast_text(text if world.is_rank_zero else None, world) for text in texts[4:]]
        return received == texts, after_short, len(sent)

    # Compressed, 4,088 hexadecimal digits and the repetitions fit at once; the 40,000 random ones do not.
    assert run_ranks(work, world_size=2, folder=tmp_path) == [(True, [], 1)] * 2


def test_ranks_that_disagree_stop_all_ranks_and_are_listed(tmp_path):
    def work(world):
        check_same_on_all_ranks("same", world, what="schedule")
        with pytest.raises(RuntimeError, match=r"^schedule: ranks \[2\] do not agree with rank 0") as error:
            check_same_on_all_ranks("a" if world.rank < 2 else "b", world, what="schedule")
        return str(error.value)

    assert len(set(run_ranks(work, world_size=3, folder=tmp_path))) == 1


@pytest.mark.parametrize(
    ("raised", "expected"), [(ValueError("data.folder: none"), ValueError), (OSError("disk"), None)]
)
def test_an_error_on_rank_zero_is_raised_on_every_rank(tmp_path, raised, expected):
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
        assert second == (RankZeroError, "rank 0 failed: OSError('disk')")


def test_a_value_of_rank_zero_stays_there_or_is_broadcast(tmp_path):
    def work(world):
        return run_on_rank_zero(lambda: "own", world), from_rank_zero(lambda: [1, None, "½"], world)

    assert run_ranks(work, world_size=2, folder=tmp_path) == [("own", [1, None, "½"]), (None, [1, None, "½"])]


def test_bytes_of_rank_zero_reach_every_rank_and_its_failure_does_too(tmp_path):
    noise = np.random.default_rng(0).bytes(20_000)

    def failed(world):
        def fail():
            raise ValueError("data.folder: none")

        with pytest.raises(ValueError, match=r"^data\.folder: none$"):
            bytes_from_rank_zero(fail, world)
        return True

    def work(world):
        received = [bytes_from_rank_zero(lambda data=data: data, world) for data in (noise, b"", noise[:4087])]
        return received == [noise, b"", noise[:4087]], failed(world), bytes_from_rank_zero(lambda: b"after", world)

    assert run_ranks(work, world_size=2, folder=tmp_path) == [(True, True, b"after")] * 2
    assert bytes_from_rank_zero(lambda: noise, World()) == noise
    assert failed(World())


def test_one_process_needs_no_process_group():
    world = World()
    assert world.is_rank_zero
    assert not dist.is_initialized()
    barrier()
    assert sum_over_ranks(np.array([1.0, 2.5])).tolist() == [1.0, 2.5]
    assert (any_rank(True), any_rank(False)) == (True, False)
    assert (broadcast_text("text", world), broadcast_text(None, world)) == ("text", "")
    check_same_on_all_ranks("same", world, what="schedule")
    made = object()
    assert run_on_rank_zero(lambda: made, world) is made
    assert from_rank_zero(lambda: {"a": 1}, world) == {"a": 1}


@pytest.mark.parametrize(
    ("node_list", "expected"),
    [
        ("node7", "node7"),
        ("node[01-03,7]", "node01"),
        ("node[01-03,7],gpu1", "node01"),
        ("gpu1,node[1-2]", "gpu1"),
        ("rack[2-3]n[10-12]", "rack2n10"),
        ("a-b[5,9]-ib.example.org,c", "a-b5-ib.example.org"),
    ],
)
def test_the_first_host_of_slurms_short_node_list_is_found(node_list, expected):
    assert first_host(node_list) == expected


def test_slurms_counts_are_expanded_and_give_the_tasks_of_this_node():
    assert expand_counts("2(x3),1") == [2, 2, 2, 1]
    step = {"SLURM_STEP_ID": "0", "SLURM_STEP_TASKS_PER_NODE": "2(x3),1"}
    assert [num_tasks_on_this_node({**step, "SLURM_NODEID": str(node)}) for node in range(5)] == [2, 2, 2, 1, None]
    assert num_tasks_on_this_node({**step, "SLURM_NODEID": "0", "SLURM_STEP_ID": str(2**32 - 5)}) is None
    with pytest.raises(ValueError, match=r"^SLURM_STEP_TASKS_PER_NODE='2x3': expected counts such as"):
        expand_counts("2x3")


@given(counts=st.lists(st.tuples(st.integers(1, 99), st.integers(1, 9)), min_size=1))
def test_short_form_counts_are_expanded_in_full(counts):
    text = ",".join(f"{count}(x{times})" if times > 1 else str(count) for count, times in counts)
    assert expand_counts(text) == [count for count, times in counts for _ in range(times)]


def test_tasks_of_a_slurm_step_meet_on_its_first_node_and_those_of_one_node_on_loopback():
    step = {"SLURM_JOB_ID": "12", "SLURM_STEP_ID": "3", "SLURM_JOB_NODELIST": "node[1-9]"}
    port = 16384 + (12 * 7919 + 3) % 16384
    assert slurm_rendezvous({**step, "SLURM_STEP_NODELIST": "node[04-05]"}) == ("node04", str(port))
    assert slurm_rendezvous(step) == ("node1", str(port))
    assert slurm_rendezvous({**step, "SLURM_STEP_NODELIST": "node04"}) == ("127.0.0.1", str(port))
    with pytest.raises(ValueError, match=r"^SLURM_STEP_NODELIST=None, SLURM_JOB_ID='12': cannot tell where rank 0 is"):
        slurm_rendezvous({"SLURM_JOB_ID": "12", "SLURM_STEP_ID": "3"})


def test_jobs_and_steps_close_to_each_other_meet_on_different_ports():
    def ports(job, steps):
        places = ({"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step), "SLURM_JOB_NODELIST": "n"} for step in steps)
        return [int(slurm_rendezvous(place)[1]) for place in places]

    assert len(set(ports(7, range(1000)))) == 1000
    assert len({port for job in range(1000) for port in ports(job, [0])}) == 1000
    assert all(16384 <= port < 32768 for port in ports(4_000_000_000, range(1000)))


@pytest.fixture
def no_address(monkeypatch):
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "to be restored")
        monkeypatch.delenv(name)


def test_plain_srun_needs_no_address_from_the_user(monkeypatch, no_address):
    for name, value in {"SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "n[1-2]"}.items():
        monkeypatch.setenv(name, value)
    provide_rendezvous(World(rank=1, world_size=2, launcher="Slurm"))
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("n1", str(16384 + 7919))


def test_both_variables_that_deepspeed_compares_get_the_device_index(monkeypatch, no_address):
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_RANK", "3")
    world = World(rank=7, world_size=8, local_rank=3)
    export_place(world, device=torch.device("cuda", 0))
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK")
    assert [os.environ[name] for name in names] == ["7", "8", "0", "0"]
    export_place(world, device=torch.device("cpu"))
    assert [os.environ[name] for name in names] == ["7", "8", "3", "3"]


class FakeComm:
    """MPI's world as rank 0 sees it: `size` processes, `num_here` of them on this machine."""

    rank = 0

    def __init__(self, size, num_here):
        self.size, self.num_here = size, num_here

    def Split_type(self, kind):
        return SimpleNamespace(size=self.num_here)

    def bcast(self, value, root):
        return value


def fake_mpi(monkeypatch, *, size, num_here):
    mpi = SimpleNamespace(COMM_WORLD=FakeComm(size, num_here), COMM_TYPE_SHARED=1)
    monkeypatch.setitem(sys.modules, "mpi4py", SimpleNamespace(MPI=mpi))


def test_mpis_rank_zero_chooses_loopback_only_when_all_ranks_share_its_machine(monkeypatch):
    world = World(world_size=4, launcher="MPICH")
    monkeypatch.setattr("socket.gethostname", lambda: "head")
    fake_mpi(monkeypatch, size=4, num_here=4)
    assert _agree_through_mpi(world)[0] == "127.0.0.1"
    fake_mpi(monkeypatch, size=4, num_here=2)
    assert _agree_through_mpi(world)[0] == "head"


def test_an_mpirun_of_another_mpi_than_mpi4py_is_refused(monkeypatch):
    fake_mpi(monkeypatch, size=1, num_here=1)
    message = r"^mpirun \(Open MPI\) started rank 0 of 4, but mpi4py sees rank 0 of 1: they belong to different MPIs"
    with pytest.raises(ValueError, match=message) as error:
        _agree_through_mpi(World(world_size=4, launcher="Open MPI"))
    assert "\n" not in str(error.value)


def test_mpirun_without_mpi4py_is_refused_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(ValueError, match=r"mpi4py cannot be loaded .*pip install"):
        _agree_through_mpi(World(world_size=2, launcher="MPICH"))


def test_ranks_wait_for_rank_zero_longer_than_the_groups_timeout(tmp_path):
    def work(world):
        dist.distributed_c10d._set_pg_timeout(datetime.timedelta(milliseconds=200))
        return from_rank_zero(lambda: time.sleep(1.0) or "slept", world)

    assert run_ranks(work, world_size=2, folder=tmp_path) == ["slept", "slept"]
