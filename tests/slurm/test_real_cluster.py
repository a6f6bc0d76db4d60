"""The real template on a real Slurm of two nodes: preempted, requeued, resumed; failed, cancelled, chained."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from command_line import write_recipe
from ranks import run_ranks
from slurm_cluster import PACKAGES, Cluster, install_packages
from tiny_run import ROOT, be_trained, losses_by_step, tiny_config

from versatune_ds.engine.checkpoint import open_weights
from versatune_ds.run_folder.checkpoint_files import complete_checkpoints

pytestmark = pytest.mark.slow
NUM_STEPS = 120
SEED = 20241124

PLAYED_RANK = """#!/bin/bash
case "$*" in
  *launcher/train.py*) trap 'echo rank leaves; exit 75' TERM; trap '' USR1; echo rank trains;
    while true; do sleep 0.1; done ;;
  *prepare*) ;;
  *) exec {python} "$@" ;;
esac
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    install_packages(*PACKAGES, programs=("slurmctld", "slurmd", "sbatch", "munged", "unshare", "setpriv"))
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        cluster.wait_until_up()
        yield cluster
    finally:
        cluster.close()


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    overrides = [
        f"train.steps={NUM_STEPS}", "mixture.update_every=20", "mixture.sigma_interval_steps=20",
        "checkpoint.every=1000", "slurm.nodes=2", "slurm.cpus_per_task=1", "slurm.time=00:30:00", "slurm.partition=low",
    ]  # fmt: skip
    return tiny_config(tmp_path_factory.mktemp("runs"), *overrides)


@pytest.fixture(scope="module")
def uninterrupted(config, tmp_path_factory):
    """Train `tiny` in two forked ranks to the end, and return its folder."""
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(lambda world: be_trained(config, world) and None, world_size=2, folder=folder)
    return config.run_dir


