"""A run that is interrupted from outside, under the real launcher: Ctrl-C saves, a killed rank takes the job down."""

import os
import signal
import subprocess
import sys
import time

import pytest
import yaml
from tiny_run import ROOT, losses_by_step, read_lines, tiny_config

from versatune_ds.exit_codes import REQUEUE_EXIT_CODE
from versatune_ds.training.checkpoint import whole_checkpoints

NUM_STEPS = 150


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("interrupted")
    config = tiny_config(folder, f"train.steps={NUM_STEPS}", "checkpoint.every=50", "mixture.update_every=50")
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return path


def start(recipe, name):
    """Start a run on two processes in a process group of its own, and wait until it trains."""
    command = [sys.executable, "-m", "versatune_ds.cli", "train", recipe, "--processes", "2", f"run.name={name}"]
    with (recipe.parent / f"{name}.log").open("a") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
    metrics = recipe.parent / name / "metrics.jsonl"
    end = time.monotonic() + 120
    while not (metrics.is_file() and "train/loss" in metrics.read_text()):
        assert process.poll() is None, (recipe.parent / f"{name}.log").read_text()
        assert time.monotonic() < end, "the run did not begin to train"
        time.sleep(0.05)
    return process


def finish(recipe, name):
    process = start(recipe, name)
    assert process.wait(timeout=240) == 0, (recipe.parent / f"{name}.log").read_text()
    return recipe.parent / name


@pytest.mark.slow
def test_ctrl_c_saves_and_the_next_start_goes_on_without_a_gap(recipe):
    process = start(recipe, "stopped")
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does to a command and its group
    assert process.wait(timeout=60) == REQUEUE_EXIT_CODE
    log = (recipe.parent / "stopped.log").read_text()
    assert "Traceback" not in log
    assert "all saved; start it again to go on" in log
    (newest, *_) = whole_checkpoints(recipe.parent / "stopped")
    step = int(newest.name.removeprefix("step_"))
    assert 0 < step < NUM_STEPS
    run_dir = finish(recipe, "stopped")
    assert f"resuming after step {step}" in (recipe.parent / "stopped.log").read_text()
    assert list(losses_by_step(run_dir)) == list(range(1, NUM_STEPS + 1))


@pytest.mark.slow
def test_a_killed_rank_takes_the_job_down_in_seconds_and_nothing_is_lost(recipe):
    process = start(recipe, "killed")
    listed = subprocess.run(["pgrep", "-f", "local_rank=1 .*run.name=killed"], capture_output=True, text=True)
    os.kill(int(listed.stdout.split()[-1]), signal.SIGKILL)
    started = time.monotonic()
    assert process.wait(timeout=60) != 0
    assert time.monotonic() - started < 45
    run_dir = finish(recipe, "killed")
    assert list(losses_by_step(run_dir)) == list(range(1, NUM_STEPS + 1))
    assert [d["update"] for d in read_lines(run_dir / "decisions.jsonl")] == list(range(4))
