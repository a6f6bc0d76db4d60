"""A node is lost in a step, an update, a save or in prepare: the job ends, and nothing of the run is lost."""

from __future__ import annotations

import datetime
import os
import time

import pytest
from box_runs import hasten_heartbeats, trained_box
from cluster_box import exit_codes

from versatune_ds.distributed import rendezvous, roll_call

pytestmark = [pytest.mark.slow, pytest.mark.nightly]
BACKGROUND = "checkpoint.background=true"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return the runs of a box of four nodes, `whole` trained without a break."""
    with trained_box(tmp_path_factory.mktemp("box"), num_nodes=4) as runs:
        yield runs


@pytest.mark.parametrize("is_silent", [True, False], ids=["power", "crash"])
@pytest.mark.parametrize(
    ("moment", "victim", "settings", "newest"),
    [
        ("step", 0, (), 5),
        ("step", 3, (), 5),
        ("update", 0, (), 5),
        ("update", 2, (), 5),
        ("save", 0, (), 0),  # its second file of the first save
        ("save", 1, (), 5),  # its only file of the second save
        ("save", 0, (BACKGROUND,), 0),
        ("save", 1, (BACKGROUND,), 5),
        ("prepare", 0, (), 0),
        ("prepare", 2, (), 0),
    ],
)
def test_a_lost_node_ends_the_job_and_the_next_start_equals_the_uninterrupted_run(
    runs, moment, victim, settings, newest, is_silent
):
    name = f"{moment}_{victim}_{len(settings)}_{is_silent}"
    if moment == "prepare":  # rank 0 prepares for all on a shared disk, and each node for itself on its own
        folder = runs.box.shared / f"cache_{name}" if victim == 0 else runs.box.local / name
        settings = (f"data.cache_dir={folder}",)
    stop = runs.stop_at(moment, victim=victim)
    ranks = runs.start(name, *settings, arm=lambda rank: (hasten_heartbeats(), stop(rank)))
    runs.wait_for_moment(ranks)
    lost = runs.box.nodes[victim]
    lost.power_off(is_silent=is_silent)
    others = [rank for rank in ranks if rank.node is not lost]
    assert exit_codes(others, seconds=60) == [1, 1, 1], runs.logs()
    if is_silent:
        witness = 1 if victim == 0 else 0
        assert f"rank {victim} on node{victim} has" in runs.log(witness), runs.logs()
    assert runs.newest(name) == newest
    lost.power_on()
    runs.train(name, *settings)
    runs.assert_equal(name, "whole")


@pytest.mark.parametrize("victim", [0, 2])
def test_a_node_whose_network_is_cut_is_named_within_a_minute_and_all_ranks_end(runs, victim):
    name = f"cut_{victim}"
    settings = ("train.steps=3000", "mixture.update_every=1000", "checkpoint.every=1000")
    ranks = runs.start(name, *settings, arm=lambda rank: os.environ.update(VERSATUNE_LOST_SECONDS="60"))
    runs.wait(lambda: runs.num_steps(name) >= 20, ranks)
    runs.box.nodes[victim].cut()
    began = time.monotonic()
    witness = 1 if victim == 0 else 0
    named = f"rank {victim} on node{victim} has"
    while named not in runs.log(witness):
        assert time.monotonic() - began < 75, runs.logs()
        time.sleep(0.2)
    assert exit_codes(ranks, seconds=360) == [1] * 4, runs.logs()
    assert all("rank 0 on node0 has not answered" in runs.log(i) for i in ((1, 2, 3) if victim == 0 else (2,)))
    runs.box.nodes[victim].mend()


def test_a_network_that_is_down_for_twenty_seconds_costs_only_these(runs):
    ranks = runs.start("blip")
    runs.wait(lambda: runs.num_steps("blip") >= 2, ranks)
    runs.box.nodes[2].cut()
    time.sleep(20)
    runs.box.nodes[2].mend()
    assert exit_codes(ranks, seconds=90) == [0] * 4, runs.logs()
    runs.assert_equal("blip", "whole")


@pytest.mark.parametrize(
    ("victim", "line"),
    [
        (2, "1 of 4 ranks has not joined, 2; joined: 0 on node0, 1 on node1, 3 on node3"),
        (0, "nothing answers at node0:29511. Its process has not started or has ended"),
    ],
)
def test_a_rank_that_is_lost_before_it_has_joined_is_named_while_the_others_wait(runs, victim, line):
    def arm(rank):
        roll_call.LOG_SECONDS, rendezvous.TIMEOUT = 2.0, datetime.timedelta(seconds=15)
        if rank == victim:
            os._exit(9)

    ranks = runs.start(f"absent_{victim}", arm=arm)
    witness, end = 1 if victim == 0 else 0, time.monotonic() + 60
    while runs.log(witness).count(line) < 3:
        assert time.monotonic() < end, runs.logs()
        time.sleep(0.2)
    if victim == 0:  # they would wait for half an hour
        for rank in ranks:
            rank.kill()
    else:
        assert exit_codes(ranks, seconds=60) == [1, 1, 9, 1], runs.logs()
