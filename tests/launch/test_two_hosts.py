"""Two hosts, each with its own network, name and sshd, train one run that the deepspeed launcher starts over ssh."""

import json
import sys

import pytest
from command_line import write_recipe
from ranks import run_ranks
from slurm_cluster import install_packages
from tiny_run import ROOT, be_trained, losses_by_step, tiny_config
from two_hosts import TwoHosts

PROGRAMS = ("sshd", "ssh", "ssh-keygen", "pdsh", "ip", "unshare", "setpriv")


@pytest.mark.slow
def test_a_run_over_ssh_on_two_hosts_has_the_losses_of_one_machine(tmp_path, monkeypatch):
    install_packages("openssh-server", "openssh-client", "pdsh", "iproute2", "hostname", programs=PROGRAMS)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "hosts").mkdir()
    (tmp_path / "ranks").mkdir()
    config = tiny_config(tmp_path, "train.steps=6")
    recipe = write_recipe(config, tmp_path / "tiny.yaml")
    run_ranks(lambda world: be_trained(config, world) and None, world_size=2, folder=tmp_path / "ranks")
    (tmp_path / "hostfile").write_text("alpha slots=1\nbeta slots=1\n")
    (tmp_path / ".deepspeed_env").write_text("OMP_NUM_THREADS=1\n")  # what the deepspeed launcher takes along
    hosts = TwoHosts(tmp_path / "hosts")
    train = [sys.executable, "-m", "versatune_ds.cli", "train", recipe, "--hostfile", "hostfile", "run.name=on_two"]
    done = hosts.run(*train, cwd=tmp_path)
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"this machine allows no namespaces: {done.stderr}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "--hostfile=hostfile --num_nodes=2" in done.stderr
    assert "Accepted publickey" in (tmp_path / "hosts" / "beta.log").read_text()
    environment = json.loads((tmp_path / "on_two" / "environment.json").read_text())
    assert (environment["world_size"], environment["launcher"]) == (2, "deepspeed/torchrun")
    assert losses_by_step(tmp_path / "on_two") == losses_by_step(config.run_dir)
