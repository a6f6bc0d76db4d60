"""The real launchers start real processes: train, resume, refuse; each process gets its device and its threads."""

import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from tiny_run import ROOT, losses_by_step, read_lines, tiny_config

from versatune_ds.config import DataConfig, DomainFiles, load_config
from versatune_ds.data.sources.domain_files import check_data_files
from versatune_ds.distributed import World
from versatune_ds.launch import start as launch_module
from versatune_ds.launch.launchers import (
    Layout,
    check_allocation,
    choose_launcher,
    launcher_command,
    num_nodes_given,
    read_hostfile,
)
from versatune_ds.launch.start import LaunchOptions, check_processes, device_flag, launch
from versatune_ds.training.start_checks import StartCheckInput, check_start
from versatune_ds.training.worker import choose_device, device_index, num_local_processes, set_threads, take_place

NO_FILE = "no such file or folder: 'gone.jsonl'; a Hub data set is written {hub: owner/name}"
VERSATUNE = [sys.executable, "-m", "versatune_ds.cli"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("launch")
    config = tiny_config(folder).model_dump(mode="json")
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def versatune(*arguments):
    return subprocess.run([*VERSATUNE, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def launched(recipe):
    """Train `launched` for 6 steps on 2 processes and return the finished command."""
    result = versatune("train", recipe, "--processes", 2, "run.name=launched", "train.steps=6")
    assert result.returncode == 0, result.stderr
    return result


@pytest.mark.slow
def test_train_starts_two_processes_and_prints_the_table_and_a_second_call_only_prints_it(recipe, launched):
    first = launched
    run_dir = recipe.parent / "launched"
    assert f"run directory  {run_dir}" in first.stdout
    assert f"report         {run_dir / 'report' / 'index.html'}" in first.stdout
    assert (run_dir / "report" / "index.html").is_file()
    metrics = (run_dir / "metrics.jsonl").read_text()
    assert read_lines(run_dir / "metrics.jsonl")[-1]["step"] == 6
    again = versatune("train", recipe, "--processes", 2, "run.name=launched", "train.steps=6")
    assert again.returncode == 0, again.stderr
    assert "is complete after step 6" in again.stderr
    assert "starting: " in first.stderr
    assert "starting: " not in again.stderr
    assert f"run directory  {run_dir}" in again.stdout
    assert (run_dir / "metrics.jsonl").read_text() == metrics


@pytest.mark.slow
def test_one_process_needs_no_launcher_and_a_users_mistake_ends_it_with_code_two(recipe):
    worker = ROOT / "launcher" / "train.py"
    command = [sys.executable, worker, recipe, "run.name=alone", "train.steps=2"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    refused = subprocess.run([*command, "train.rows_per_micro_batch=3"], cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1].startswith("versatune: train.rows_per_batch: 8 rows do not divide")


@pytest.mark.slow
def test_a_mistake_in_the_recipe_is_reported_before_any_process_is_started(recipe):
    result = versatune("train", recipe, "--processes", 2, "mixture.sigme=1")
    assert result.returncode == 2
    assert result.stderr == "versatune: mixture.sigme: unknown key; did you mean 'sigma'?\n"
    assert not list(Path(recipe.parent).glob("tiny/*"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.folder=gone", "data.folder: gone/train is not a folder; expected gone/train/DOMAIN.jsonl"),
        (
            "data.domains={law: {train: gone.jsonl, valid: gone.jsonl}}",
            "\n".join(f"data.domains.law.{split}: {NO_FILE}" for split in ("train", "valid")),
        ),
        ("mixture.reference=null", "mixture.reference: policy 'versatune' needs reference losses and none are given"),
        (
            "model={name_or_path: ./runs/gone/export}",
            "model.name_or_path: ./runs/gone/export: no such folder; `versatune export runs/gone` writes a run's model",
        ),
    ],
)
def test_a_missing_file_is_reported_before_any_process_is_started(tmp_path, monkeypatch, override, message):
    monkeypatch.setattr(launch_module, "run_ranks", lambda *arguments, **settings: pytest.fail("started"))
    values = tiny_config(tmp_path).model_dump(mode="json", exclude_defaults=True)
    key = override.partition("=")[0]
    if key.startswith("data."):
        del values["data"]["synthetic"]
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({name: part for name, part in values.items() if name != key}))
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        launch(path, [override], options=LaunchOptions(processes=1))


def test_files_that_an_earlier_job_makes_may_be_missing_at_submission(tmp_path):
    config = tiny_config(
        tmp_path, "data.synthetic=null", "data.folder=gone", "model={name_or_path: ./gone}",
        "slurm.dependency=afterok:7",
    )  # fmt: skip
    check_start(StartCheckInput(config=config, stage="submit"))


def test_a_data_set_of_the_hub_is_not_downloaded_by_the_start_checks(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *names, **settings: pytest.fail("fetched"))
    hub = DataConfig(domains={"law": DomainFiles(train=({"hub": "owner/name"},), valid=())})
    check_data_files(hub, cache_dir=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [2, 4])
def test_a_real_mpirun_trains_to_the_losses_of_the_deepspeed_launcher(recipe, launched, num_processes):
    mpirun = Path(sys.executable).with_name("mpirun")
    if not mpirun.is_file() or importlib.util.find_spec("mpi4py") is None:
        pytest.skip(f"needs mpi4py and {mpirun}: pip install -e '.[mpi]'")
    name, options = f"by_mpi_{num_processes}", ["--launcher", "mpirun", "--processes", num_processes]
    result = versatune("train", recipe, *options, f"run.name={name}", "train.steps=6")
    assert result.returncode == 0, result.stderr
    assert f"mpirun -n {num_processes} " in result.stderr
    run_dir = recipe.parent / name
    environment = json.loads((run_dir / "environment.json").read_text())
    assert (environment["world_size"], environment["launcher"]) == (num_processes, "MPICH")
    losses, expected = losses_by_step(run_dir), losses_by_step(recipe.parent / "launched")
    assert sorted(losses) == [1, 2, 3, 4, 5, 6]
    assert served_tokens(run_dir) == served_tokens(recipe.parent / "launched")
    # Two processes compute what two others do; four see the same rows, but each draws dropout of its own.
    assert losses == (expected if num_processes == 2 else pytest.approx(expected, rel=2e-3))


def served_tokens(run_dir):
    """Return the tokens of each domain served up to each step."""
    lines = [line for line in read_lines(run_dir / "metrics.jsonl") if "train/loss" in line]
    return [{key: value for key, value in line.items() if key.endswith("/num_tokens")} for line in lines]


def test_each_launchers_command_is_what_a_user_would_type(tmp_path):
    hostfile, four = tmp_path / "hosts", Layout(processes=4)
    two = Layout(processes=2, hosts={"a": 2, "b": 2}, nodes=2)
    torchrun = launcher_command("torchrun", four, hostfile=None, devices="")
    assert torchrun == [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4"]
    mpirun = launcher_command("mpirun", two, hostfile=hostfile, devices="")
    assert mpirun[1:] == ["-n", "4", "-host", "a:2,b:2", sys.executable]
    assert launcher_command("mpirun", four, hostfile=None, devices="")[1:] == ["-n", "4", sys.executable]
    srun = launcher_command("srun", Layout(processes=8, nodes=2), hostfile=None, devices="")
    assert srun[0] == "srun"
    assert srun[-4:] == ["--nodes=2", "--ntasks=16", "--ntasks-per-node=8", sys.executable]
    deepspeed = launcher_command("deepspeed", two, hostfile=hostfile, devices="")
    assert deepspeed[1:4] == [f"--hostfile={hostfile}", "--num_nodes=2", "--num_gpus=2"]


@pytest.mark.parametrize(
    ("launcher", "layout", "has_hostfile", "message"),
    [
        ("deepspeed", Layout(processes=1, nodes=2), False, r"^--nodes=2: deepspeed needs --hostfile"),
        ("torchrun", Layout(processes=1, nodes=2), True, r"^--hostfile: torchrun reads none; take --launch"),
        ("srun", Layout(processes=1, nodes=2), True, r"^--hostfile: srun reads none; Slurm chooses the machines"),
    ],
)
def test_a_layout_that_the_launcher_cannot_start_is_refused(launcher, layout, has_hostfile, message):
    with pytest.raises(ValueError, match=message):
        launcher_command(launcher, layout, hostfile=Path("hosts") if has_hostfile else None, devices="")


def test_inside_an_allocation_srun_is_the_launcher_unless_another_is_requested():
    assert choose_launcher(None, environ={}) == "deepspeed"
    assert choose_launcher(None, environ={"SLURM_JOB_ID": "7"}) == "srun"
    assert choose_launcher("mpirun", environ={"SLURM_JOB_ID": "7"}) == "mpirun"


@pytest.mark.parametrize(("exit_code", "is_refused"), [(0, False), (1, True)])
def test_stale_variables_of_an_unknown_slurm_job_are_refused(tmp_path, monkeypatch, exit_code, is_refused):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f"#!/bin/sh\necho 'slurm_load_jobs error: Invalid job id specified' >&2\nexit {exit_code}\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    if not is_refused:
        assert check_allocation({"SLURM_JOB_ID": "77"}) is None
        return
    with pytest.raises(ValueError, match=r"^SLURM_JOB_ID=77: Slurm shows no such job \(slurm_load_jobs error: Invalid"):
        check_allocation({"SLURM_JOB_ID": "77"})


STEP = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_NODES": "1", "SLURM_JOB_NUM_NODES": "4"}


def test_within_a_step_of_srun_the_processes_share_the_steps_resources(monkeypatch):
    assert choose_launcher(None, environ=STEP) == "deepspeed"
    assert choose_launcher(None, environ=STEP, num_nodes=2) == "srun"
    interactive = {**STEP, "SLURM_STEP_ID": str(2**32 - 6)}  # the shell of salloc, which has no resources of its own
    assert choose_launcher(None, environ=interactive) == "srun"
    assert [num_nodes_given(environ) for environ in (STEP, interactive, {})] == [1, 4, 1]
    for environ, has_overlap in ((STEP, True), (interactive, False), ({"SLURM_JOB_ID": "7"}, False)):
        for name in STEP:
            monkeypatch.delenv(name, raising=False)
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        command = launcher_command("srun", Layout(processes=1, nodes=2), hostfile=None, devices="")
        assert ("--overlap" in command) is has_overlap


def test_a_command_that_srun_started_as_several_tasks_is_refused_but_not_in_a_shell_of_srun(recipe, monkeypatch):
    for name, value in {**STEP, "SLURM_STEP_NUM_TASKS": "4"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"^srun started this command 4 times \(SLURM_STEP_NUM_TASKS\)"):
        launch(recipe, [], options=LaunchOptions())
    for changed in ({"SLURM_PTY_PORT": "40001"}, {"SLURM_STEP_NUM_TASKS": "1"}, {"SLURM_STEP_ID": str(2**32 - 5)}):
        environ = {**STEP, "SLURM_STEP_NUM_TASKS": "4", **changed}
        check_start(StartCheckInput(config=load_config(recipe, []), stage="detect", environ=environ))


def test_a_hostfile_names_machines_and_their_processes(tmp_path):
    path = tmp_path / "hosts"
    path.write_text("# the cluster\nalpha slots=8\n\nbeta slots=4  # older\n")
    assert read_hostfile(path, nodes=None, processes=None) == {"alpha": 8, "beta": 4}
    assert read_hostfile(path, nodes=1, processes=2) == {"alpha": 2}
    assert Layout(processes=0, hosts={"alpha": 8, "beta": 4}, nodes=2).num_processes == 12
    with pytest.raises(ValueError, match=r"hosts: lists 2 machines, expected 3 or more$"):
        read_hostfile(path, nodes=3, processes=None)
    for line in ("alpha", "alpha slots=x", "alpha slots=1 more", "beta slots=0", "a slots=1\na slots=2"):
        path.write_text(line)
        with pytest.raises(ValueError, match=r"hosts:\d: .*: expected a machine, once, as in: node1 slots=8$"):
            read_hostfile(path, nodes=None, processes=None)
    with pytest.raises(ValueError, match=r"^--hostfile=nowhere: no such file$"):
        read_hostfile(Path("nowhere"), nodes=None, processes=None)


def test_the_deepspeed_launcher_gets_the_first_visible_gpus_in_order():
    assert device_flag(2, cuda_visible_devices="") == "--num_gpus=2"
    assert device_flag(2, cuda_visible_devices="2,3") == "--include=localhost:2,3"
    assert device_flag(1, cuda_visible_devices="5, 1") == "--include=localhost:5"
    with pytest.raises(ValueError, match=r"^CUDA_VISIBLE_DEVICES=GPU-8e5a: expected numbers such as 0,1"):
        device_flag(1, cuda_visible_devices="GPU-8e5a")
    command = launcher_command("deepspeed", Layout(processes=1), hostfile=None, devices="--include=localhost:2")
    assert "--include=localhost:2" in command
    assert not any("--num_gpus" in argument for argument in command)


def test_deepspeed_parses_the_include_flag_as_those_gpus():
    from deepspeed.launcher.runner import parse_args, parse_inclusion_exclusion

    include = parse_args([device_flag(2, cuda_visible_devices="3,1,0"), "train.py"]).include
    assert dict(parse_inclusion_exclusion({"localhost": 4}, include, "")) == {"localhost": [1, 3]}


def test_the_number_of_processes_is_one_per_gpu_unless_given():
    assert [check_processes(None, num_gpus=n) for n in (0, 1, 8)] == [1, 1, 8]
    assert [check_processes(3, num_gpus=n) for n in (0, 3, 8)] == [3, 3, 3]


@pytest.mark.parametrize(
    ("processes", "num_gpus", "message"),
    [
        (-1, 0, r"^--processes=-1: expected 1 or more$"),
        (0, 0, r"^--processes=0: expected 1 or more$"),
        (0, 4, r"^--processes=0: expected 1 to 4, the GPUs seen on this machine"),
        (5, 4, r"^--processes=5: expected 1 to 4, the GPUs seen on this machine; DS_ACCELERATOR=cpu trains without"),
    ],
)
def test_an_impossible_number_of_processes_is_refused(processes, num_gpus, message):
    with pytest.raises(ValueError, match=message):
        check_processes(processes, num_gpus=num_gpus)


@pytest.fixture
def four_gpus(monkeypatch):
    """Pretend that torch sees four GPUs; return the device that was set."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for name in ("DS_ACCELERATOR", "CUDA_VISIBLE_DEVICES", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "MPI_LOCALNRANKS"):
        monkeypatch.setenv(name, "to be restored")
        monkeypatch.delenv(name)
    return chosen


@pytest.mark.parametrize(
    ("accelerator", "visible", "processes", "expected"),
    [
        (None, None, None, ["--num_gpus=4"]),
        (None, "4,5,6,7", 2, ["--include=localhost:4,5"]),
        ("cpu", "4,5,6,7", 6, ["--num_gpus=6"]),
        ("cpu", None, None, ["--num_gpus=1"]),
    ],
)
def test_launch_uses_the_visible_gpus_unless_the_cpu_is_chosen(
    monkeypatch, four_gpus, recipe, accelerator, visible, processes, expected
):
    for name, value in (("DS_ACCELERATOR", accelerator), ("CUDA_VISIBLE_DEVICES", visible)):
        if value is not None:
            monkeypatch.setenv(name, value)
    commands = []
    run_and_forward = "versatune_ds.launch.start.run_and_forward"
    monkeypatch.setattr(run_and_forward, lambda command, **_: commands.append(command) or 0)
    launch(recipe, ["train.rows_per_batch=24"], options=LaunchOptions(processes=processes, is_quiet=True))
    flags = [argument for argument in commands[0] if argument.startswith(("--num_gpus", "--include"))]
    assert flags == expected
    assert os.environ["DS_ACCELERATOR"] == (accelerator or "cuda")


def test_gpus_named_by_uuid_are_refused_by_the_deepspeed_launcher_only(monkeypatch, four_gpus, recipe):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8e5a,GPU-91c0")
    commands = []
    run_and_forward = "versatune_ds.launch.start.run_and_forward"
    monkeypatch.setattr(run_and_forward, lambda command, **_: commands.append(command) or 0)
    launch(recipe, [], options=LaunchOptions(launcher="torchrun", processes=2))
    assert "--nproc-per-node=2" in commands[0]
    with pytest.raises(ValueError, match=r"^CUDA_VISIBLE_DEVICES=GPU-8e5a,.*or use --launcher torchrun$"):
        launch(recipe, [], options=LaunchOptions(launcher="deepspeed", processes=2))


def test_a_process_uses_the_gpu_of_its_local_rank_or_the_cpu_if_chosen(monkeypatch, four_gpus):
    assert choose_device(World(rank=7, world_size=8, local_rank=3)) == torch.device("cuda", 3)
    assert four_gpus == [torch.device("cuda", 3)]
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert choose_device(World(rank=7, world_size=8, local_rank=3)) == torch.device("cpu")


def test_more_processes_than_gpus_is_an_error_on_every_process(monkeypatch, four_gpus):
    monkeypatch.setenv("MPI_LOCALNRANKS", "5")
    for local_rank in (0, 4):
        with pytest.raises(ValueError, match=r"^5 processes on this machine see 4 GPUs: expected a GPU for each"):
            choose_device(World(rank=local_rank, world_size=5, local_rank=local_rank))


def test_a_machine_with_too_few_gpus_logs_its_name_where_rank_zero_is_on_another(monkeypatch, four_gpus, caplog):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    monkeypatch.setattr("versatune_ds.training.worker.set_threads", lambda: None)
    for local_rank in range(2):
        with pytest.raises(ValueError, match="8 processes on this machine see 4 GPUs"):
            take_place(World(rank=8 + local_rank, world_size=16, local_rank=local_rank, launcher="torchrun"))
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{platform.node()}: 8 processes on this machine see 4 GPUs")


def test_a_process_that_sees_one_gpu_uses_index_zero(monkeypatch, four_gpus):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    world = World(rank=3, world_size=4, local_rank=3)
    with pytest.raises(ValueError, match=r"^4 processes on this machine see 1 GPU:"):
        choose_device(world)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    assert choose_device(world) == torch.device("cuda", 0)
    with pytest.raises(ValueError, match=r"^4 processes on this machine see 2 GPUs"):
        device_index(1, num_gpus=2, num_local=4, is_one_gpu_given=False)


@pytest.mark.parametrize(
    ("environ", "num_cores", "expected"),
    [
        ({}, 8, 8),
        ({"MPI_LOCALNRANKS": "4"}, 8, 2),
        ({"MPI_LOCALNRANKS": "4"}, 2, 2),  # bound by mpirun: these two cores are its own
        ({"SLURM_STEP_ID": "0", "SLURM_NODEID": "1", "SLURM_STEP_TASKS_PER_NODE": "1,2"}, 8, 4),
        ({"SLURM_STEP_ID": "0", "SLURM_NODEID": "1", "SLURM_STEP_TASKS_PER_NODE": "1,2"}, 3, 3),
        ({"LOCAL_SIZE": "2"}, 4, 2),  # the deepspeed launcher binds nothing: both share four cores
        ({"MPI_LOCALNRANKS": "16"}, 8, 1),
    ],
)
def test_processes_divide_the_machines_cores_but_not_those_they_are_bound_to(monkeypatch, environ, num_cores, expected):
    names = ("OMP_NUM_THREADS", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    chosen = []
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(num_cores)), raising=False)
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    set_threads()
    assert chosen == [expected]


def test_a_batch_jobs_tasks_per_node_do_not_count_for_a_single_process(monkeypatch):
    for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "4")
    assert num_local_processes() == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["mixture.policy=no_such_module:X"], r"^mixture\.policy: no_such_module:X: cannot import 'no_such_module'"),
        (
            ["mixture.policy=steer", "mixture.target=laws"],
            r"^mixture\.target: unknown domain 'laws'; did you mean 'law'",
        ),
    ],
)
def test_a_policy_and_a_target_that_do_not_exist_are_found_before_any_process_is_started(tmp_path, overrides, message):
    config = tiny_config(tmp_path, *overrides)
    with pytest.raises(ValueError, match=message):
        check_start(StartCheckInput(config=config, stage="train", num_processes=1, device_type="cpu", is_here=True))
