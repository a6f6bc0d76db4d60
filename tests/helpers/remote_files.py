"""The file of the test server, and what a fetch of it leaves in the cache."""

from versatune_ds.data.remote import cache
from versatune_ds.data.sources.find_files import find_files

CONTENT = b"".join(b'{"text": "row %d"}\n' % i for i in range(20_000))
HALF = len(CONTENT) // 2
KEY = "data.domains.law.train"


def find(server, tmp_path, path="/law.jsonl"):
    """Return the fetched files of an address of the server, which is asked anew."""
    cache.forget_checks()
    return find_files([server.address + path], key=KEY, cache_dir=tmp_path)


def complete_files(tmp_path):
    """Return the files that count as completely fetched."""
    paths = (tmp_path / "remote").glob("*/*/*")
    return [path for path in paths if path.is_file() and not path.parent.name.startswith(".")]
