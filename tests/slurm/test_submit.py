"""A recipe becomes one sbatch command, and its steps become srun commands; no secret is on any command line."""

import shlex
import subprocess
from pathlib import Path

import pytest
from command_line import command_of, write_recipe
from tiny_run import ROOT, tiny_config

from versatune_ds.run_folder.names import newest_step
from versatune_ds.slurm.job_summary import job_in_words
from versatune_ds.slurm.steps import prepare_step, train_step
from versatune_ds.slurm.submit import log_pattern, outside_of_jobs, sbatch_options

WORKER = str(ROOT / "launcher" / "train.py")


@pytest.fixture
def versatune(capsys):
    return command_of(capsys)


def test_every_key_of_the_section_becomes_an_option_of_sbatch(tmp_path):
    config = tiny_config(
        tmp_path, "slurm.partition=gpu", "slurm.account=lab", "slurm.qos=long", "slurm.constraint=h100",
        "slurm.nodes=4", "slurm.gpus_per_node=8", "slurm.cpus_per_task=12", "slurm.memory=0", "slurm.time=1-12:00:00",
        "slurm.seconds_to_save=600", "slurm.array=0-3%2", "slurm.dependency=afterok:7",
        "slurm.sbatch_options=--exclusive",
    )  # fmt: skip
    assert sbatch_options(config) == [
        "--job-name=tiny", f"--output={tmp_path}/_slurm/tiny-%A_%a.log", "--partition=gpu", "--account=lab",
        "--qos=long", "--constraint=h100", "--nodes=4", "--ntasks-per-node=8", "--gpus-per-node=8",
        "--cpus-per-task=12", "--mem=0",
        "--time=1-12:00:00", "--signal=B:USR1@600", "--array=0-3%2", "--dependency=afterok:7",
        "--kill-on-invalid-dep=yes", "--exclusive",
    ]  # fmt: skip


def test_keys_that_are_not_set_are_left_to_the_cluster(tmp_path):
    config = tiny_config(tmp_path)
    assert sbatch_options(config) == [
        "--job-name=tiny", f"--output={tmp_path}/_slurm/tiny-%j.log", "--nodes=1", "--ntasks-per-node=1",
        "--signal=B:USR1@300",
    ]  # fmt: skip
    assert log_pattern(tiny_config(Path("a%b"))) == "a%%b/_slurm/tiny-%j.log"


@pytest.mark.parametrize(
    ("overrides", "asked"),
    [
        (["slurm.gpus_per_node=8"], ["--cpus-per-task=4"]),
        (["slurm.gpus_per_node=8", "data.num_processes=60"], ["--cpus-per-task=8"]),  # 8 x 8 cores prepare the data
        (["slurm.gpus_per_node=8", "slurm.cpus_per_task=2"], ["--cpus-per-task=2"]),
        (["slurm.gpus_per_node=8", "slurm.sbatch_options=[--cpus-per-gpu=6]"], ["--cpus-per-gpu=6"]),
        (["data.num_processes=60"], []),  # without GPUs the cluster's default
        (["slurm.gpus_per_node=4", "slurm.memory_per_gpu=64G"], ["--cpus-per-task=4", "--mem=256G"]),
        (
            ["slurm.gpus_per_node=2", "slurm.memory_per_gpu=500", "slurm.cpus_per_task=1"],
            ["--cpus-per-task=1", "--mem=1000"],
        ),
    ],
)
def test_cores_and_memory_follow_from_the_gpus_and_the_loader(tmp_path, overrides, asked):
    options = sbatch_options(tiny_config(tmp_path, *overrides))
    assert [option for option in options if option.startswith(("--cpus", "--mem"))] == asked


def test_submit_logs_the_cores_that_it_chose_and_passes_the_jobs_python_on(versatune, tmp_path):
    recipe = write_recipe(tiny_config(tmp_path, "slurm.gpus_per_node=2"), tmp_path / "tiny.yaml")
    called = versatune(
        "submit", recipe, "--dry-run", "slurm.python=python3", "slurm.setup=[module load conda, conda activate my]"
    )
    assert called.code == 0, called.err
    assert "slurm.cpus_per_task is not set: asking for 4 cores a process" in called.err
    words = shlex.split(called.out)
    assert words[:4] == [
        "env",
        "VERSATUNE_PYTHON=python3",
        f"VERSATUNE_ROOT={ROOT}",
        "VERSATUNE_SETUP=module load conda\nconda activate my",
    ]


def run_template(folder, setup):
    """Run the template with lines of set-up that may find a Python in a folder, which prints $MODULE and its words."""
    python = folder / "env" / "my python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\necho "$MODULE" "$@"\n')
    python.chmod(0o755)
    environ = {"PATH": "/usr/bin:/bin", "VERSATUNE_ROOT": str(ROOT), "VERSATUNE_PYTHON": "my python"}
    words = ["bash", ROOT / "slurm" / "train.sbatch", "r.yaml", "run.name=a b"]
    setup = f"export PATH={shlex.quote(str(python.parent))}:$PATH\n{setup}"
    return subprocess.run(words, env={**environ, "VERSATUNE_SETUP": setup}, capture_output=True, text=True, timeout=60)


