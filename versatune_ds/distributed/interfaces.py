"""Choose the network interface of gloo, which carries decisions and flags between machines.

gloo binds to the address that this machine's own name resolves to. On Debian and Ubuntu that is often 127.0.1.1
(/etc/hosts), which no other machine reaches: ranks then wait for each other until a timeout. So the interface of the
route to rank 0 is used instead, unless GLOO_SOCKET_IFNAME says which.

On rank 0's own machine there is no such route where its name resolves to 127.0.1.1. The default route may belong to a
network of its own, for management, so the other ranks share the address at which they reach rank 0 (`share_address`).
"""

from __future__ import annotations

import ipaddress
import os
import socket
import time
from collections.abc import Callable, Mapping

import psutil
import torch.distributed as dist

_ELSEWHERE = "192.0.2.1"
"""An address of no machine (RFC 5737): the route to it is the default route. Nothing is sent."""

_ADDRESS_KEY, _NUM_KEY = "address_of_rank_0", "num_ranks_that_resolved_rank_0"
_POLL_SECONDS = 0.05

Interface = tuple[str, str]
"""Name and IPv4 address."""


def set_gloo_interface(host: str, *, store: dist.Store, world_size: int) -> Interface | None:
    """Export GLOO_SOCKET_IFNAME for a run on several machines, and return the interface; None where it is not changed.

    Communication: see `share_address`; every rank calls this, also one whose user chose the interface.

    Args:
        host: Name or address of rank 0's machine (MASTER_ADDR).
        store: Where the ranks meet before there is a process group.
        world_size: Number of ranks.
    """
    address = _resolved(host)
    shared = share_address(None if address is None or _is_loopback(address) else address, store, world_size=world_size)
    if os.environ.get("GLOO_SOCKET_IFNAME"):
        return None
    known = address if shared is None else shared
    chosen = choose_interface(known, addresses=_addresses(), source_towards=_source_towards)
    if chosen is not None:
        os.environ["GLOO_SOCKET_IFNAME"] = chosen[0]
    return chosen


def share_address(address: str | None, store: dist.Store, *, world_size: int) -> str | None:
    """Return the address of rank 0's machine; None if no rank knows it.

    A rank that knows it returns at once. Any other waits until one that does has started, or all have.
    Communication: two requests to the store; a rank that waits makes twenty a second.

    Args:
        address: What this rank resolves it to; None if that is an address which only this machine has.
        store: Where the ranks meet before there is a process group.
        world_size: Number of ranks.
    """
    if address is not None:
        store.set(_ADDRESS_KEY, address)
    num_known = store.add(_NUM_KEY, 1)
    while address is None:
        if store.check([_ADDRESS_KEY]):
            return store.get(_ADDRESS_KEY).decode()
        if num_known >= world_size:
            return None
        time.sleep(_POLL_SECONDS)
        num_known = store.add(_NUM_KEY, 0)
    return address


def choose_interface(
    address: str | None, *, addresses: Mapping[str, str], source_towards: Callable[[str], str | None]
) -> Interface | None:
    """Return the interface of the route to rank 0's machine, None where there is no such route by IPv4.

    Example: rank 0's machine is 10.0.0.5, the route to it starts at 10.0.0.7, which eth1 has -> eth1. Where no rank
    knows more than a loopback address, the interface of the default route.

    Args:
        address: IPv4 address of rank 0's machine.
        addresses: {IPv4 address: interface} of this machine.
        source_towards: Returns the address of this machine from which a packet to an address would leave.
    """
    if address is None:
        return None
    source = source_towards(_ELSEWHERE if _is_loopback(address) else address)
    if source is None or source not in addresses or _is_loopback(source):
        return None
    return addresses[source], source


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


def _addresses() -> dict[str, str]:
    """Return {IPv4 address: interface} of this machine."""
    found = psutil.net_if_addrs().items()
    return {entry.address: name for name, entries in found for entry in entries if entry.family == socket.AF_INET}


def _resolved(host: str) -> str | None:
    try:
        return socket.gethostbyname(host)
    except OSError:
        return None


def _source_towards(address: str) -> str | None:
    """Return the source address of the route to an address; connecting a UDP socket sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))
        except OSError:
            return None
        return str(probe.getsockname()[0])
