"""While ranks wait for others to join, it is logged which have joined and which have not."""

import logging
import threading

import pytest
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from versatune_ds.distributed import World, free_port, rendezvous, roll_call
from versatune_ds.distributed.roll_call import in_ranges, in_words, join_roll_call


def world_of(rank, *, size=4, local_rank=0):
    return World(rank=rank, world_size=size, local_rank=local_rank)


@pytest.mark.parametrize(
    ("ranks", "text"), [([], ""), ([3], "3"), ([0, 1, 2], "0-2"), ([0, 1, 2, 5, 7, 8], "0-2, 5 and 7-8")]
)
def test_ranks_are_written_as_ranges(ranks, text):
    assert in_ranges(ranks) == text


@given(st.sets(st.integers(0, 40), min_size=1))
def test_ranges_have_all_ranks_and_no_others(ranks):
    found = []
    for text in in_ranges(sorted(ranks)).replace(" and ", ", ").split(", "):
        first, _, last = text.partition("-")
        found += range(int(first), int(last or first) + 1)
    assert found == sorted(ranks)


def test_ranks_are_listed_by_machine():
    assert in_words({0: "a", 1: "a", 2: "b", 4: "a"}) == "0-1 and 4 on a, 2 on b"


def test_rank_zero_logs_every_half_minute_who_is_missing_and_gives_up_at_the_limit(monkeypatch, caplog):
    store, now = dist.HashStore(), [0.0]
    monkeypatch.setattr(roll_call.platform, "node", lambda: "node1")
    for rank in (1, 3):
        join_roll_call(world_of(rank), store, limit_seconds=70)  # any other than rank 0 does not wait
    monkeypatch.setattr(roll_call.platform, "node", lambda: "node0")
    monkeypatch.setattr(roll_call.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + 1.0))
    state = "1 of 4 ranks has not joined, 2; joined: 0 on node0, 1 and 3 on node1"
    with caplog.at_level(logging.WARNING), pytest.raises(RuntimeError, match="given up after 70 s") as caught:
        join_roll_call(world_of(0), store, limit_seconds=70, clock=lambda: now[0])
    assert state in str(caught.value)
    assert caplog.messages == [
        f"waiting for {seconds} s: {state}. The job is given up after 70 s" for seconds in (30, 60)
    ]


def test_nothing_is_logged_where_all_join_in_time_and_the_end_of_a_long_wait_is(monkeypatch, caplog):
    store, now = dist.HashStore(), [0.0]
    join_roll_call(world_of(1, size=2), store, limit_seconds=70)
    join_roll_call(world_of(0, size=2), store, limit_seconds=70)
    assert caplog.messages == []

    def sleep(seconds):
        now[0] += 1.0
        if now[0] == 40.0:
            join_roll_call(world_of(2, size=3), store, limit_seconds=70)

    monkeypatch.setattr(roll_call.time, "sleep", sleep)
    join_roll_call(world_of(0, size=3), store, limit_seconds=70, clock=lambda: now[0])
    assert caplog.messages[-1] == "all 3 ranks have joined after 40 s"
    assert len(caplog.messages) == 2


@pytest.mark.parametrize(("rank", "local_rank", "is_logged"), [(1, 1, True), (2, 0, True), (3, 1, False)])
def test_a_rank_that_finds_no_rank_zero_logs_where_it_looks_once_a_machine(
    monkeypatch, caplog, rank, local_rank, is_logged
):
    port = free_port()
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    monkeypatch.setattr(roll_call, "LOG_SECONDS", 0.01)
    logged, servers, messages = threading.Event(), [], []

    def warning(text, *values):
        messages.append(text % values)
        logged.set()

    monkeypatch.setattr(roll_call.logger, "warning", warning)

    def serve():
        logged.wait(10 if is_logged else 0.1)
        servers.append(rendezvous.connect_store(is_host=True))

    starts = threading.Thread(target=serve)
    starts.start()
    rendezvous.connect_store(is_host=False, world=world_of(rank, local_rank=local_rank)).set("key", "value")
    starts.join()
    assert bool(messages) == is_logged
    assert all(f"nothing answers at 127.0.0.1:{port}. Its process has not started" in text for text in messages)