def test_the_template_runs_the_set_up_lines_before_it_looks_the_python_up(tmp_path):
    done = run_template(tmp_path, "export MODULE='cuda 12'")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "cuda 12 -m versatune_ds.cli job r.yaml run.name=a b\n"


def test_a_line_of_the_set_up_that_fails_is_logged(tmp_path):
    done = run_template(tmp_path, "module() { return 3; }\nmodule load 'cuda 99'\nexport MODULE=none")
    assert done.stderr == "versatune: a line of slurm.setup failed with code 3\n"
    assert (done.returncode, done.stdout[:5]) == (0, "none ")


def test_the_last_line_of_the_set_up_counts_once_and_a_test_in_a_condition_does_not(tmp_path):
    assert run_template(tmp_path, "[ -f /nowhere ] && true\nfalse").stderr.count("failed with code 1") == 1


def test_a_dry_run_shows_a_command_that_bash_understands_and_no_secret(versatune, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "sesame")
    monkeypatch.setenv("HF_TOKEN", "sesame")
    recipe = write_recipe(tiny_config(tmp_path, "slurm.setup=module load 'a b'"), tmp_path / "tiny.yaml")
    called = versatune("submit", recipe, "--dry-run", "--nodes", "2", "--after", "7", "--fresh", "run.name=mine")
    assert called.code == 0, called.err
    assert "sesame" not in called.out + called.err
    words = shlex.split(called.out)
    assert words[0] == "env"
    assert "VERSATUNE_SETUP=module load 'a b'" in words
    start = words.index(str(ROOT / "slurm" / "train.sbatch"))
    assert "sbatch" in words[:start]
    assert "--nodes=2" in words[:start]
    assert words[start + 1 :] == [
        str(recipe), "run.name=mine", "slurm.nodes=2", "slurm.dependency=afterok:7", "--fresh"
    ]  # fmt: skip
    assert not (tmp_path / "_slurm").exists()
    assert f"INFO writes: {tmp_path}/mine, emptied at the job's first start (--fresh); its log is " in called.err


STOPS = (
    "stops: saves 300 seconds before the time limit and when it is preempted, then requeues itself, at most 100 times, "
    "until the run is complete"
)


def test_a_job_is_described_in_words(tmp_path):
    config = tiny_config(tmp_path, "slurm.nodes=2", "slurm.gpus_per_node=8", "slurm.time=24:00:00")
    assert job_in_words(config, is_fresh=False) == [
        "job: tiny, 2 nodes, 8 GPUs each, 16 processes; at most 24:00:00 (slurm.time)",
        STOPS,
        f"writes: {tmp_path}/tiny, from step 0 on; its log is {tmp_path}/_slurm/tiny-JOBID.log",
    ]
    (tmp_path / "tiny" / "checkpoints").mkdir(parents=True)
    (tmp_path / "tiny" / "checkpoints" / "latest").write_text("step_00000400\n")
    job, _, writes = job_in_words(tiny_config(tmp_path), is_fresh=False)
    assert job == "job: tiny, 1 node, no GPU asked for, 1 process; slurm.time is not set: the partition's time limit"
    assert writes.startswith(f"writes: {tmp_path}/tiny, where it resumes after step 400; ")
    *_, writes, starts = job_in_words(
        tiny_config(tmp_path, "slurm.array=0-3", "slurm.dependency=afterok:7"), is_fresh=False
    )
    assert writes == (
        f"writes: a run for each task of 0-3, {tmp_path}/tiny-TASK, seeds from 3 + TASK; its log is "
        f"{tmp_path}/_slurm/tiny-JOBID_TASK.log"
    )
    assert starts == "starts: after afterok:7 (slurm.dependency), and is cancelled where that fails"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nodes", "3"], "train.rows_per_batch: 8 rows do not divide"),
        (["--nodes", "0"], "slurm.nodes: expected 1 or more"),
        (["mixture.prior=/nowhere.json"], "mixture.prior: /nowhere.json: no such file"),
    ],
)
def test_a_mistake_that_would_end_the_job_at_once_is_reported_before_submission(
    versatune, tmp_path, arguments, message
):
    recipe = write_recipe(tiny_config(tmp_path), tmp_path / "tiny.yaml")
    called = versatune("submit", recipe, *arguments)
    assert (called.code, called.out) == (2, "")
    assert message in called.err


