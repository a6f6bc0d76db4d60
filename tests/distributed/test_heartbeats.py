"""Heartbeats: rank 0 logs which rank is silent, once, and when it is back; rank 1 does for rank 0."""

from __future__ import annotations

import platform

import torch.distributed as dist

from versatune_ds.distributed.heartbeats import Heartbeats
from versatune_ds.distributed.silence import SilenceLimits


class Clock:
    """Seconds that a test moves."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def ranks_of(world_size, *, limits=SilenceLimits()):  # noqa: B008
    clock, store = Clock(), dist.HashStore()
    settings = {"world_size": world_size, "limits": limits, "clock": clock}
    return clock, [Heartbeats(store, rank=rank, **settings) for rank in range(world_size)]


def run(clock, beating, *, until):
    """Tick every second until a time; the ranks that are not given are silent."""
    while clock.now < until:
        for heartbeats in beating:
            heartbeats.tick()
        clock.now += 1.0


def test_ranks_that_beat_are_not_reported(caplog):
    clock, ranks = ranks_of(3)
    run(clock, ranks, until=300)
    assert caplog.messages == []


def test_a_silent_rank_is_named_once_within_a_minute_and_again_when_it_is_back(caplog):
    clock, (zero, one, two) = ranks_of(3)
    run(clock, (two, one, zero), until=100)
    run(clock, (one, zero), until=160)
    (message,) = caplog.messages
    assert message.startswith(f"rank 2 on {platform.node()} has not been heard of for 5")
    run(clock, (one, zero), until=380)
    assert len(caplog.messages) == 1
    run(clock, (two, one, zero), until=400)
    assert caplog.messages[1:] == ["rank 2 is heard of again after 290 s"]
    assert zero.lost is None


def test_a_rank_that_is_silent_for_five_minutes_is_given_up():
    clock, (zero, one, two) = ranks_of(3)
    run(clock, (two, one, zero), until=100)
    run(clock, (one, zero), until=389)
    assert zero.lost is None
    run(clock, (one, zero), until=400)
    assert zero.lost == f"rank 2 on {platform.node()} has not been heard of for 300 s"
    assert one.lost is None


def test_a_silent_rank_is_named_but_never_given_up_where_that_is_switched_off(caplog):
    clock, (zero, one, two) = ranks_of(3, limits=SilenceLimits(lost_seconds=None))
    run(clock, (two, one, zero), until=100)
    run(clock, (one, zero), until=4000)
    assert zero.lost is None
    (message,) = caplog.messages
    assert "its machine is down, or its process is frozen or busy in one long call" in message
    assert message.endswith("the other ranks wait as long as it takes (VERSATUNE_LOST_SECONDS=off)")


def test_a_job_that_was_suspended_for_an_hour_misses_nobody(caplog):
    clock, ranks = ranks_of(3)
    run(clock, ranks[::-1], until=100)  # rank 0 has read the newest beats
    clock.now += 3600
    for heartbeats in ranks:  # each continues before the others have beaten again
        heartbeats.tick()
    run(clock, ranks, until=clock.now + 60)
    assert caplog.messages == []
    assert [heartbeats.lost for heartbeats in ranks] == [None] * 3


def test_a_rank_that_has_not_started_yet_is_not_reported(caplog):
    clock, (zero, one) = ranks_of(2)
    run(clock, (zero,), until=300)
    run(clock, (one, zero), until=330)
    assert caplog.messages == []


def test_a_silent_rank_zero_is_named_by_rank_one_alone_and_its_host_is_known_to_all(caplog):
    clock, (zero, one, two) = ranks_of(3)
    run(clock, (zero, one, two), until=100)
    run(clock, (one, two), until=160)
    (message,) = caplog.messages
    assert message.startswith(f"rank 0 on {platform.node()} has not been heard of for 5")
    assert one.host_of_rank_zero() == two.host_of_rank_zero() == platform.node()
    run(clock, (zero, one, two), until=180)
    assert caplog.messages[1:] == ["rank 0 is heard of again after 70 s"]
