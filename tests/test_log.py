"""Logging: lines of this package are shown, and useless lines of other libraries are hidden."""

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import restored_logger

from versatune_ds import log
from versatune_ds.log import configure_logging

NO_GPU = "Setting accelerator to CPU. If you have GPU or other accelerator, we were unable to detect it."


def shown_by_deepspeed(*messages):
    """Return the messages of deepspeed's logger that are shown."""
    with restored_logger():
        configure_logging()
    records = [logging.makeLogRecord({"msg": message, "name": "DeepSpeed"}) for message in messages]
    return [record.msg for record in records if logging.getLogger("DeepSpeed").filter(record)]


@pytest.mark.parametrize("has_driver", [False, True])
def test_deepspeeds_line_about_a_missing_gpu_is_shown_only_with_a_driver(tmp_path, monkeypatch, has_driver):
    monkeypatch.setattr(log, "_DRIVERS", (str(tmp_path if has_driver else tmp_path / "none"),))
    overflow = "overflow, reducing the scale"
    shown = [NO_GPU, overflow] if has_driver else [overflow]
    assert shown_by_deepspeed(NO_GPU, overflow) == shown


@pytest.mark.slow
def test_the_filter_applies_while_deepspeed_is_imported():
    program = (
        "from versatune_ds import log\n"
        "log._DRIVERS = ()\n"
        "log.configure_logging()\n"
        "import deepspeed.accelerator\n"
        "print(deepspeed.accelerator.get_accelerator()._name)"
    )
    environ = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"} | {
        "CUDA_VISIBLE_DEVICES": ""
    }
    done = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Setting accelerator" not in done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] in ("cpu", "cuda")


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="the system does not show when a process started")
def test_the_seconds_of_the_imports_are_those_since_the_process_started():
    """A process that sleeps first; the clock of the system counts in hundredths."""
    program = (
        "import logging, sys, time; time.sleep(0.5)\n"
        "from versatune_ds import log; log.configure_logging(); log.log_imports()"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stderr
    assert float(re.search(r"start: imports, ([0-9.]+) s", shown)[1]) >= 0.5


def test_a_warning_that_every_rank_finds_alike_is_shown_by_rank_0_alone(capsys):
    for rank in (0, 1):
        with restored_logger():
            configure_logging(rank=rank, world_size=2)
            logging.getLogger("versatune_ds.any").warning("the plan is of another run", extra=log.SHARED)
            logging.getLogger("versatune_ds.any").warning("the disk of this rank is full")
    lines = [line.split(" ", 1)[1] for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        "WARNING the plan is of another run",
        "WARNING the disk of this rank is full",
        "[rank 1] WARNING the disk of this rank is full",
    ]
