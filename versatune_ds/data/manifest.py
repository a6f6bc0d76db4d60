"""Read and write the manifest of one split of one domain's shards, a JSON file.

The manifest is written last: a folder without one is incomplete and is never read as data.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MANIFEST_NAME = "manifest.json"
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardFile:
    """One Arrow file, with size and digest to verify it."""

    name: str
    num_examples: int
    """Examples in the file; 0 for the index, which covers the examples of all token files."""
    num_bytes: int
    digest: str
    """blake2b of the file's bytes, hexadecimal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Description of a split's shards."""

    domain: str
    split: str
    """`train` or `valid`."""
    num_examples: int
    num_tokens: int
    num_loss_tokens: int
    longest_tokens: int
    """Tokens of the longest example."""
    examples_per_chunk: int
    """Examples of every record batch but the last; a reader finds example i in chunk i // examples_per_chunk."""
    files: tuple[ShardFile, ...]
    """Token files in order."""
    index: ShardFile
    settings: dict[str, Any]
    """Everything that the tokens depend on: tokenizer and template digests, row length, loss_on, long_examples."""

    @property
    def digest(self) -> str:
        """Return a digest of the content: the same data gives the same digest, whenever and wherever it is prepared."""
        parts = [self.domain, self.split, self.index.digest, *(file.digest for file in self.files)]
        return digest_of_texts(parts)


def digest_of_texts(texts: Sequence[str]) -> str:
    """Return 32 hexadecimal digits that depend on the texts, their order, and where one ends and the next begins."""
    return hashlib.blake2b(json.dumps(list(texts)).encode(), digest_size=16).hexdigest()


def digest_of_file(path: Path) -> str:
    """Return the blake2b digest of a file's bytes, read in blocks of 4 MiB."""
    hasher = hashlib.blake2b(digest_size=16)
    with path.open("rb", buffering=0) as stream:
        while block := stream.read(1 << 22):
            hasher.update(block)
    return hasher.hexdigest()


def write_manifest(folder: Path, *, manifest: Manifest) -> None:
    """Write the manifest of a folder; the caller writes it after every other file."""
    values = {"format": FORMAT_VERSION, **dataclasses.asdict(manifest)}
    (folder / MANIFEST_NAME).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a folder of shards.

    Raises:
        RuntimeError: If it is missing, cannot be read, or was written by another version; the message says what to do.
    """
    path = folder / MANIFEST_NAME
    way_out = f"delete {folder} and prepare again"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        found = values.pop("format")
        if found != FORMAT_VERSION:
            raise RuntimeError(f"{path}: format {found}, expected {FORMAT_VERSION}; {way_out}")
        files = tuple(ShardFile(**file) for file in values.pop("files"))
        return Manifest(files=files, index=ShardFile(**values.pop("index")), **values)
    except FileNotFoundError:
        raise RuntimeError(f"{path}: missing, so these shards are incomplete; {way_out}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RuntimeError(f"{path}: not a manifest of shards ({error}); {way_out}") from None
