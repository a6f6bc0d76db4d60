"""A run that is interrupted from outside, under the real launcher: Ctrl-C saves, a killed rank ends the job."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from tiny_run import ROOT, losses_by_step, read_lines, tiny_config

from versatune_ds.distributed import free_port
from versatune_ds.exit_codes import REQUEUE_EXIT_CODE
from versatune_ds.run_folder.checkpoint_files import complete_checkpoints

NUM_STEPS = 150


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("interrupted")
    config = tiny_config(folder, f"train.steps={NUM_STEPS}", "checkpoint.every=50", "mixture.update_every=50")
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return path


def start(recipe, name, *, command=None):
    """Start a run on two processes in a process group of its own, and wait until it trains."""
    command = command or command_of("versatune", recipe, name)
    with (recipe.parent / f"{name}.log").open("a") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
    metrics = recipe.parent / name / "metrics.jsonl"
    end = time.monotonic() + 400  # a launcher imports for half a minute on busy cores
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
def test_ctrl_c_saves_and_the_next_start_continues_without_a_gap(recipe):
    process = start(recipe, "stopped")
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does to a command and its group
    assert process.wait(timeout=60) == REQUEUE_EXIT_CODE
    log = (recipe.parent / "stopped.log").read_text()
    assert "Traceback" not in log
    assert "state saved; start it again to resume" in log
    (newest, *_) = complete_checkpoints(recipe.parent / "stopped")
    step = int(newest.name.removeprefix("step_"))
    assert 0 < step < NUM_STEPS
    run_dir = finish(recipe, "stopped")
    assert f"resuming after step {step}" in (recipe.parent / "stopped.log").read_text()
    assert list(losses_by_step(run_dir)) == list(range(1, NUM_STEPS + 1))


def command_of(launcher, recipe, name):
    """Return the command that starts a run on two processes with a launcher; skip where it is not installed."""
    binary = Path(sys.executable).with_name(launcher)
    worker = [ROOT / "launcher" / "train.py", recipe, f"run.name={name}"]
    if launcher == "versatune":
        return [sys.executable, "-m", "versatune_ds.cli", "train", *worker[1:], "--processes", "2"]
    if not binary.is_file() or (launcher == "mpirun" and importlib.util.find_spec("mpi4py") is None):
        pytest.skip(f"needs {binary}: pip install -e '.[mpi]'")
    if launcher == "mpirun":
        return [binary, "-n", "2", sys.executable, *worker]
    return [binary, "--nproc_per_node=2", f"--master_port={free_port()}", *worker]


def ranks_of(name):
    """Return {pid: parent's pid} of the processes that train a run, launchers left out."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if f"run.name={name}".encode() in words and words[1].endswith((b"train.py", b"-u")):
            found[int(folder.name)] = parent
    return {pid: parent for pid, parent in found.items() if pid not in found.values()}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["versatune", "torchrun", "mpirun"])
def test_a_killed_rank_ends_the_job_in_seconds_and_loses_nothing_before_its_last_checkpoint(recipe, launcher):
    name = f"killed_by_{launcher}"
    process = start(recipe, name, command=command_of(launcher, recipe, name))
    ranks = ranks_of(name)
    assert len(ranks) == 2, ranks
    os.kill(max(ranks), signal.SIGKILL)
    started = time.monotonic()
    assert process.wait(timeout=60) != 0
    assert time.monotonic() - started < 45
    assert not ranks_of(name)
    if launcher == "versatune":
        run_dir = finish(recipe, name)
        assert list(losses_by_step(run_dir)) == list(range(1, NUM_STEPS + 1))
        assert [d["update"] for d in read_lines(run_dir / "decisions.jsonl")] == list(range(4))
