"""How a batch job ends: complete, requeued, given up or failed; srun, squeue and scontrol are fake scripts."""

import json
import signal
import subprocess
import sys
import time

import pytest
from command_line import write_recipe
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import ROOT, tiny_config

from versatune_ds.slurm.job import Starts, _Job, array_overrides, may_resume, step_environment

SRUN = """#!/bin/bash
echo "srun $*" >> calls
case "$*" in *" prepare "*) exit ${PREPARE_CODE:-0} ;; esac
trap 'echo told >> calls; exit 75' USR1
if [ -n "$LATEST" ]; then mkdir -p runs/tiny/checkpoints; echo step_$LATEST > runs/tiny/checkpoints/latest; fi
mkdir -p runs/tiny
if [ -n "$OPENED_BY" ]; then echo "{\\"slurm_job_id\\": \\"$OPENED_BY\\"}" > runs/tiny/environment.json; fi
for i in $(seq ${WAIT:-0}); do sleep 0.1; done
exit ${CODE:-0}
"""
OTHER = """#!/bin/bash
echo "$(basename $0) $*" >> calls
[ "$(basename $0)" = squeue ] && echo "${STATE:-RUNNING}"
exit 0
"""


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Return a function that runs one start of job 12 in an empty folder and returns (exit code, calls, stderr)."""
    write_recipe(tiny_config(tmp_path / "x", "run.output_dir=runs"), tmp_path / "tiny.yaml")
    (tmp_path / "bin").mkdir()
    for name, text in (("srun", SRUN), ("squeue", OTHER), ("scontrol", OTHER)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)

    def start(*arguments, sent=None, **environ):
        (tmp_path / "calls").write_text("")
        base = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "PYTHONPATH": str(ROOT), "SLURM_JOB_ID": "12"}
        process = subprocess.Popen(
            [sys.executable, "-m", "versatune_ds.cli", "job", "tiny.yaml", *arguments],
            cwd=tmp_path, env={**base, **environ}, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        if sent is not None:
            while "srun --kill" not in (tmp_path / "calls").read_text():
                time.sleep(0.02)
            time.sleep(0.2)  # bash needs a moment to set its trap
            process.send_signal(sent)
        _, err = process.communicate(timeout=60)
        return process.returncode, (tmp_path / "calls").read_text().splitlines(), err

    return start


def names(calls):
    return [" ".join(call.split()[:2]) for call in calls if not call.startswith("srun")]


def test_a_complete_run_prepared_once_is_not_requeued(job):
    code, calls, err = job()
    assert (code, names(calls)) == (0, [])
    prepare, train = calls
    assert prepare.startswith("srun --nodes=1 --ntasks=1 ")
    assert prepare.endswith("-m versatune_ds.cli prepare tiny.yaml")
    assert train.endswith("launcher/train.py tiny.yaml")
    assert "run runs/tiny is complete" in err


def test_a_run_that_saved_is_requeued_and_not_prepared_again(job):
    code, calls, err = job(CODE="75", LATEST="00000040")
    assert (code, names(calls)) == (75, ["squeue --noheader", "scontrol requeue"])
    assert calls[-1] == "scontrol requeue 12"
    assert "saved after step 40; requeueing the job" in err
    code, calls, err = job(SLURM_RESTART_COUNT="1")
    assert (code, len(calls)) == (0, 1)
    assert "job 12, start 2" in err
    assert "resumes after step 40" in err


@pytest.mark.parametrize("sent", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_is_passed_on_to_the_ranks_and_the_job_is_requeued(job, sent):
    code, calls, err = job(sent=sent, WAIT="200", LATEST="00000003")
    assert code == 75, err
    assert "told" in calls
    assert calls[-1] == "scontrol requeue 12"
    assert f"{sent.name}: telling the ranks to save and exit" in err


def test_a_signal_during_the_start_of_srun_is_forwarded_once_srun_runs(tmp_path, monkeypatch):
    write_recipe(tiny_config(tmp_path), tmp_path / "tiny.yaml")
    job = _Job(tmp_path / "tiny.yaml", [], is_fresh=False, environ={"SLURM_JOB_ID": "12"})
    sent = []

    class Step:
        def __init__(self, command, env):
            job._pass_on(signal.SIGUSR1, None)

        def send_signal(self, number):
            sent.append(number)

        def wait(self):
            return 75

    monkeypatch.setattr(subprocess, "Popen", Step)
    assert job._run(["srun"]) == 75
    assert sent == [signal.SIGUSR1]


@pytest.mark.parametrize("code", [1, 2, 137])
def test_a_run_that_failed_is_not_requeued_and_refers_to_the_log(job, code):
    left, calls, err = job(CODE=str(code), LATEST="00000040")
    assert (left, names(calls)) == (code, [])
    assert f"the run failed with exit code {code}, at or after step 40, and is not requeued" in err


def test_a_mistake_found_while_preparing_starts_no_ranks(job):
    code, calls, _ = job(PREPARE_CODE="2")
    assert (code, len(calls)) == (2, 1)


def test_a_cancelled_job_is_not_requeued(job):
    code, calls, err = job(CODE="75", STATE="COMPLETING")
    assert (code, names(calls)) == (75, ["squeue --noheader"])
    assert "Slurm itself ends this start (COMPLETING)" in err


@pytest.mark.parametrize(("num_failures", "code"), [(3, 75), (100, 1)])
def test_slurms_controller_is_asked_again_while_it_restarts(tmp_path, monkeypatch, caplog, num_failures, code):
    write_recipe(tiny_config(tmp_path), tmp_path / "tiny.yaml")
    job = _Job(tmp_path / "tiny.yaml", [], is_fresh=False, environ={"SLURM_JOB_ID": "12"})
    answers = ["slurm_load_jobs error: Unable to contact slurm controller"] * num_failures + ["RUNNING", ""]
    monkeypatch.setattr("versatune_ds.slurm.job._output_of", lambda *command: answers.pop(0))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    assert job._requeue() == code
    assert ("Unable to contact slurm controller; submit again" in caplog.text) == (code == 1)


def test_a_job_stops_requeueing_at_its_limit(job):
    code, calls, err = job("slurm.max_requeues=2", CODE="75", LATEST="00000040", SLURM_RESTART_COUNT="1")
    assert (code, names(calls)[-1]) == (75, "scontrol requeue")
    code, calls, err = job("slurm.max_requeues=2", CODE="75", LATEST="00000041", SLURM_RESTART_COUNT="2")
    assert (code, names(calls)) == (1, ["squeue --noheader"])
    assert "slurm.max_requeues=2 is reached" in err


def test_a_job_without_progress_in_two_starts_stops_even_if_slurm_requeues_it(job):
    stuck = {"CODE": "75", "LATEST": "00000040"}
    assert [job(**stuck)[0], job(**stuck)[0]] == [75, 75]  # from 0 to 40, then from 40 to 40
    code, calls, err = job(**stuck)
    assert (code, names(calls)) == (1, ["squeue --noheader"])
    line = "job 12 made no progress in two starts (both began after step 40) and is not requeued"
    assert line in err
    code, calls, err = job(**stuck)
    assert (code, calls) == (1, [])
    assert line in err


def test_fresh_applies_until_the_job_itself_has_begun_the_run(job, tmp_path):
    folder = tmp_path / "runs" / "tiny"
    folder.mkdir(parents=True)
    (folder / "environment.json").write_text(json.dumps({"slurm_job_id": "11"}))  # an older run, by another job
    assert job("--fresh", CODE="143")[1][1].endswith("tiny.yaml --fresh")
    # Requeued before the run was begun: the older run is still to be deleted.
    _, calls, _ = job("--fresh", CODE="75", OPENED_BY="12", LATEST="00000005", SLURM_RESTART_COUNT="1")
    assert calls[1].endswith("tiny.yaml --fresh")
    _, calls, _ = job("--fresh", SLURM_RESTART_COUNT="2")
    assert calls[0].endswith("launcher/train.py tiny.yaml")


def test_each_task_of_an_array_is_a_run_of_its_own(job, tmp_path):
    config = tiny_config(tmp_path, "run.seed=3")
    assert array_overrides(config, {}) == []
    assert array_overrides(config, {"SLURM_ARRAY_TASK_ID": "4"}) == ["run.name=tiny-4", "run.seed=7"]
    _, calls, _ = job("run.name=sweep", SLURM_ARRAY_TASK_ID="4")
    assert calls[-1].endswith("tiny.yaml run.name=sweep run.name=sweep-4 run.seed=7")


def test_outside_an_allocation_the_error_names_the_command_to_use(job):
    code, calls, err = job(SLURM_JOB_ID="")
    assert (code, calls) == (2, [])
    line = "SLURM_JOB_ID is not set: slurm/train.sbatch runs `versatune job`; use `versatune submit`"
    assert err == f"versatune: {line}\n"


@pytest.mark.parametrize(
    ("code", "is_stop_requested", "expected"),
    [(75, 0, True), (143, 0, True), (138, 0, True), (137, 0, False), (1, 0, False), (137, 1, True), (1, 1, False)],
)
def test_only_a_run_that_was_stopped_may_resume(code, is_stop_requested, expected):
    assert may_resume(code, is_stop_requested=bool(is_stop_requested)) is expected


@given(steps=st.lists(st.integers(0, 3), max_size=8), step=st.integers(0, 3))
def test_a_job_is_stuck_exactly_when_its_last_two_starts_began_at_the_current_step(tmp_path_factory, steps, step):
    starts = Starts(tmp_path_factory.mktemp("starts") / "_slurm" / "a.starts")
    for begun in steps:
        starts.add(begun)
    assert starts.steps() == steps
    assert starts.are_stuck_at(step) == (len(steps) > 1 and steps[-1] == steps[-2] == step)


def test_kernels_are_built_on_the_nodes_own_disk_unless_a_folder_is_given(tmp_path):
    config = tiny_config(tmp_path)
    assert step_environment({}, config=config)["TORCH_EXTENSIONS_DIR"].startswith("/tmp/versatune-")
    assert step_environment({"TMPDIR": "/scratch"}, config=config)["TRITON_CACHE_DIR"].startswith("/scratch/versatune-")
    given = {"TORCH_EXTENSIONS_DIR": "/mine", "OMP_NUM_THREADS": "3", "SLURM_CPUS_PER_TASK": "8"}
    environ = step_environment(given, config=tiny_config(tmp_path, "slurm.local_dir=/nvme"))
    assert environ["TRITON_CACHE_DIR"].startswith("/nvme/versatune-")
    assert given.items() <= environ.items()
    assert step_environment({"SLURM_CPUS_PER_TASK": "8"}, config=config)["OMP_NUM_THREADS"] == "8"
