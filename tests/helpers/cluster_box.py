"""A cluster in a box: nodes with a network, a host name, processes and a local disk of their own, on this machine.

Each node is a set of namespaces, joined to the others by a virtual cable and a bridge. Every node has what misleads a
rank on real machines: `eth0`, which leads nowhere and has the default route, before `ib0`, which reaches the others;
and its own name stands for 127.0.1.1, as Debian writes it into /etc/hosts.

A rank is forked from the test and enters its node, so it starts without imports. Everything ends with the test.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

PORT = 29511
_PROGRAMS = ("ip", "unshare", "nsenter", "setpriv", "mount", "hostname")
_ENTERED = ("uts", "net", "mnt", "pid")
"""Namespaces of a node; a process enters the last by forking."""

_SITE = """\
mount -t tmpfs -o size={disk_mib}m none {shared}
ip link add bridge0 type bridge && ip link set bridge0 up && ip link set lo up && echo ready >{folder}/site
exec sleep infinity
"""

_NODE = """\
hostname node{number}
mount --bind {folder}/hosts /etc/hosts
mount --bind {folder}/resolv.conf /etc/resolv.conf
mount -t tmpfs -o size=64m none {local}
ip link set lo up
echo $$ >{folder}/ready
exec sleep infinity
"""

# A card keeps its address when a machine is started again; the others would look for another one a minute long.
_NETWORK = """\
set -e
ip addr add 10.1.0.{address}/24 dev eth0
ip link set eth0 up
ip route add default via 10.1.0.254
ip link set ib0 address 02:00:00:00:00:{address:02x}
ip addr add 10.77.0.{address}/24 dev ib0
ip link set ib0 up
"""


def needs_root() -> None:
    """Skip the test where this machine lets nobody make namespaces."""
    if os.geteuid() != 0:
        pytest.skip("needs root to make network namespaces")
    missing = [name for name in _PROGRAMS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)} (Debian: iproute2, util-linux, hostname)")


class Box:
    """A site with a bridge and a disk that its nodes share; skips the test where namespaces are not allowed.

    Args:
        folder: Empty folder for the box's files.
        num_nodes: Number of nodes.
        disk_mib: Size of the shared disk, `Box.shared`; `Box.local` is a path where each node has a disk of its own.
    """

    def __init__(self, folder: Path, *, num_nodes: int, disk_mib: int = 2000) -> None:
        needs_root()
        self.folder, self.shared, self.local = folder, folder / "shared", folder / "local"
        for disk in (self.shared, self.local):
            disk.mkdir(parents=True)
        script = _SITE.format(folder=folder, shared=self.shared, disk_mib=disk_mib)
        self._site = _start("unshare", "--mount", "--net", "sh", "-ec", script, log=folder / "site.log")
        _wait_for_file(folder / "site", process=self._site, log=folder / "site.log")
        self.nodes = [Node(self, number) for number in range(num_nodes)]

    @property
    def seen(self) -> Path:
        """Return the shared disk as this process reaches it."""
        return Path(f"/proc/{self._site.pid}/root{self.shared}")

    def resize(self, disk_mib: int) -> None:
        """Change the size of the shared disk while it is used."""
        self.on_site("mount", "-o", f"remount,size={disk_mib}m", str(self.shared))

    def on_site(self, *command: str, is_checked: bool = True) -> None:
        """Run a command outside of the nodes, where their cables end."""
        enter = ["nsenter", f"--target={self._site.pid}", "--mount", "--net"]
        subprocess.run([*enter, *command], check=is_checked, stderr=None if is_checked else subprocess.DEVNULL)

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a command whose namespaces are made from the site's."""
        inside = ("nsenter", f"--target={self._site.pid}", "--mount", "setpriv", "--pdeathsig=KILL")
        return _start(*inside, *arguments, log=self.folder / "site.log")

    def start_ranks(self, work: Callable[[int], int], *, num_ranks: int | None = None) -> list[Rank]:
        """Start `work(rank)` on each node, or the first ones, with a launcher's variables; it returns an exit code."""
        size = num_ranks or len(self.nodes)
        return [Rank(self.nodes[rank], work, rank=rank, world_size=size) for rank in range(size)]

    def close(self) -> None:
        """End all nodes, and everything in them."""
        for node in self.nodes:
            node.power_off()
        self._site.kill()
        self._site.wait()


