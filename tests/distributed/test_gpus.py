"""Where there is a GPU that torch does not see, nothing trains on the CPU unless DS_ACCELERATOR=cpu is set."""

import subprocess
import sys

import pytest
import torch
from command_line import command_of, write_recipe
from tiny_run import ROOT, tiny_config

from versatune_ds.config import SlurmConfig
from versatune_ds.distributed import World
from versatune_ds.distributed.gpus import asks_for_gpus, check_torch_for, check_torch_sees_gpus, gpus_here
from versatune_ds.launch.start import num_visible_gpus
from versatune_ds.preflight import CheckRequest
from versatune_ds.preflight.checks import CHECKS
from versatune_ds.preflight.subject import Subject
from versatune_ds.training.worker import choose_device

NO_CUDA = r"this torch \(\S+\) is built without CUDA: the run would train on the CPU; install a torch with CUDA \("
JOB = {"SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "2", "PATH": "/nowhere"}


@pytest.fixture(autouse=True)
def cpu_wheel(monkeypatch):
    """Pretend that torch is a CPU wheel, on a machine where DS_ACCELERATOR is not set."""
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None, raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("DS_ACCELERATOR")
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID", "SLURM_GPUS_ON_NODE"):
        monkeypatch.setenv(name, "to be restored")
        monkeypatch.delenv(name)


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Put an nvidia-smi that lists two GPUs first on the PATH."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100 (UUID: GPU-1)'\necho 'GPU 1: NVIDIA H100 (UUID: GPU-2)'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    return program


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        ({"PATH": "/nowhere"}, None),
        ({"PATH": "/nowhere", "CUDA_VISIBLE_DEVICES": "0,1"}, None),  # what the deepspeed launcher sets without GPUs
        (JOB, "Slurm gave this job GPUs (SLURM_GPUS_ON_NODE=2)"),
        ({**JOB, "SLURM_GPUS_ON_NODE": "0"}, None),
        ({**JOB, "SLURM_GPUS_ON_NODE": "0", "SLURM_JOB_GPUS": "3"}, "Slurm gave this job GPUs (SLURM_JOB_GPUS=3)"),
        ({"PATH": "/nowhere", "SLURM_GPUS_ON_NODE": "2"}, None),  # left over from another shell
        ({**JOB, "CUDA_VISIBLE_DEVICES": "NoDevFiles"}, None),
        ({**JOB, "CUDA_VISIBLE_DEVICES": ""}, None),
        ({"PATH": "/nowhere", "DS_ACCELERATOR": "cuda"}, "DS_ACCELERATOR=cuda asks for GPUs"),
    ],
)
def test_gpus_are_found_from_slurms_allocation_and_stale_variables_are_ignored(environ, found):
    assert gpus_here(environ) == found


def test_training_on_the_cpu_is_refused_where_nvidia_smi_lists_gpus(nvidia_smi, monkeypatch):
    message = rf"^nvidia-smi lists GPU 0: NVIDIA H100 and others, but {NO_CUDA}"
    for use in (num_visible_gpus, lambda: choose_device(World())):
        with pytest.raises(ValueError, match=message) as error:
            use()
        assert "\n" not in str(error.value)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert num_visible_gpus() == 0
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert num_visible_gpus() == 0
    assert choose_device(World()) == torch.device("cpu")


def test_an_nvidia_smi_without_a_driver_does_not_count_as_a_gpu(nvidia_smi):
    nvidia_smi.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    assert num_visible_gpus() == 0
    assert choose_device(World()) == torch.device("cpu")


def test_a_torch_with_cuda_that_sees_no_gpu_reports_why(monkeypatch):
    def init():
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nPlease update")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", init)
    with pytest.raises(ValueError, match=r"sees no GPU \(The NVIDIA driver on your system is too old"):
        check_torch_sees_gpus(JOB)
    check_torch_for("slurm.gpus_per_node=8", {})  # a login node with the right torch


