"""Which GPU each run sees, decided without one."""

import os

import pytest

from versatune_ds.comparison.processes import gpus_of, num_jobs_of, places, start_process


def test_gpus_are_named_as_the_variable_names_them():
    assert gpus_of(2, visible="") == ("0", "1")
    assert gpus_of(2, visible="4, 6") == ("4", "6")
    assert gpus_of(0, visible="4,6") == ()


def test_there_is_one_job_a_gpu_or_one_a_core_unless_asked_otherwise(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2}, raising=False)
    assert num_jobs_of(None, gpus=("0", "1")) == 2
    assert num_jobs_of(None, gpus=()) == 3
    assert num_jobs_of(5, gpus=("0",)) == 5
    with pytest.raises(ValueError, match=r"--jobs=0: expected 1 or more"):
        num_jobs_of(0, gpus=())


def test_every_gpu_has_a_run_before_one_has_two():
    assert places(3, gpus=("4", "6")) == ["4", "6", "4"]
    assert places(2, gpus=()) == [None, None]


def sees_gpu_six():
    return 0 if os.environ.get("CUDA_VISIBLE_DEVICES") == "6" else 3


@pytest.mark.slow
@pytest.mark.parametrize("before", [None, "4,6"])
def test_a_process_sees_its_gpu_alone_and_its_parent_what_it_saw_before(tmp_path, monkeypatch, before):
    if before is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", before)
    process = start_process(sees_gpu_six, log=tmp_path / "logs" / "log", gpu="6")
    process.join()
    assert process.exitcode == 0
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == before
