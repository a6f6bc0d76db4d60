"""Processes that share work: their ranks, the GPU that each sees (tested without one), errors, and how they end."""

import multiprocessing
import os
import signal
import time
import warnings
from functools import partial

import pytest
import torch

from versatune_ds.comparison.compare import num_jobs_of
from versatune_ds.distributed import World, barrier
from versatune_ds.launch import process_pool, sharded_pool
from versatune_ds.launch.jobs import Job, places, run_jobs, start_job
from versatune_ds.launch.process_pool import ProcessPool, gpu_names
from versatune_ds.launch.sharded_pool import ShardedPool


def load_place(folder, world):
    (folder / f"loaded-{world.rank}-of-{world.world_size}-{os.getpid()}").touch()
    return world


def as_it_is(world):
    return world


def add_to_rank(world, item):
    time.sleep(0.2)
    if item == 13:
        raise ValueError("detect.sampling: thirteen")
    return item + 100 * world.world_size


def interrupted_import(*arguments):
    """Raise what Python 3.11 makes of an interrupt within an import."""
    raise RuntimeError("Error calling __set_name__") from KeyboardInterrupt()


def test_an_interrupt_within_an_import_reaches_the_caller_of_a_pool_as_an_interrupt(monkeypatch):
    monkeypatch.setattr(process_pool._PROCESS, "loaded", "a model")
    with pytest.raises(KeyboardInterrupt):
        process_pool._work(interrupted_import, interrupted_import, 1)


def interrupted_work():
    """Hear SIGINT, which a test run in the background of a shell ignores, and get one."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("work", [interrupted_import, interrupted_work])
def test_an_interrupted_job_ends_with_130_and_one_line_in_its_log(tmp_path, work):
    codes, job = {}, Job(name="a", work=work, log=tmp_path / "a.log")
    run_jobs([job], num_at_a_time=1, gpus=(), when_done=lambda job, code: codes.update({job.name: code}))
    log = job.log.read_text()
    assert codes == {"a": 130}
    assert "interrupted" in log
    assert "Traceback" not in log


def test_a_pool_of_one_works_in_this_process_and_loads_once(tmp_path):
    with ProcessPool(partial(load_place, tmp_path), num_processes=1) as pool:
        assert list(pool.map(add_to_rank, [1, 2])) == [(1, 101), (2, 102)]
        assert list(pool.map(add_to_rank, [3])) == [(3, 103)]
        assert list(pool.map(add_to_rank, [])) == []
    assert [path.name for path in tmp_path.iterdir()] == [f"loaded-0-of-1-{os.getpid()}"]


@pytest.mark.slow
def test_each_process_of_a_pool_has_a_rank_loads_once_and_its_errors_reach_the_caller(tmp_path):
    with ProcessPool(partial(load_place, tmp_path), num_processes=2) as pool:
        assert dict(pool.map(add_to_rank, range(6))) == {i: i + 200 for i in range(6)}
        with pytest.raises(ValueError, match=r"^detect\.sampling: thirteen$"):
            list(pool.map(add_to_rank, [13]))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert [name.rpartition("-")[0] for name in names] == ["loaded-0-of-2", "loaded-1-of-2"][: len(names)]
    assert str(os.getpid()) not in {name.rpartition("-")[2] for name in names}


def wait_for_all(world, item):
    """Fail at 13, else wait for the other process."""
    if item == 13:
        raise ValueError("detect.sampling: thirteen")
    barrier()
    return item + 100 * world.world_size


def test_in_sharded_evaluation_a_process_that_fails_ends_those_that_wait_for_it_and_its_error_reaches_the_caller(
    monkeypatch,
):
    forked = multiprocessing.get_context("fork")  # spawning imports everything again, which takes ten seconds
    monkeypatch.setattr(process_pool.multiprocessing, "get_context", lambda name: forked)
    with pytest.raises(ValueError, match=r"^detect\.sampling: thirteen$"):  # noqa: PT012, SIM117
        with ShardedPool(as_it_is, num_processes=2) as pool:
            assert dict(pool.map(wait_for_all, range(3))) == {i: i + 200 for i in range(3)}  # the fourth is discarded
            list(pool.map(wait_for_all, [1, 13]))


def test_processes_of_sharded_evaluation_hide_the_warnings_of_torch_about_renamed_functions(monkeypatch):
    def join(world, *, device):
        warnings.warn_explicit("renamed", FutureWarning, "c10d.py", 1, module="torch.distributed.c10d_logger")

    monkeypatch.setattr(sharded_pool, "join_world", join)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        assert sharded_pool._join_and_load(as_it_is, 1, World()) == World()
    assert shown == []


@pytest.mark.parametrize(("count", "visible", "names"), [(2, "", ("0", "1")), (2, "4, 6", ("4", "6")), (0, "4,6", ())])
def test_gpus_have_the_names_that_the_environment_gives_them(monkeypatch, count, visible, names):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu_names() == names


def test_there_is_one_job_a_gpu_or_one_a_core_unless_a_number_is_given(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2}, raising=False)
    assert num_jobs_of(None, gpus=("0", "1")) == 2
    assert num_jobs_of(None, gpus=()) == 3
    assert num_jobs_of(5, gpus=("0",)) == 5
    with pytest.raises(ValueError, match=r"--jobs=0: expected 1 or more"):
        num_jobs_of(0, gpus=())


def test_every_gpu_gets_a_job_before_any_gets_two():
    assert places(3, gpus=("4", "6")) == ["4", "6", "4"]
    assert places(2, gpus=()) == [None, None]


def test_a_job_that_fails_stops_no_other_and_its_log_has_the_reason(tmp_path):
    def broken():
        raise RuntimeError("no disk")

    works = {"good": lambda: 0, "broken": broken, "stopped": lambda: 75}
    jobs = [Job(name=name, work=work, log=tmp_path / "logs" / name) for name, work in works.items()]
    codes = {}
    run_jobs(jobs, num_at_a_time=2, gpus=(), when_done=lambda job, code: codes.update({job.name: code}))
    assert codes == {"good": 0, "broken": 1, "stopped": 75}
    assert "no disk" in (tmp_path / "logs" / "broken").read_text()


def test_a_job_gets_a_signal_when_its_parent_is_killed(tmp_path):
    def work():
        signal.signal(signal.SIGTERM, lambda number, frame: (tmp_path / "told").touch())
        (tmp_path / "begun").touch()
        while not (tmp_path / "told").exists():
            time.sleep(0.01)
        return 0

    job = Job(name="long", work=work, log=tmp_path / "log")
    parent = multiprocessing.get_context("fork").Process(target=lambda: start_job(job, gpu=None).join())
    parent.start()
    wait_for(tmp_path / "begun")
    parent.kill()
    parent.join()
    wait_for(tmp_path / "told")
    assert (tmp_path / "told").exists()


def wait_for(path):
    end = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < end, path
        time.sleep(0.01)


def sees_gpu_six():
    return 0 if os.environ.get("CUDA_VISIBLE_DEVICES") == "6" else 3


@pytest.mark.slow
@pytest.mark.parametrize(("before", "method"), [(None, "spawn"), ("4,6", "forkserver")])
def test_a_job_sees_only_its_gpu_and_the_parents_variable_is_restored(tmp_path, monkeypatch, before, method):
    if before is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", before)
    process = start_job(Job(name="six", work=sees_gpu_six, log=tmp_path / "logs" / "log"), gpu="6", method=method)
    process.join()
    assert process.exitcode == 0
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == before
