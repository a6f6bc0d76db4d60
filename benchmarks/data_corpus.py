"""Write the corpora of the data benchmarks: lengths like those of instruction data, tokens without meaning.

Lengths are log-normal per domain (medians 90 to 700 tokens, sigma 0.9, cut at the row), two thirds of each example bear
loss. The same examples are written in the format of every contender.
"""

from __future__ import annotations

import shutil
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from versatune_ds.data.prepare.shard_writer import ShardWriter
from versatune_ds.data.shards import DomainShards

DOMAINS = ("law", "medicine", "finance", "science", "code", "general")
MEDIAN_TOKENS = (400, 250, 150, 90, 700, 300)
WEIGHTS = (0.05, 0.15, 0.1, 0.1, 0.25, 0.35)


def realistic_lengths(rng: np.random.Generator, *, median_tokens: float, size: int, longest: int) -> np.ndarray:
    """Return log-normal lengths in 8..longest, int32 [size]."""
    return np.clip(rng.lognormal(np.log(median_tokens), 0.9, size), 8, longest).astype(np.int32)


def examples_of(domain_id: int, *, size: int, longest: int) -> Iterator[tuple[np.ndarray, int]]:
    """Iterate over (input_ids int32 [length], tokens of the prompt) of a domain; the same at every call."""
    rng = np.random.default_rng(domain_id)
    for length in realistic_lengths(rng, median_tokens=MEDIAN_TOKENS[domain_id], size=size, longest=longest):
        yield rng.integers(1, 32000, length, dtype=np.int32), max(int(length) // 3, 1)


def write_corpus(folder: Path, *, size: int, longest: int) -> None:
    """Write every domain as our shards and as a datasets folder, and as MDS where streaming is installed."""
    for domain_id, name in enumerate(DOMAINS):
        examples = list(examples_of(domain_id, size=size, longest=longest))
        _write_shards(folder / "shards" / name, name, examples, longest=longest)
        columns = {
            "input_ids": [input_ids for input_ids, _ in examples],
            "prompt_tokens": [prompt for _, prompt in examples],
            "domain_id": [domain_id] * len(examples),
        }
        Dataset.from_dict(columns).save_to_disk(folder / "hf" / name)
        _write_mds(folder / "mds" / name, domain_id, examples)


def open_shards(folder: Path) -> list[DomainShards]:
    """Open the domains written by `write_corpus`."""
    return [DomainShards(folder / "shards" / name) for name in DOMAINS]


def import_streaming() -> Any:
    """Return mosaicml-streaming, or None if it is not installed.

    It imports torchvision for its image data sets; where that is absent an empty stand-in is enough for text.
    """
    try:
        import torchvision  # noqa: F401
    except ImportError:
        import transformers.feature_extraction_utils  # noqa: F401 - looks for torchvision itself; before the stand-in

        for name in (
            "torchvision",
            "torchvision.datasets",
            "torchvision.transforms",
            "torchvision.transforms.functional",
        ):
            sys.modules[name] = types.ModuleType(name)
        sys.modules["torchvision.datasets"].VisionDataset = object
        sys.modules["torchvision.transforms.functional"].to_tensor = None
    try:
        import streaming
    except ImportError:
        return None
    return streaming


def _write_shards(folder: Path, name: str, examples: list[tuple[np.ndarray, int]], *, longest: int) -> None:
    """Write one domain in our format."""
    folder.mkdir(parents=True)
    writer = ShardWriter(folder, max_tokens=longest)
    for i, (input_ids, prompt) in enumerate(examples):
        spans = np.array([prompt, len(input_ids)], dtype=np.int32)
        writer.add(input_ids, loss_spans=spans, content_hash=i)
    writer.close(domain=name, split="train", settings={})


def _write_mds(folder: Path, domain_id: int, examples: list[tuple[np.ndarray, int]]) -> None:
    """Write one domain as MDS shards."""
    streaming = import_streaming()
    if streaming is None:
        return
    shutil.rmtree(folder, ignore_errors=True)
    columns = {"input_ids": "ndarray:int32", "prompt_tokens": "int", "domain_id": "int"}
    with streaming.MDSWriter(out=str(folder), columns=columns) as writer:
        for input_ids, prompt in examples:
            writer.write({"input_ids": input_ids, "prompt_tokens": prompt, "domain_id": domain_id})
