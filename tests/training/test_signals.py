"""A signal sets a flag that all ranks agree on; the same one again, or one with nothing to save, exits at once."""

import os
import signal
import subprocess
import sys
import time

from ranks import run_ranks

from versatune_ds.exit_codes import REQUEUE_EXIT_CODE
from versatune_ds.training.signals import Agreement, SaveClock, StopSignals

PREAMBLE = (
    "import os, signal, subprocess, sys, time\nfrom versatune_ds.training.signals import StopSignals\n"
    "s = StopSignals(); s.install()\n"
    "def until(is_true):\n"
    "    while not is_true(): time.sleep(0.01)\n"
)


def run_code(code):
    return subprocess.run([sys.executable, "-c", PREAMBLE + code], capture_output=True, text=True, timeout=120)


def test_a_signal_on_one_rank_is_seen_by_all(tmp_path):
    def work(world):
        signals = StopSignals()
        signals.install()
        signals.begin_steps()
        before = signals.agreed()
        if world.rank == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
            while signals.received is None:
                time.sleep(0.01)
        return before, signals.agreed(), signals.agreed(is_save_due=world.is_rank_zero)

    running = Agreement(is_stopped=False, is_save_due=False)
    stopping = Agreement(is_stopped=True, is_save_due=False)
    due = Agreement(is_stopped=True, is_save_due=True)
    assert run_ranks(work, world_size=2, folder=tmp_path) == [(running, stopping, due)] * 2


def test_a_repeated_signal_exits_at_once_and_a_different_one_does_not():
    result = run_code(
        "s.begin_steps()\n"
        "os.kill(os.getpid(), signal.SIGTERM); until(lambda: s.received); print(s.received.name, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGINT); time.sleep(0.3); print('still here', flush=True)\n"
        "os.kill(os.getpid(), signal.SIGTERM); time.sleep(60); print('and here')\n"
    )
    assert (result.stdout, result.returncode) == ("SIGTERM\nstill here\n", 128 + signal.SIGTERM)


def test_a_signal_before_the_first_step_exits_at_once_with_the_requeue_code():
    result = run_code("os.kill(os.getpid(), signal.SIGUSR1); time.sleep(60); print('and here')\n")
    assert (result.stdout, result.returncode) == ("", REQUEUE_EXIT_CODE)
    *_, last_line = result.stderr.splitlines()
    assert last_line == "versatune: stopped by SIGUSR1 before the first step; nothing had to be saved"


def test_a_signal_reaches_a_rank_that_waits_in_native_code():
    result = run_code(
        "import ctypes\ns.begin_steps()\n"
        "kill = 'import os, signal, time; time.sleep(0.3); os.kill(%d, signal.SIGTERM); time.sleep(0.3); "
        "os.kill(%d, signal.SIGTERM)' % (os.getpid(), os.getpid())\n"
        "subprocess.Popen([sys.executable, '-c', kill])\n"
        "lock = ctypes.CDLL(None).pthread_mutex_lock; mutex = ctypes.create_string_buffer(64)\n"
        "lock(mutex); lock(mutex)\n"  # never returns, as a collective does whose peer is gone
        "print('and here')\n"
    )
    assert (result.stdout, result.returncode) == ("", 128 + signal.SIGTERM)


def test_a_forked_child_has_the_default_signal_handlers():
    result = run_code(
        "pid = os.fork()\n"
        "if pid == 0: time.sleep(60); os._exit(0)\n"
        "time.sleep(0.2); os.kill(pid, signal.SIGTERM)\n"
        "print(os.waitpid(pid, 0)[1], flush=True); time.sleep(0.2); print(s.received)\n"
    )
    assert (result.stdout, result.returncode) == (f"{int(signal.SIGTERM)}\nNone\n", 0)


def test_a_save_is_due_after_the_clocks_minutes_and_again_after_a_restart(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    clock, never = SaveClock(0.5), SaveClock(None)
    now[0] = 129.0
    assert not clock.is_due()
    now[0] = 130.0
    assert clock.is_due()
    clock.restart()
    assert not clock.is_due()
    now[0] = 1e9
    assert not never.is_due()
