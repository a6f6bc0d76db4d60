"""Check that Weights & Biases can be reached as the recipe asks: a key in the environment, a server that answers.

The key itself is looked at by nobody: whether the variable is set is all that is asked, and nothing is sent.
"""

from __future__ import annotations

import netrc
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from versatune_ds.preflight.finding import Finding, fail, ok, warn
from versatune_ds.preflight.subject import Subject

_SERVER = "https://api.wandb.ai"
_SECONDS = 3.0


def check_tracking(subject: Subject) -> Iterator[Finding]:
    """Check mode, key and connection of W&B."""
    settings, environ = subject.config.monitor.wandb, subject.request.environ
    mode = settings.mode
    if mode != "online":
        yield ok("wandb", "monitor.wandb.mode", f"{mode}, needs no key and no network")
        return
    server = urlsplit(environ.get("WANDB_BASE_URL") or _SERVER)
    if environ.get("WANDB_API_KEY"):
        yield ok("wandb", "WANDB_API_KEY", "set")
    elif _has_login(server.hostname or "", home=environ.get("HOME")):
        yield warn("wandb", "WANDB_API_KEY", "not set; ~/.netrc has a key", "nodes need the same home folder")
    else:
        todo = "export WANDB_API_KEY, or use monitor.wandb.mode=offline"
        yield fail("wandb", "WANDB_API_KEY", "monitor.wandb.mode is online, and no key is set", todo)
    yield _connect(server.hostname or "", server.port or (80 if server.scheme == "http" else 443))


def _has_login(host: str, *, home: str | None) -> bool:
    """Return whether `wandb login` left a key for a server."""
    try:
        return home is not None and netrc.netrc(str(Path(home) / ".netrc")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _connect(host: str, port: int) -> Finding:
    """Open a connection and close it."""
    try:
        with socket.create_connection((host, port), timeout=_SECONDS):
            return ok("wandb", "connection", f"{host}:{port} answers")
    except OSError as error:
        todo = "use monitor.wandb.mode=offline, or check the network of the nodes"
        return fail("wandb", "connection", f"{host}:{port} does not answer within {_SECONDS:g} s ({error})", todo)