@pytest.fixture(scope="module")
def submit(cluster, config, uninterrupted):
    """Return a function that submits the recipe with `versatune submit`, and returns the job's id and log."""
    recipe = write_recipe(config, config.run.output_dir / "tiny.yaml")

    def submit(name, *arguments):
        command = [sys.executable, "-m", "versatune_ds.cli", "submit", recipe, f"run.name={name}", *arguments]
        done = subprocess.run(
            [*map(str, command)], cwd=ROOT, env=cluster.environ, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        job = done.stdout.strip()
        return job, config.run.output_dir / "_slurm" / f"{name}-{job}.log"

    return submit


def weights_of(run_dir):
    (newest, *_) = complete_checkpoints(run_dir)
    assert newest.name == f"step_{NUM_STEPS:08d}"
    return {name: weight.contiguous() for name, weight in open_weights(newest).items()}


def last_step(run_dir):
    metrics = run_dir / "metrics.jsonl"
    return metrics.read_text().count('"train/loss"') if metrics.is_file() else 0


def test_a_job_preempted_at_random_moments_equals_the_uninterrupted_one(cluster, config, submit, uninterrupted):
    moments = sorted(random.Random(SEED).sample(range(1, NUM_STEPS - 40), 2))
    job, log = submit("preempted")
    run_dir = config.run.output_dir / "preempted"

    def wait_for_step(step):
        cluster.wait_for(lambda: last_step(run_dir) >= step and cluster.state(job) == "RUNNING", log=log)

    wait_for_step(moments[0])
    cluster.run("scancel", "--batch", "--signal=USR1", job)  # what --signal=B:USR1@... does before the time limit
    cluster.wait_for(lambda: cluster.field(job, "Restarts") == "1", log=log)
    wait_for_step(moments[1])
    urgent = cluster.run("sbatch", "--parsable", "-phigh", "-N2", "--exclusive", "-o/dev/null", "--wrap=true")
    cluster.wait_for(lambda: cluster.field(job, "Restarts") == "2", log=log)
    assert cluster.wait_for_end(urgent) == "COMPLETED"
    assert cluster.wait_for_end(job, log=log) == "COMPLETED", log.read_text()

    text = log.read_text()
    assert text.count("resuming after step") == 2, text
    assert text.count("versatune_ds.cli prepare") == 1, text
    assert sorted(losses_by_step(run_dir)) == list(range(1, NUM_STEPS + 1))
    assert losses_by_step(run_dir) == losses_by_step(uninterrupted)
    assert (run_dir / "decisions.jsonl").read_text() == (uninterrupted / "decisions.jsonl").read_text()
    expected, found = weights_of(uninterrupted), weights_of(run_dir)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_mistake_ends_the_job_without_requeue_and_cancels_its_dependent_job(cluster, config, submit):
    recipe, template = config.run.output_dir / "tiny.yaml", ROOT / "slurm" / "train.sbatch"
    folder = config.run.output_dir / "elsewhere"  # the template finds the project from any folder
    folder.mkdir()
    options = ["--parsable", "-N2", "--ntasks-per-node=1", "-c1", f"--chdir={folder}"]
    mistake = ["run.name=mistaken", "train.rows_per_micro_batch=3"]
    cluster.environ["VERSATUNE_PYTHON"] = sys.executable
    job = cluster.run("sbatch", *options, str(template), str(recipe), *mistake)
    del cluster.environ["VERSATUNE_PYTHON"]
    waiting, _ = submit("waiting", "--after", job)
    log = folder / f"versatune-{job}.log"
    assert cluster.wait_for_end(job, log=log) == "FAILED"
    assert (cluster.field(job, "ExitCode"), cluster.field(job, "Restarts")) == ("2:0", "0")
    assert log.read_text().count("versatune: train.rows_per_batch: 8 rows do not divide") == 1
    assert cluster.wait_for_end(waiting) == "CANCELLED"


def test_each_task_of_an_array_trains_a_run_of_its_own(cluster, config, submit):
    job, _ = submit("array", "--array", "0-1", "--nodes", "1", "train.steps=2", "slurm.memory=100M")
    for task in (0, 1):
        log = config.run.output_dir / "_slurm" / f"array-{job}_{task}.log"
        assert cluster.wait_for_end(f"{job}_{task}", log=log) == "COMPLETED", log.read_text()
        run_dir = config.run.output_dir / f"array-{task}"
        assert sorted(losses_by_step(run_dir)) == [1, 2]
        saved = yaml.safe_load((run_dir / "config.yaml").read_text())
        assert (saved["run"]["seed"], saved["slurm"]["nodes"]) == (config.run.seed + task, 1)


def test_a_job_requeued_by_the_user_saves_and_a_cancelled_one_stays_cancelled(cluster, tmp_path):
    """Fake ranks: the signal that reaches them, and how the job ends."""
    rank = tmp_path / "python"
    rank.write_text(PLAYED_RANK.format(python=sys.executable))
    rank.chmod(0o755)
    write_recipe(tiny_config(Path("runs")), tmp_path / "tiny.yaml")
    cluster.environ["VERSATUNE_PYTHON"] = str(rank)
    options = ["--parsable", "-N2", "--ntasks-per-node=2", f"--chdir={tmp_path}", "--output=log"]
    job = cluster.run("sbatch", *options, str(ROOT / "slurm" / "train.sbatch"), "tiny.yaml")
    del cluster.environ["VERSATUNE_PYTHON"]
    log = tmp_path / "log"

    def has_ranks(*, start):
        text = log.read_text() if log.is_file() else ""
        return f"start {start}," in text and text.count("rank trains") == 4 * start

    cluster.wait_for(lambda: has_ranks(start=1), log=log)
    cluster.run("scontrol", "requeue", job)
    cluster.wait_for(lambda: has_ranks(start=2), log=log)
    assert log.read_text().count("rank leaves") == 4
    cluster.run("scancel", job)
    cluster.wait_for(lambda: "Slurm itself ends this start" in log.read_text().split("start 2,")[1], log=log)
    assert log.read_text().count("rank leaves") == 8
    assert cluster.wait_for_end(job, log=log) == "CANCELLED"
    assert cluster.field(job, "Restarts") == "1"
