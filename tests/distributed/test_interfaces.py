"""The interface of gloo: that of the route to rank 0, never one that other machines cannot reach."""

from __future__ import annotations

import logging

import pytest
import torch
import torch.distributed as dist

from versatune_ds.distributed import interfaces, rendezvous
from versatune_ds.distributed.interfaces import choose_interface, set_gloo_interface
from versatune_ds.distributed.world import World

ADDRESSES = {"127.0.0.1": "lo", "192.168.1.7": "eth0", "10.0.0.7": "ib0"}
ROUTES = {"10.0.0.5": "10.0.0.7", "10.0.0.7": "10.0.0.7", "192.0.2.1": "192.168.1.7", "172.16.0.1": "172.16.0.9"}
NAMES = {"node5": "10.0.0.5", "node7": "10.0.0.7", "debian": "127.0.1.1", "bridge": "172.16.0.1", "far": "203.0.113.9"}


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("node5", ("ib0", "10.0.0.7")),  # another machine, over the network that leads there
        ("node7", ("ib0", "10.0.0.7")),  # this machine
        ("debian", ("eth0", "192.168.1.7")),  # this machine by a name in /etc/hosts: the default route
        ("bridge", None),  # the route starts at an address that no interface has
        ("far", None),  # no route
        ("unknown", None),  # no address
    ],
)
def test_the_interface_is_that_of_the_route_to_rank_zero(host, expected):
    found = choose_interface(host, addresses=ADDRESSES, resolve=NAMES.get, source_towards=ROUTES.get)
    assert found == expected


def test_the_loopback_interface_is_never_chosen():
    found = choose_interface("debian", addresses=ADDRESSES, resolve=NAMES.get, source_towards=lambda _: "127.0.0.1")
    assert found is None


def test_an_interface_that_the_user_chose_stays(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "mine")
    assert set_gloo_interface("127.0.0.1") is None
    assert interfaces.os.environ["GLOO_SOCKET_IFNAME"] == "mine"


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
    monkeypatch.setattr(interfaces, "_resolved", NAMES.get)
    monkeypatch.setattr(interfaces, "_source_towards", ROUTES.get)
    seen = []
    monkeypatch.setattr(
        dist, "init_process_group", lambda *args, **keys: seen.append(rendezvous.os.environ.get("GLOO_SOCKET_IFNAME"))
    )
    world = World(rank=0, world_size=2, local_rank=0)
    rendezvous.join_world(world, device=torch.device("cpu"), is_one_machine=is_one_machine)
    assert seen == [None if is_one_machine else "eth0"]
    assert [message for message in caplog.messages if "gloo" in message] == (
        []
        if is_one_machine
        else ["gloo connects the machines through eth0, 192.168.1.7 (GLOO_SOCKET_IFNAME chooses another)"]
    )
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
