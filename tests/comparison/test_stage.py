"""A stage of a comparison's starting point ends with the comparison."""

import signal
import subprocess
import sys
import time

SCRIPT = """
import subprocess, sys
from versatune_ds.comparison.stage import wait_for
from versatune_ds.launch.time_budget import TimeBudget
child = "import signal, sys, time\\nsignal.signal(15, lambda *_: (print('saved', flush=True), sys.exit(75)))\\n"
child += "print('begun', flush=True)\\ntime.sleep(60)"
wait_for(subprocess.Popen([sys.executable, "-c", child], start_new_session=True), budget=TimeBudget(None))
"""


def test_sigterm_is_passed_on_to_the_stage_and_waits_for_it():
    comparison = subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True)
    assert comparison.stdout.readline() == "begun\n"
    began = time.monotonic()
    comparison.send_signal(signal.SIGTERM)
    assert comparison.stdout.read() == "saved\n"
    assert comparison.wait(30) == 128 + signal.SIGTERM
    assert time.monotonic() - began < 30  # it does not sleep to its end
