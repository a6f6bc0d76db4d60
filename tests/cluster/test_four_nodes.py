"""Four nodes in a box: they meet over the network that joins them, and what happens to one of them loses nothing."""

from __future__ import annotations

import pytest
from box_runs import hasten_heartbeats, preempt, trained_box
from cluster_box import exit_codes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return the runs of a box of four nodes, `whole` trained without a break."""
    with trained_box(tmp_path_factory.mktemp("box"), num_nodes=4) as runs:
        yield runs


def test_gloo_takes_the_interface_that_joins_the_nodes_and_not_that_of_the_default_route(runs):
    runs.train("again", "train.steps=2")
    assert "gloo connects the machines through ib0, 10.77.0.1" in runs.log(0)


def test_a_node_without_power_is_named_and_ends_the_job_which_then_resumes_bit_for_bit(runs):
    stop = runs.stop_at("step", victim=2)
    ranks = runs.start("dark", arm=lambda rank: (hasten_heartbeats(), stop(rank)))
    runs.wait_for_moment(ranks)
    runs.box.nodes[2].power_off()
    codes = exit_codes([ranks[0], ranks[1], ranks[3]], seconds=40)
    assert codes == [1, 1, 1], runs.logs()
    assert "rank 2 on node2 has not been heard of for" in runs.log(0), runs.log(0)
    assert "it is given up, and this job ends with exit code 1" in runs.log(0)
    assert runs.newest("dark") == 5
    runs.box.nodes[2].power_on()
    runs.train("dark")
    runs.assert_equal("dark", "whole")


def test_a_signal_on_all_nodes_at_once_saves_and_the_run_resumes_bit_for_bit(runs):
    ranks = runs.start("preempted", "checkpoint.background=true")
    runs.wait(lambda: runs.num_steps("preempted") >= 3, ranks)
    preempt(ranks)
    assert exit_codes(ranks, seconds=40) == [75] * 4, runs.logs()
    assert runs.newest("preempted") >= 3
    runs.train("preempted", "checkpoint.background=true")
    runs.assert_equal("preempted", "whole")
