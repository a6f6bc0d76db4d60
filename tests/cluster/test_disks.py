"""A disk without room: one clear line, the last checkpoint stays valid, and the run resumes once there is room."""

from __future__ import annotations

import os

import pytest
from box_runs import trained_box
from cluster_box import exit_codes

pytestmark = [pytest.mark.slow, pytest.mark.nightly]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return the runs of a box of one node, `whole` trained without a break."""
    with trained_box(tmp_path_factory.mktemp("box"), num_nodes=1, disk_mib=200) as runs:
        yield runs


def fill(folder):
    """Leave no room on a disk, and return the file that takes it."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as stream:
        for size in (1 << 20, 1 << 12):
            try:
                while True:
                    stream.write(bytes(size))
            except OSError:
                pass
    return path


def last_line(runs):
    """Return the last line of the only rank's log, which has no traceback."""
    log = runs.log(0)
    assert "Traceback" not in log, log
    return log.strip().splitlines()[-1]


@pytest.mark.parametrize("settings", [(), ("checkpoint.background=true",)], ids=["foreground", "background"])
def test_a_disk_that_is_full_ends_the_run_in_one_line_at_its_next_decision_and_loses_nothing(runs, settings):
    name = f"full_{len(settings)}"
    ranks = runs.start(name, *settings, arm=runs.stop_at("step", victim=0))
    runs.wait_for_moment(ranks)
    filler = fill(runs.box.seen)
    runs.go_on()
    assert exit_codes(ranks, seconds=60) == [1], runs.logs()
    filler.unlink()
    decisions = runs.box.shared / name / "decisions.jsonl"
    assert last_line(runs).startswith(
        f"versatune: {decisions}: a decision could not be written (No space left on device)"
    )
    assert runs.newest(name) == 5
    runs.train(name, *settings)
    runs.assert_equal(name, "whole")


def test_a_disk_that_is_full_at_saves_costs_these_and_the_last_one_ends_the_run_in_one_line(runs):
    settings = ("mixture.update_every=100", "checkpoint.every=3")
    ranks = runs.start("saves", *settings, arm=runs.stop_at("step", victim=0))
    runs.wait_for_moment(ranks)
    filler = fill(runs.box.seen)
    runs.go_on()
    assert exit_codes(ranks, seconds=60) == [1], runs.logs()
    filler.unlink()
    assert last_line(runs).startswith(
        "versatune: step 12 could not be saved ([Errno 28] No space left on device); the newest"
    )
    assert runs.log(0).count("Training continues, and the next save is tried when due") == 1
    assert runs.newest("saves") == 6
    runs.train("saves", *settings)
    runs.train("saves_whole", *settings)
    runs.assert_equal("saves", "saves_whole")


def test_a_cache_without_room_is_one_line_and_prepared_once_there_is_room(runs):
    cache = f"data.cache_dir={runs.box.local}/cache"
    node, filler = runs.box.nodes[0], f"{runs.box.local}/filler"
    node.run("sh", "-c", f"dd if=/dev/zero of={filler} bs=4k 2>/dev/null || true")
    ranks = runs.start("prepared", cache)
    assert exit_codes(ranks, seconds=60) == [1], runs.logs()
    assert last_line(runs).startswith(f"versatune: {runs.box.local}/cache/")
    assert last_line(runs).endswith(": No space left on device; free some disk space and start again")
    node.run("rm", filler)
    runs.train("prepared", cache)
    runs.assert_equal("prepared", "whole")


def log_to_a_full_disk(rank):
    descriptor = os.open("/dev/full", os.O_WRONLY)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)


def test_a_log_without_room_changes_neither_the_run_nor_an_exit_code(runs):
    ranks = runs.start("silent", arm=log_to_a_full_disk)
    assert exit_codes(ranks, seconds=60) == [0]
    runs.assert_equal("silent", "whole")
    ranks = runs.start("wrong", "train.rows_per_micro_batch=3", arm=log_to_a_full_disk)
    assert exit_codes(ranks, seconds=60) == [2]
