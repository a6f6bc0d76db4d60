"""A web server with one file, which the tests of remote data share."""

import pytest
from file_server import file_server
from remote_files import CONTENT

from versatune_ds.data.remote import cache, retries


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(retries, "PAUSES_SECONDS", [0.0, 0.0, 0.0])
    monkeypatch.setattr(cache, "PAUSES_SECONDS", [0.0, 0.0, 0.0])
    cache.forget_checks()
    with file_server() as served:
        served.files["/law.jsonl"] = (CONTENT, '"one"')
        yield served
