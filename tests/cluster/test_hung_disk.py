"""A disk hangs for a minute in a save: training waits or, with saves in the background, continues; nothing is lost."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from box_runs import build_preloaded, trained_box
from cluster_box import exit_codes

from versatune_ds.run_folder.checkpoint_files import complete_checkpoints

pytestmark = [pytest.mark.slow, pytest.mark.nightly]
HUNG_SECONDS = 60.0
"""Longer than a rank may be silent before it is logged."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return the runs of a box of two nodes, `whole` trained without a break."""
    with trained_box(tmp_path_factory.mktemp("box"), num_nodes=2) as runs:
        yield runs


@pytest.mark.parametrize(
    ("victim", "settings", "steps_meanwhile"),
    [(0, (), 5), (1, ("checkpoint.background=true",), 9)],
    ids=["foreground", "background"],
)
def test_a_disk_that_hangs_in_a_save_raises_no_alarm_and_changes_nothing(runs, victim, settings, steps_meanwhile):
    name, hung = f"hung_{victim}", runs.box.folder / f"hung_{victim}"
    library = build_preloaded(Path(__file__).with_name("hung_disk.c"), folder=runs.box.folder)
    hung.write_text(str(victim))
    ranks = runs.launch(name, *settings, environ={"LD_PRELOAD": str(library), "HUNG_DISK": str(hung)})
    runs.wait(hung.with_suffix(".met").exists, ranks, seconds=120)
    runs.wait(lambda: runs.num_steps(name) >= steps_meanwhile, ranks)
    end = time.monotonic() + HUNG_SECONDS
    runs.wait(lambda: time.monotonic() > end, ranks, seconds=2 * HUNG_SECONDS)
    if not settings:
        assert runs.num_steps(name) == steps_meanwhile
    assert complete_checkpoints(runs.run_dir(name)) == []
    hung.unlink()
    assert exit_codes(ranks, seconds=120) == [0, 0], runs.logs()
    for log in (runs.log(0), runs.log(1)):
        assert "has not been heard of" not in log
        assert "has not answered" not in log
    runs.assert_equal(name, "whole")
