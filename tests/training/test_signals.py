"""A signal sets a flag that all ranks agree on; the same one again leaves at once."""

import os
import signal
import subprocess
import sys

from ranks import run_ranks

from versatune_ds.training.signals import StopSignals


def test_a_signal_on_one_rank_is_seen_by_all(tmp_path):
    def work(world):
        signals = StopSignals()
        signals.install()
        before = signals.agreed()
        if world.rank == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        return before, signals.agreed()

    assert run_ranks(work, world_size=2, folder=tmp_path) == [(False, True)] * 2


def test_the_same_signal_again_leaves_at_once_and_another_one_does_not():
    code = (
        "import os, signal\nfrom versatune_ds.training.signals import StopSignals\n"
        "s = StopSignals(); s.install()\n"
        "os.kill(os.getpid(), signal.SIGTERM)\nprint(s.received.name, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGINT)\nprint('still here', flush=True)\n"
        "os.kill(os.getpid(), signal.SIGTERM)\nprint('and here')\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.stdout, result.returncode) == ("SIGTERM\nstill here\n", 128 + signal.SIGTERM)
