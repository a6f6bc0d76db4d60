"""Check that Weights & Biases can be reached as the recipe asks: where its key comes from, a server that answers.

Only whether there is a key is asked, never what it is, and nothing is sent.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

from versatune_ds.preflight.subject import Subject
from versatune_ds.training.finding import Finding, fail, ok, warn

_SERVER = "https://api.wandb.ai"
_SECONDS = 3.0


def check_tracking(subject: Subject) -> Iterator[Finding]:
    """Report where W&B's key comes from, and connect to its server; that there is a key is a start check."""
    environ, mode = subject.request.environ, subject.config.monitor.wandb.mode
    if mode != "online":
        yield ok("wandb", "monitor.wandb.mode", f"{mode}, needs no key and no network")
        return
    from versatune_ds.monitor.wandb_sink import has_key  # importing wandb takes half a second

    if environ.get("WANDB_API_KEY"):
        yield ok("wandb", "WANDB_API_KEY", "set")
    elif has_key():
        yield warn("wandb", "WANDB_API_KEY", "not set; netrc has a key", "nodes need the same home folder")
    server = urlsplit(environ.get("WANDB_BASE_URL") or _SERVER)
    yield _connect(server.hostname or "", server.port or (80 if server.scheme == "http" else 443))


def _connect(host: str, port: int) -> Finding:
    """Open a connection and close it."""
    try:
        with socket.create_connection((host, port), timeout=_SECONDS):
            return ok("wandb", "connection", f"{host}:{port} answers")
    except OSError as error:
        todo = "use monitor.wandb.mode=offline, or check the network of the nodes"
        return fail("wandb", "connection", f"{host}:{port} does not answer within {_SECONDS:g} s ({error})", todo)