@pytest.mark.parametrize(
    ("section", "environ", "asked"),
    [
        ({}, {}, None),
        ({"gpus_per_node": 8}, {}, "slurm.gpus_per_node=8"),
        ({"sbatch_options": ["--exclusive", "--gres=gpu:h100:8"]}, {}, "slurm.sbatch_options: --gres=gpu:h100:8"),
        ({"sbatch_options": ["--gpus=8"]}, {}, "slurm.sbatch_options: --gpus=8"),
        ({"sbatch_options": ["--tres-per-task=cpu:8,gres/gpu:1"]}, {}, "slurm.sbatch_options: --tres-per-task=cpu"),
        ({"sbatch_options": ["--gres=lscratch:100", "--constraint=gpu"]}, {}, None),
        ({}, {"SBATCH_GPUS_PER_NODE": "8"}, "SBATCH_GPUS_PER_NODE=8"),
        ({}, {"SBATCH_GRES": "gpu:2"}, "SBATCH_GRES=gpu:2"),
        ({}, {"SBATCH_GRES": "lscratch:100"}, None),
        ({"gpus_per_node": 8, "container": {"image": "x.sif"}}, {}, None),  # the image brings its own torch
        ({"gpus_per_node": 8, "python": "/env/bin/python"}, {}, None),  # so does another environment
    ],
)
def test_every_way_to_request_gpus_from_slurm_is_recognised(section, environ, asked):
    found = asks_for_gpus(SlurmConfig(**section), environ)
    assert found is None if asked is None else found.startswith(asked)


def test_submit_refuses_gpus_for_a_torch_without_cuda_and_explains_how_to_override(tmp_path, capsys, monkeypatch):
    versatune = command_of(capsys)
    recipe = write_recipe(tiny_config(tmp_path, "slurm.gpus_per_node=2"), tmp_path / "tiny.yaml")
    called = versatune("submit", recipe, "--dry-run")
    assert (called.code, called.out) == (2, "")
    assert called.err.startswith("versatune: slurm.gpus_per_node=2 asks for GPUs, but this torch (")
    assert called.err.endswith("set DS_ACCELERATOR=cpu to train on the CPU on purpose\n")
    assert called.err.count("\n") == 1
    assert versatune("submit", recipe, "--dry-run", "slurm.python=/env/bin/python").code == 0
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert versatune("submit", recipe, "--dry-run").code == 0
    monkeypatch.delenv("DS_ACCELERATOR")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert versatune("submit", recipe, "--dry-run").code == 0


@pytest.mark.parametrize(
    ("gpus_per_node", "overrides", "environ", "key"),
    [
        (2, [], {}, "--gpus-per-node=2"),
        (None, ["slurm.gpus_per_node=4"], {}, "slurm.gpus_per_node=4"),
        (None, [], JOB, "Slurm gave this job GPUs"),
        (2, [], {"DS_ACCELERATOR": "cpu"}, None),
        (2, ["slurm.python=/env/bin/python"], {}, None),
        (None, [], {"PATH": "/nowhere"}, None),
    ],
)
def test_check_fails_gpus_that_a_torch_without_cuda_cannot_use(tmp_path, gpus_per_node, overrides, environ, key):
    request = CheckRequest(gpus_per_node=gpus_per_node, environ=environ)
    subject = Subject(tiny_config(tmp_path, *overrides), request, num_gpus_here=0)
    of_gpus = [check for check in CHECKS if (check.name, check.needs) == ("launcher", "GPU")]
    findings = [finding for check in of_gpus for finding in check.find(subject)]
    failures = [finding for finding in findings if finding.level == "FAIL"]
    if key is None:
        assert failures == []
    else:
        (failure,) = failures
        assert failure.key == "torch"
        assert failure.found.startswith(key)
        assert "VERSATUNE_TORCH=cuda" in failure.todo


@pytest.mark.slow
def test_a_rank_in_a_gpu_job_without_cuda_ends_with_one_line(tmp_path, monkeypatch):
    recipe = write_recipe(tiny_config(tmp_path), tmp_path / "tiny.yaml")
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)
    command = [sys.executable, ROOT / "launcher" / "train.py", recipe]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("versatune: Slurm gave this job GPUs (SLURM_GPUS_ON_NODE=2), but")
    assert not (tmp_path / "tiny").exists()
