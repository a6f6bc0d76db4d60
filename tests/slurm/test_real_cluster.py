"""The real template on a real Slurm of two nodes: preempted, requeued, resumed; failed, cancelled, chained."""

import random
import subprocess
import sys

import pytest
import torch
from command_line import write_recipe
from ranks import run_ranks
from slurm_cluster import PACKAGES, Cluster, install_packages
from tiny_run import ROOT, be_trained, losses_by_step, tiny_config

from versatune_ds.training.checkpoint import open_weights, whole_checkpoints

pytestmark = pytest.mark.slow
NUM_STEPS = 120
SEED = 20241124


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
    (newest, *_) = whole_checkpoints(run_dir)
    assert newest.name == f"step_{NUM_STEPS:08d}"
    return {name: weight.contiguous() for name, weight in open_weights(newest).items()}


def last_step(run_dir):
    metrics = run_dir / "metrics.jsonl"
    return metrics.read_text().count('"train/loss"') if metrics.is_file() else 0


def test_a_job_preempted_at_random_moments_ends_as_if_it_had_never_stopped(cluster, config, submit, uninterrupted):
    moments = sorted(random.Random(SEED).sample(range(1, NUM_STEPS - 40), 3))
    job, log = submit("preempted")
    run_dir = config.run.output_dir / "preempted"

    def wait_for_step(step):
        cluster.wait_for(lambda: last_step(run_dir) >= step and cluster.state(job) == "RUNNING", log=log)

    wait_for_step(moments[0])
    cluster.run("scancel", "--batch", "--signal=USR1", job)  # what --signal=B:USR1@... does before the time limit
    cluster.wait_for(lambda: cluster.field(job, "Restarts") == "1", log=log)
    wait_for_step(moments[1])
    cluster.run("scontrol", "requeue", job)
    cluster.wait_for(lambda: cluster.field(job, "Restarts") == "2", log=log)
    wait_for_step(moments[2])
    urgent = cluster.run("sbatch", "--parsable", "-phigh", "-N2", "--exclusive", "-o/dev/null", "--wrap=true")
    cluster.wait_for(lambda: cluster.field(job, "Restarts") == "3", log=log)
    assert cluster.wait_for_end(urgent) == "COMPLETED"
    assert cluster.wait_for_end(job, log=log) == "COMPLETED", log.read_text()

    text = log.read_text()
    assert text.count("resuming after step") == 3, text
    assert text.count("versatune_ds.cli prepare") == 1, text
    assert sorted(losses_by_step(run_dir)) == list(range(1, NUM_STEPS + 1))
    assert losses_by_step(run_dir) == losses_by_step(uninterrupted)
    assert (run_dir / "decisions.jsonl").read_text() == (uninterrupted / "decisions.jsonl").read_text()
    expected, found = weights_of(uninterrupted), weights_of(run_dir)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