class Node:
    """One machine of the box: its interface ib0 reaches the other nodes, eth0 nothing.

    Args:
        box: Its box.
        number: From 0; its name is `node<number>`.
    """

    def __init__(self, box: Box, number: int) -> None:
        self._box, self.number, self.name = box, number, f"node{number}"
        self.folder = box.folder / self.name
        self.folder.mkdir()
        self.power_on()

    def power_on(self) -> None:
        """Make the node's namespaces and connect it."""
        names = {"localhost": "127.0.0.1", self.name: "127.0.1.1"}
        others = {f"node{i}": f"10.77.0.{i + 1}" for i in range(250) if i != self.number}
        lines = [f"{address} {name}\n" for name, address in (names | others).items()]
        (self.folder / "hosts").write_text("".join(lines))
        (self.folder / "resolv.conf").write_text("")  # or each unknown address would wait for a name server
        ready = self.folder / "ready"
        ready.unlink(missing_ok=True)
        script = _NODE.format(folder=self.folder, local=self._box.local, number=self.number)
        unshare = ("unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
        self._process = self._box.start(*unshare, "sh", "-ec", script)
        _wait_for_file(ready, process=self._process, log=self._box.folder / "site.log")
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        self.pid = int(children.read_text().split()[0])
        for name, prefix in (("eth0", "e"), ("ib0", "i")):
            self._box.on_site("ip", "link", "add", f"{prefix}{self.number}", "type", "veth", "peer", "name", name,
                              "netns", str(self.pid))  # fmt: skip
            self._box.on_site("ip", "link", "set", f"{prefix}{self.number}", "up")
        self._box.on_site("ip", "link", "set", f"i{self.number}", "master", "bridge0")
        self.run("sh", "-c", _NETWORK.format(address=self.number + 1))

    def run(self, *command: str) -> None:
        """Run a command on the node."""
        subprocess.run(["nsenter", f"--target={self.pid}", "--all", *command], check=True)

    def cut(self) -> None:
        """Pull the cable: packets are lost, and nobody is told."""
        self._box.on_site("ip", "link", "set", f"i{self.number}", "down")

    def mend(self) -> None:
        """Connect the cable again."""
        self._box.on_site("ip", "link", "set", f"i{self.number}", "up")

    def power_off(self, *, is_silent: bool = True) -> None:
        """Switch the machine off: its processes are gone, and no connection is closed, unless it is not silent."""
        if self._process.poll() is None:
            if is_silent:
                self.cut()
            os.kill(self.pid, signal.SIGKILL)
            self._process.wait()
            for cable in (f"e{self.number}", f"i{self.number}"):  # or they would go some time later
                self._box.on_site("ip", "link", "delete", cable, is_checked=False)

    def enter(self) -> None:
        """Make this process one of the node's; its pid stays the old one, those of its children are the node's."""
        folder, libc = os.getcwd(), ctypes.CDLL(None, use_errno=True)
        descriptors = [os.open(f"/proc/{self.pid}/ns/{name}", os.O_RDONLY) for name in _ENTERED]
        for descriptor in descriptors:
            if libc.setns(descriptor, 0):
                raise OSError(ctypes.get_errno(), "setns")
            os.close(descriptor)
        os.chdir(folder)


class Rank:
    """A process of a run on a node; `pid` is that of this machine.

    Args:
        node: Where it runs.
        work: What it does; it gets the rank and returns the exit code.
        rank: Its rank.
        world_size: Number of ranks, one a node.
    """

    def __init__(self, node: Node, work: Callable[[int], int], *, rank: int, world_size: int) -> None:
        self.node = node
        self.log = node.folder / "rank.log"
        reader, writer = os.pipe()
        self._entering = os.fork()
        if self._entering == 0:
            _be_rank(node, work, rank=rank, world_size=world_size, log=self.log, writer=writer)
        os.close(writer)
        self.pid = int(os.read(reader, 20))
        os.close(reader)
        self._code: int | None = None

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal; nothing happens where the process has just ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def exit_code(self, *, seconds: float) -> int | None:
        """Return the exit code, -N for signal N; None where it still runs after some seconds."""
        end = time.monotonic() + seconds
        while self._code is None:
            pid, status = os.waitpid(self._entering, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                self._code = code - 256 if code > 191 else code
            elif time.monotonic() >= end:
                return None
            else:
                time.sleep(0.02)
        return self._code


def exit_codes(ranks: list[Rank], *, seconds: float = 60.0) -> list[int | None]:
    """Return the exit codes of ranks, None of one that still runs after some seconds."""
    end = time.monotonic() + seconds
    return [rank.exit_code(seconds=max(0.05, end - time.monotonic())) for rank in ranks]


def _be_rank(
    node: Node, work: Callable[[int], int], *, rank: int, world_size: int, log: Path, writer: int
) -> None:  # pragma: no cover
    """Enter the node, work in a process that has the node's pids, and end with its exit code."""
    code = 99
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout = sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)  # pytest has others
        node.enter()
        platform._uname_cache = None  # this machine's name
        child = os.fork()
        if child == 0:
            os.environ.update(
                RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK="0", LOCAL_WORLD_SIZE="1", MASTER_ADDR="node0",
                MASTER_PORT=str(PORT), DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1",
            )  # fmt: skip
            code = work(rank)
        else:
            os.write(writer, str(child).encode())
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code % 256)


def _start(*command: str, log: Path) -> subprocess.Popen[bytes]:
    """Start a command that the kernel ends with this process."""
    with log.open("a") as stream:
        return subprocess.Popen(["setpriv", "--pdeathsig=KILL", *command], stdout=stream, stderr=stream)


def _wait_for_file(path: Path, *, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a process has written a file; skip the test where the machine did not let it."""
    end = time.monotonic() + 20
    while not (path.is_file() and path.read_text()):
        if process.poll() is not None or time.monotonic() > end:
            pytest.skip(f"this machine allows no namespaces: {log.read_text()[-400:]}")
        time.sleep(0.01)
