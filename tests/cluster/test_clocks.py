"""The clocks of all nodes jump forwards and backwards by hours while a run trains."""

from __future__ import annotations

from pathlib import Path

import pytest
from box_runs import build_preloaded, preempt, trained_box
from cluster_box import exit_codes
from tiny_run import read_lines

pytestmark = [pytest.mark.slow, pytest.mark.nightly]
HOUR = 3600
STEPS = ("train.steps=120", "mixture.update_every=40", "checkpoint.every=1000", "checkpoint.every_minutes=60")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return the runs of a box of two nodes, `whole` trained without a break."""
    with trained_box(tmp_path_factory.mktemp("box"), *STEPS, num_nodes=2) as runs:
        yield runs


def test_clocks_that_jump_by_hours_neither_stop_a_run_nor_lose_a_save(runs):
    library = build_preloaded(Path(__file__).with_name("shifted_clock.c"), folder=runs.box.folder)
    shift = runs.box.folder / "shift"
    shift.write_text("0")
    environ = {"LD_PRELOAD": str(library), "SHIFTED_CLOCK": str(shift)}
    ranks = runs.launch("jumps", environ=environ)
    for step, seconds in ((5, 5 * HOUR), (25, -3 * HOUR), (45, 700 * HOUR)):
        runs.wait(lambda step=step: runs.num_steps("jumps") >= step, ranks, seconds=120)
        shift.write_text(str(seconds))
    runs.wait(lambda: runs.num_steps("jumps") >= 60, ranks)
    preempt(ranks)
    assert exit_codes(ranks, seconds=60) == [75, 75], runs.logs()
    log = runs.log(0)
    times = [line[:2] for line in log.splitlines() if " INFO step " in line]
    assert len(set(times)) >= 3, "the clock was not set"
    assert "has not been heard of" not in log
    assert "has not answered" not in runs.log(1)
    assert log.count("INFO saved ") == 1, "the clock alone asked for a save"
    assert runs.newest("jumps") >= 60
    perf = [line for line in read_lines(runs.run_dir("jumps") / "metrics.jsonl") if "perf/step_seconds" in line]
    assert perf
    assert all(0 <= value < 60 for line in perf for key, value in line.items() if key.endswith("_seconds")), perf
    runs.train("jumps")
    runs.assert_equal("jumps", "whole")
