"""A signal sets a flag that all ranks agree on; the same one again, or one with nothing to save, exits at once."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
from ranks import run_ranks

from versatune_ds.distributed import sum_over_ranks
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


def installed_signals():
    signals = StopSignals()
    signals.install()
    signals.begin_steps()
    return signals


def signal_this_process(signals):
    os.kill(os.getpid(), signal.SIGUSR1)
    while signals.received is None:
        time.sleep(0.01)


def agreed_after_a_step(signals, *, during=lambda: None, is_save_due=False, is_writing=False):
    signals.ask_ranks(is_save_due=lambda: is_save_due, is_writing=lambda: is_writing)
    during()
    return signals.agreed()


def test_a_signal_on_one_rank_is_seen_by_all_after_the_next_step(tmp_path):
    def work(world):
        signals = installed_signals()
        during = lambda: world.rank == 1 and signal_this_process(signals)  # noqa: E731
        return (
            agreed_after_a_step(signals, during=during, is_writing=world.rank == 2),
            agreed_after_a_step(signals),
            agreed_after_a_step(signals, is_save_due=world.is_rank_zero),
        )

    writing = Agreement(is_stopped=False, is_save_due=False, is_writing=True)
    stopping = Agreement(is_stopped=True, is_save_due=False)
    due = Agreement(is_stopped=True, is_save_due=True)
    assert run_ranks(work, world_size=3, folder=tmp_path) == [(writing, stopping, due)] * 3


def test_a_signal_ends_a_command_that_never_saves_once_its_folders_are_removed(tmp_path):
    (tmp_path / "weights").mkdir()
    code = (
        "import shutil\n"
        f"s = StopSignals(clean_up=lambda: shutil.rmtree({str(tmp_path / 'weights')!r})); s.install()\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "time.sleep(60)\n"
    )
    found = run_code(code)
    assert (found.returncode, found.stderr) == (130, "versatune: stopped by SIGINT\n")
    assert not (tmp_path / "weights").exists()


def test_a_single_process_stops_after_the_step_in_which_it_is_signalled(tmp_path):
    def work(world):
        signals = installed_signals()
        return agreed_after_a_step(signals, during=lambda: signal_this_process(signals))

    assert run_ranks(work, world_size=1, folder=tmp_path) == [Agreement(is_stopped=True, is_save_due=False)]


def test_other_collectives_may_begin_and_end_during_the_exchange_of_flags(tmp_path):
    def work(world):
        signals = StopSignals()
        found = []
        for step in range(20):
            signals.received = signal.SIGTERM if (world.rank, step) == (1, 7) else signals.received
            totals = []
            during = lambda totals=totals: totals.append(sum_over_ranks(np.array([1.0]))[0])  # noqa: E731
            agreed = agreed_after_a_step(signals, during=during, is_save_due=world.is_rank_zero and step == 3)
            found.append((step, agreed.is_stopped, agreed.is_save_due, *totals))
        return found

    expected = [(step, step >= 7, step == 3, 2.0) for step in range(20)]
    assert run_ranks(work, world_size=2, folder=tmp_path) == [expected] * 2


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
