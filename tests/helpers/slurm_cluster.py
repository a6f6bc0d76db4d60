"""Run a private Slurm cluster on this machine: two nodes with real daemons, which end with the test in any case.

Everything runs in process and mount namespaces of its own: node names exist only there, and when its first process
ends, the kernel ends the daemons and all jobs.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from versatune_ds.distributed import free_port

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
NUM_CPUS = 4
"""Cores that each node reports, however many there are."""

_CONFIG = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
SlurmctldPort={port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_min_interval=0,batch_sched_delay=0,sched_interval=1,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=30
MailProg=/bin/true
{nodes}
PartitionName=low Nodes=node[1-2] Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=60 State=UP
PartitionName=high Nodes=node[1-2] PriorityTier=10 PreemptMode=OFF State=UP
"""

_BOOT = """\
set -e
mount --bind {folder}/hosts /etc/hosts
munged --force --key-file={folder}/munge.key --socket={folder}/munge.socket --pid-file={folder}/munged.pid \
  --log-file={folder}/munged.log --seed-file={folder}/munge.seed --num-threads=2
slurmctld -f {folder}/slurm.conf
slurmd -f {folder}/slurm.conf -N node1
slurmd -f {folder}/slurm.conf -N node2
exec sleep infinity
"""


def install_packages(*packages: str, programs: tuple[str, ...]) -> None:
    """Install Debian packages if a program is missing; skip the test, with the reason, if that is not possible."""
    if os.geteuid() != 0:
        pytest.skip(f"needs root to run {', '.join(programs)}")
    missing = [name for name in programs if shutil.which(name) is None]
    if not missing:
        return
    if shutil.which("apt-get") is None:
        pytest.skip(f"needs {', '.join(missing)}, and there is no apt-get to install them")
    wait = ["-o", "DPkg::Lock::Timeout=300"]
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
        done = subprocess.run(["apt-get", *wait, *command], env=environ, capture_output=True, text=True, timeout=600)
        if done.returncode:
            pytest.skip(f"apt-get {command[0]} failed: {done.stderr.strip().splitlines()[-1]}")


class Cluster:
    """Two nodes in the partitions low and high; a job in high preempts jobs in low.

    Args:
        folder: Empty folder for the cluster's files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environ = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self._write_files()
        boot = ["bash", "-c", _BOOT.format(folder=folder)]
        unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", *boot]
        with (folder / "boot.log").open("w") as log:
            # The kernel ends the namespace when this process dies for any reason.
            self._process = subprocess.Popen(["setpriv", "--pdeathsig=KILL", *unshare], stdout=log, stderr=log)

    def _write_files(self) -> None:
        host, ports = socket.gethostname(), [free_port() for _ in range(3)]
        nodes = "\n".join(
            f"NodeName=node{i} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[i]} CPUs={NUM_CPUS} RealMemory=4000"
            for i in (1, 2)
        )
        config = _CONFIG.format(folder=self.folder, host=host, port=ports[0], nodes=nodes)
        (self.folder / "slurm.conf").write_text(config)
        (self.folder / "hosts").write_text(f"127.0.0.1 localhost node1 node2 {host}\n")
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        for name in ("state", "spool.node1", "spool.node2"):
            (self.folder / name).mkdir()

    def wait_until_up(self) -> None:
        """Wait for both nodes; skip the test if this machine allows no namespaces."""
        try:
            self.wait_for(lambda: self.run("sinfo", "-h", "-p", "low", "-t", "idle", "-o", "%D") == "2", seconds=60)
        except AssertionError:
            text = "\n".join(path.read_text(errors="replace")[-800:] for path in sorted(self.folder.glob("*.log")))
            if "unshare" in text or "mount:" in text:
                pytest.skip(f"this machine allows no namespaces: {text}")
            raise AssertionError(f"the cluster did not come up:\n{text}") from None

    def run(self, *command: str) -> str:
        """Run a command on this cluster, and return its output."""
        done = subprocess.run(command, env=self.environ, capture_output=True, text=True, timeout=60)
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """Return a job's state, such as RUNNING, or FAILED once it has ended."""
        return self.field(job, "JobState")

    def field(self, job: str, name: str) -> str:
        """Return one field of a job's description by Slurm."""
        fields = dict(part.partition("=")[::2] for part in self.run("scontrol", "show", "job", "-o", job).split())
        return fields.get(name, "")

    def wait_for(self, condition: Callable[[], bool], *, seconds: float = 240.0, log: Path | None = None) -> None:
        """Wait until a condition is true; the failure message contains the job's log."""
        end = time.monotonic() + seconds
        while not condition():
            text = log.read_text() if log is not None and log.is_file() else ""
            assert time.monotonic() < end, f"condition not true after {seconds} s\n{text}"
            time.sleep(0.03)

    def wait_for_end(self, job: str, *, log: Path | None = None) -> str:
        """Wait until a job has ended and is not requeued, and return its state."""
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self.wait_for(lambda: self.state(job) in ended, log=log)
        return self.state(job)

    def close(self) -> None:
        """Kill the daemons and all jobs."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