def test_a_missing_sbatch_or_its_refusal_is_reported_in_one_line(versatune, tmp_path, monkeypatch):
    recipe = write_recipe(tiny_config(tmp_path), tmp_path / "tiny.yaml")
    monkeypatch.setenv("PATH", str(tmp_path))
    called = versatune("submit", recipe)
    assert (called.code, called.err.count("\n")) == (2, 1)
    assert "sbatch: not found" in called.err
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho 'error: invalid partition' >&2\necho 'no job' >&2\nexit 1\n")
    (tmp_path / "sbatch").chmod(0o755)
    called = versatune("submit", recipe)
    assert (called.code, called.out) == (2, "")
    assert called.err == "versatune: sbatch refused the job: error: invalid partition no job\n"


def test_a_job_submitted_from_within_another_job_inherits_none_of_its_variables():
    shell = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "4", "SLURM_MEM_PER_CPU": "1000"}
    users = {"SLURM_CONF": "/etc/slurm.conf", "SBATCH_PARTITION": "gpu", "HOME": "/root"}
    assert outside_of_jobs({**shell, **users}) == users
    assert outside_of_jobs({"SLURM_NTASKS": "4", **users}) == {"SLURM_NTASKS": "4", **users}


def test_within_a_step_of_srun_the_jobs_steps_share_its_resources(tmp_path):
    config, step = tiny_config(tmp_path), {"SLURM_STEP_ID": "0"}
    assert prepare_step(config, step, python="py")[:2] == ["srun", "--overlap"]
    assert "--overlap" in train_step(config, step, python="py")
    assert "--overlap" not in train_step(config, {"SLURM_STEP_ID": str(2**32 - 5)}, python="py")


def test_srun_starts_as_many_ranks_as_the_job_requests(tmp_path):
    config = tiny_config(tmp_path)
    patience = ["srun", "--kill-on-bad-exit=0", "--wait=60"]
    assert train_step(config, {"SLURM_NTASKS": "4"}, python="py") == [*patience, "py", WORKER]
    assert train_step(config, {"SLURM_NTASKS": "4", "SLURM_CPUS_PER_TASK": "6"}, python="py") == [
        *patience, "--cpus-per-task=6", "py", WORKER
    ]  # fmt: skip
    gpus = {"SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_NUM_NODES": "2"}
    assert train_step(config, gpus, python="py")[3:5] == ["--ntasks=16", "--ntasks-per-node=8"]
    assert train_step(config, {**gpus, "SLURM_NTASKS": "16"}, python="py") == [*patience, "py", WORKER]
    assert prepare_step(config, {"SLURM_CPUS_ON_NODE": "64"}, python="py") == [
        "srun", "--nodes=1", "--ntasks=1", "--ntasks-per-node=1", "--cpus-per-task=64", "py", "-m", "versatune_ds.cli",
        "prepare",
    ]  # fmt: skip


def test_gpus_without_a_task_are_refused_unless_the_run_uses_the_cpu(tmp_path):
    environ = {"SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS": "2"}
    with pytest.raises(ValueError, match=r"^SLURM_NTASKS=2: 2 nodes with 8 GPUs each .* --ntasks-per-node=8, or use"):
        train_step(tiny_config(tmp_path), environ, python="py")
    assert train_step(tiny_config(tmp_path), {**environ, "DS_ACCELERATOR": "cpu"}, python="py")


def test_srun_starts_python_in_the_container_with_project_and_runs_mounted(tmp_path):
    own = [f"{place}:{place}" for place in dict.fromkeys((ROOT, Path.cwd(), tmp_path))]
    pyxis = tiny_config(tmp_path, "slurm.container={image: nvcr.io/x, mounts: ['/data:/data:ro']}")
    assert train_step(pyxis, {}, python="py")[3:] == [
        "--container-image=nvcr.io/x", f"--container-mounts={','.join([*own, '/data:/data:ro'])}",
        f"--container-workdir={Path.cwd()}", "python3", WORKER,
    ]  # fmt: skip
    apptainer = tiny_config(tmp_path, "slurm.container={image: v.sif, kind: apptainer, python: /opt/py}")
    assert train_step(apptainer, {}, python="py")[3:] == [
        "apptainer", "exec", "--nv", f"--pwd={Path.cwd()}", *[f"--bind={mount}" for mount in own], "v.sif", "/opt/py",
        WORKER,
    ]  # fmt: skip


def test_the_newest_step_is_that_of_the_newest_complete_checkpoint(tmp_path):
    assert newest_step(tmp_path) == 0
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "latest").write_text("step_00000040\n")
    assert newest_step(tmp_path) == 40


def test_the_template_is_valid_bash_and_requests_what_a_requeue_needs():
    template = ROOT / "slurm" / "train.sbatch"
    assert subprocess.run(["bash", "-n", template], capture_output=True).returncode == 0
    assert {"#SBATCH --requeue", "#SBATCH --open-mode=append"} <= set(template.read_text().splitlines())
