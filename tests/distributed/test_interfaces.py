"""The interface of gloo: that of the route to rank 0, never one that other machines cannot reach."""

from __future__ import annotations

import logging
import threading

import pytest
import torch
import torch.distributed as dist

from versatune_ds.distributed import interfaces, rendezvous
from versatune_ds.distributed.interfaces import choose_interface, set_gloo_interface, share_address
from versatune_ds.distributed.world import World

ADDRESSES = {"127.0.0.1": "lo", "192.168.1.7": "eth0", "10.0.0.7": "ib0"}
ROUTES = {"10.0.0.5": "10.0.0.7", "10.0.0.7": "10.0.0.7", "192.0.2.1": "192.168.1.7", "172.16.0.1": "172.16.0.9"}


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("10.0.0.5", ("ib0", "10.0.0.7")),  # another machine, over the network that leads there
        ("10.0.0.7", ("ib0", "10.0.0.7")),  # this machine
        ("127.0.1.1", ("eth0", "192.168.1.7")),  # this machine by a name in /etc/hosts: the default route
        ("172.16.0.1", None),  # the route starts at an address that no interface has
        ("203.0.113.9", None),  # no route
        (None, None),  # no address
    ],
)
def test_the_interface_is_that_of_the_route_to_rank_zero(address, expected):
    found = choose_interface(address, addresses=ADDRESSES, source_towards=ROUTES.get)
    assert found == expected


def test_the_loopback_interface_is_never_chosen():
    found = choose_interface("127.0.1.1", addresses=ADDRESSES, source_towards=lambda _: "127.0.0.1")
    assert found is None


def test_an_interface_that_the_user_chose_stays(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "mine")
    assert set_gloo_interface("127.0.0.1", store=dist.HashStore(), world_size=1) is None
    assert interfaces.os.environ["GLOO_SOCKET_IFNAME"] == "mine"


def test_the_machine_of_rank_zero_learns_from_another_one_at_which_address_it_is_reached():
    store, found = dist.HashStore(), []
    waits = threading.Thread(target=lambda: found.append(share_address(None, store, world_size=3)))
    waits.start()
    assert share_address("10.0.0.5", store, world_size=3) == "10.0.0.5"  # rank 2 has not started yet
    waits.join(10)
    assert found == ["10.0.0.5"]


def test_ranks_of_which_none_knows_the_address_do_not_wait_for_each_other_for_ever():
    store, found = dist.HashStore(), []
    ranks = [threading.Thread(target=lambda: found.append(share_address(None, store, world_size=2))) for _ in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(10)
    assert found == [None, None]


def test_this_machines_own_interfaces_are_found():
    addresses = interfaces._addresses()
    assert addresses["127.0.0.1"] == "lo"
    source = interfaces._source_towards("192.0.2.1")
    assert source is None or source in addresses


@pytest.mark.parametrize("is_one_machine", [True, False])
def test_only_a_run_on_several_machines_sets_the_interface_and_logs_it(monkeypatch, caplog, is_one_machine):
    caplog.set_level(logging.INFO, logger="versatune_ds")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setenv("MASTER_ADDR", "debian")
    monkeypatch.setenv("MASTER_PORT", "1")
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")  # join_world writes them; the test's end restores them
    monkeypatch.setattr(interfaces, "_addresses", lambda: ADDRESSES)
    monkeypatch.setattr(interfaces, "_resolved", {"debian": "127.0.1.1"}.get)
    monkeypatch.setattr(rendezvous, "connect_store", lambda is_host: dist.HashStore())
    monkeypatch.setattr(interfaces, "_source_towards", ROUTES.get)
    seen = []
    monkeypatch.setattr(
        dist, "init_process_group", lambda *args, **keys: seen.append(rendezvous.os.environ.get("GLOO_SOCKET_IFNAME"))
    )
    world = World(rank=0, world_size=1, local_rank=0)
    rendezvous.join_world(world, device=torch.device("cpu"), is_one_machine=is_one_machine)
    assert seen == [None if is_one_machine else "eth0"]
    assert [message for message in caplog.messages if "gloo" in message] == (
        []
        if is_one_machine
        else ["gloo connects the machines through eth0, 192.168.1.7 (GLOO_SOCKET_IFNAME chooses another)"]
    )
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
