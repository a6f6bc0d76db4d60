"""The live view in a real terminal of 80 columns: drawn once, log lines above it, and the prompt below at the end."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
import logging, time
from monitor_data import decision, step_metrics
from versatune_ds.log import configure_logging
from versatune_ds.monitor.live import LiveTerminal
configure_logging()
view = LiveTerminal(name="mine", num_steps=40, step=0)
view.decision(decision(1))
for step in range(1, 41):
    view.metrics(step, step_metrics())
    if step % 20 == 0:
        logging.getLogger("versatune_ds").info("saved step %d", step)
    time.sleep(0.05)
view.finish(exit_code=0)
print("THE END")
"""


@pytest.fixture(scope="module")
def tmux():
    """Return a function that calls tmux on a server of its own, with a session of 80 x 24; may install tmux."""
    if shutil.which("tmux") is None and os.geteuid() == 0 and shutil.which("apt-get"):
        subprocess.run("apt-get update -qq && apt-get install -y -qq --no-install-recommends tmux", shell=True)
    if shutil.which("tmux") is None:
        pytest.skip("needs tmux, which is missing and cannot be installed")

    def call(*arguments):
        command = ["tmux", "-L", f"versatune-{os.getpid()}", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    call("-f", "/dev/null", "new-session", "-d", "-x", "80", "-y", "24", "env LC_ALL=C.UTF-8 bash --norc")
    yield call
    call("kill-server")


def screen_with(tmux, text):
    """Wait until a text is on the screen; return the screen's lines, with those that scrolled off above."""
    for _ in range(600):
        screen = tmux("capture-pane", "-p", "-S", "-")
        if text in screen:
            return screen.splitlines()
        time.sleep(0.1)
    raise AssertionError(f"{text!r} never appeared:\n{screen}")


@pytest.mark.slow
def test_the_view_is_drawn_once_below_its_log_lines_and_leaves_the_prompt_usable(tmux, tmp_path):
    script = tmp_path / "show.py"
    script.write_text(SCRIPT)
    path = f"{ROOT}:{ROOT / 'tests' / 'helpers'}"
    tmux("send-keys", f"PYTHONPATH={path} {sys.executable} {script}", "Enter")
    running = screen_with(tmux, "saved step 20")
    assert sum("mine" in line and "step" in line for line in running[-24:]) == 1
    lines = screen_with(tmux, "THE END")
    text = "\n".join(lines)
    assert text.count("saved step 20") == text.count("saved step 40") == 1
    assert text.index("saved step 40") < text.index("step 40/40")
    assert sum("step 40/40" in line for line in lines) == 1
    assert sum(line.startswith("law ") for line in lines) == 1
