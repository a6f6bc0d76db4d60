"""A web server of the tests on a real socket: it serves files from memory, counts requests, and fails on demand."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FileServer:
    """Files by path, and what goes wrong.

    Attributes:
        files: Path to (content, ETag); an ETag of None is not stated.
        has_ranges: Whether a part of a file can be requested.
        states_length: Whether sizes are stated; otherwise the end of the connection is the end of the file.
        states_total: Whether an answer with a part states the size of the file.
        ignores_start: Whether every part begins at byte 0, whatever was asked for.
        headers: Further headers of every answer with content.
        redirects: Path to the address that it redirects to.
        breaks_after: Bytes after which each of the next answers ends, one entry an answer; then answers are complete.
        failures: Statuses of the next answers, one entry an answer.
        on_read: Called before each answer with content, with the path.
        num_reads: Answers with content, by path; a request for the first byte alone is none.
    """

    def __init__(self) -> None:
        self.files: dict[str, tuple[bytes, str | None]] = {}
        self.has_ranges = True
        self.states_length = True
        self.states_total = True
        self.ignores_start = False
        self.headers: dict[str, str] = {}
        self.redirects: dict[str, str] = {}
        self.breaks_after: list[int] = []
        self.failures: list[int] = []
        self.on_read = lambda path: None
        self.num_reads: dict[str, int] = {}
        self.address = ""


def _handler_of(served: FileServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path in served.redirects:
                self.send_response(302)
                self.send_header("Location", served.redirects[path])
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if served.failures or path not in served.files:
                self.send_error(served.failures.pop(0) if served.failures else 404)
                return
            asked = self.headers.get("Range") if served.has_ranges else None
            is_look = self.headers.get("Range") == "bytes=0-0"
            if not is_look:
                served.on_read(path)
                served.num_reads[path] = served.num_reads.get(path, 0) + 1
            content, etag = served.files[path]
            first, last = 0, len(content) - 1
            if asked:
                start, end = re.fullmatch(r"bytes=(\d+)-(\d*)", asked).groups()
                first, last = 0 if served.ignores_start else int(start), min(int(end or last), last)
            if asked and first > last:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            body = content[first : last + 1]
            self.send_response(206 if asked else 200)
            if asked:
                total = len(content) if served.states_total else "*"
                self.send_header("Content-Range", f"bytes {first}-{last}/{total}")
            for name, value in served.headers.items():
                self.send_header(name, value)
            if etag is not None:
                self.send_header("ETag", etag)
            if served.states_length:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if not is_look and served.breaks_after:
                body = body[: served.breaks_after.pop(0)]
            with contextlib.suppress(OSError):
                self.wfile.write(body)
            self.close_connection = True

        def log_message(self, *arguments: object) -> None:
            """Log nothing."""

    return Handler


@contextlib.contextmanager
def file_server() -> Iterator[FileServer]:
    """Serve on a free port of this machine within a block."""
    served = FileServer()
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(served)) as server:
        served.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield served
        finally:
            server.shutdown()
            thread.join()
