"""Choose the network interface of gloo, which carries decisions and flags between machines.

gloo binds to the address that this machine's own name resolves to. On Debian and Ubuntu that is often 127.0.1.1
(/etc/hosts), which no other machine reaches: ranks then wait for each other until a timeout. So the interface of the
route to rank 0 is used instead, unless GLOO_SOCKET_IFNAME says which.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Callable, Mapping

import psutil

_ELSEWHERE = "192.0.2.1"
"""An address of no machine (RFC 5737): the route to it is the default route. Nothing is sent."""

Interface = tuple[str, str]
"""Name and IPv4 address."""


def set_gloo_interface(host: str) -> Interface | None:
    """Export GLOO_SOCKET_IFNAME for a run on several machines, and return the interface; None where it is not changed.

    Args:
        host: Name or address of rank 0's machine (MASTER_ADDR).
    """
    if os.environ.get("GLOO_SOCKET_IFNAME"):
        return None
    chosen = choose_interface(host, addresses=_addresses(), resolve=_resolved, source_towards=_source_towards)
    if chosen is not None:
        os.environ["GLOO_SOCKET_IFNAME"] = chosen[0]
    return chosen


def choose_interface(
    host: str,
    *,
    addresses: Mapping[str, str],
    resolve: Callable[[str], str | None],
    source_towards: Callable[[str], str | None],
) -> Interface | None:
    """Return the interface of the route to rank 0's machine, None where there is no such route by IPv4.

    Example: rank 0's name resolves to 10.0.0.5, the route to it starts at 10.0.0.7, which eth1 has -> eth1. On rank
    0's own machine the name may resolve to 127.0.1.1: then the interface of the default route.

    Args:
        host: Name or address of rank 0's machine.
        addresses: {IPv4 address: interface} of this machine.
        resolve: Returns the IPv4 address of a host.
        source_towards: Returns the address of this machine from which a packet to an address would leave.
    """
    found = resolve(host)
    if found is None:
        return None
    towards = _ELSEWHERE if ipaddress.ip_address(found).is_loopback else found
    source = source_towards(towards)
    if source is None or source not in addresses or ipaddress.ip_address(source).is_loopback:
        return None
    return addresses[source], source


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
