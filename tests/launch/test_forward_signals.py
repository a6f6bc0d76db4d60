"""Signals reach the ranks: those in the launcher's session, and those over ssh, found by their rendezvous's port."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from versatune_ds.launch.forward_signals import rank_pids, run_and_forward


@pytest.fixture
def process():
    started = []

    def start(**environ):
        base = {"PATH": os.environ["PATH"], **environ}
        started.append(subprocess.Popen(["sleep", "60"], env=base, start_new_session=True))
        return started[-1].pid

    yield start
    for one in started:
        one.kill()
        one.wait()


def test_ranks_are_found_by_session_or_port_and_launchers_are_excluded(process):
    here, launcher = process(LOCAL_RANK="0", MASTER_PORT="1"), process(MASTER_PORT="50123")
    over_ssh, other = process(MASTER_PORT="50123", LOCAL_RANK="0"), process(MASTER_PORT="501234", LOCAL_RANK="0")
    assert rank_pids(session=here) == [here]
    assert rank_pids(session=launcher) == []
    assert rank_pids(session=launcher, port="50123") == [over_ssh]
    assert other not in rank_pids(session=launcher, port="50123")


def test_child_processes_of_a_rank_get_no_signal():
    child = ["bash", "-c", "sleep 60 & echo $!; wait"]
    environ = {"PATH": os.environ["PATH"], "LOCAL_RANK": "0", "MASTER_PORT": "50124"}
    with subprocess.Popen(child, env=environ, start_new_session=True, stdout=subprocess.PIPE, text=True) as rank:
        assert int(rank.stdout.readline()) != rank.pid
        assert rank_pids(session=rank.pid) == rank_pids(session=0, port="50124") == [rank.pid]
        os.killpg(rank.pid, signal.SIGKILL)


def test_a_launcher_that_forwards_signals_gets_them_itself():
    code = (
        "import os, signal, subprocess, sys, threading, time\n"
        "from versatune_ds.launch.forward_signals import run_and_forward\n"
        "child = 'trap \"exit 75\" USR1; for i in $(seq 200); do sleep 0.1; done'\n"
        "threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGINT)).start()\n"
        "sys.exit(run_and_forward(['bash', '-c', child], is_forwarding=True))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 75
    assert run_and_forward(["true"]) == 0


def test_ctrl_c_before_a_rank_has_started_ends_the_launcher_and_is_an_interrupt():
    code = (
        "import os, signal, threading\n"
        "from versatune_ds.launch.forward_signals import run_and_forward\n"
        "threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()\n"
        "try:\n"
        "    run_and_forward(['sleep', '60'])\n"
        "except KeyboardInterrupt:\n"
        "    os._exit(130)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=50).returncode == 130


def test_a_rank_that_ends_before_its_signal_arrives_is_no_error(monkeypatch):
    gone = subprocess.Popen(["true"])
    gone.wait()
    monkeypatch.setattr("versatune_ds.launch.forward_signals.rank_pids", lambda **_: [gone.pid])
    threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGUSR1)).start()
    assert run_and_forward(["bash", "-c", "sleep 1; exit 75"]) == 75
