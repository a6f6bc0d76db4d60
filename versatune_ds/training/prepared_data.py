"""Prepare a recipe's tokenizer and tokenised data, once for all processes.

Rank 0 does the work and writes it to disk; the others receive the folders' names and open them. On a node that does not
see rank 0's disk, that node's first process does the same work again. The digests in the folders' names, and the run's
identity compared over all ranks, make sure that it is the same data. Together with the config and this process's place,
tokenizer and data are what every part of a run is built from (`RunSetup`).
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from versatune_ds.config import RunConfig
from versatune_ds.data.encoding.tokenizer import load_tokenizer, train_tokenizer
from versatune_ds.data.manifest import digest_of_texts
from versatune_ds.data.prepare.domains import PreparedData, prepare_domains
from versatune_ds.data.shards import DomainShards
from versatune_ds.data.sources.domain_files import domain_files, iter_texts, key_of
from versatune_ds.data.sources.find_files import find_files
from versatune_ds.data.sources.source_digests import SourceDigests
from versatune_ds.distributed import World, barrier, broadcast_text, run_on_rank_zero
from versatune_ds.domains import DomainSet
from versatune_ds.engine.ds_settings import zero_stage
from versatune_ds.model.named_model import check_saved_model
from versatune_ds.progress import working_on
from versatune_ds.run_folder.atomic import atomic_folder
from versatune_ds.run_folder.file_lock import locked

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.5
_TRAINED_TOKENIZER_VERSION = "2"  # increase it when the same texts would give another tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSetup:
    """What is known before any part of a run is built; `assemble.py` passes it to each builder."""

    config: RunConfig
    world: World
    device: torch.device
    """Where the model runs."""
    ds_config: dict[str, Any]
    """What `deepspeed_config` returned."""
    tokenizer: Any
    data: PreparedData

    @property
    def domain_set(self) -> DomainSet:
        """Return the run's domains."""
        return self.data.domain_set

    @property
    def zero_stage(self) -> int:
        """Return DeepSpeed's ZeRO stage, 0 to 3."""
        return zero_stage(self.ds_config)

    @property
    def longest_example(self) -> int:
        """Return the tokens of the longest example, trained on or held out."""
        parts = (*self.data.train, *self.data.valid)
        return max((int(part.lengths.max()) for part in parts if len(part.lengths)), default=0)


def prepare_once_per_node(config: RunConfig, world: World) -> tuple[Any, PreparedData]:
    """Return tokenizer and data on every rank; the work is done by one process of a node while the others wait.

    Communication: when rank 0 is done, one broadcast of an error (usually none) and one of the shards' folders; then
    one barrier, which waits for the slowest node.

    Raises:
        ValueError: On every rank, if the recipe's data are not as expected.
        RuntimeError: If this node's data files differ from rank 0's.
    """
    data = run_on_rank_zero(lambda: prepare_recipe(config), world)
    text = None if data is None else _folders_as_text(data, cache_dir=cache_folder(config))
    folders = broadcast_text(text, world)
    if data is None:
        data = _open_or_prepare(folders, config, world)
    barrier()
    return load_or_train_tokenizer(config), data


def _folders_as_text(data: PreparedData, *, cache_dir: Path) -> str:
    """Return the shards' folders within the cache, as JSON."""
    splits = {
        split: [shards.folder.relative_to(cache_dir).as_posix() for shards in getattr(data, split)]
        for split in ("train", "valid")
    }
    return json.dumps({"domains": list(data.domain_set), **splits})


def _open_or_prepare(text: str, config: RunConfig, world: World) -> PreparedData:
    """Open the shards in rank 0's folders; where this node does not have them, its first process prepares them."""
    folders = json.loads(text)
    paths = {split: [cache_folder(config) / name for name in folders[split]] for split in ("train", "valid")}
    if world.local_rank == 0 and not _exist(paths):
        data = prepare_recipe(config)
        if _folders_as_text(data, cache_dir=cache_folder(config)) != text:
            raise RuntimeError("data files on this node differ from rank 0's; copy rank 0's files to every node")
        return data
    while not _exist(paths):
        time.sleep(_POLL_SECONDS)  # should the first process fail, the launcher ends this one too
    return PreparedData(
        domain_set=DomainSet(tuple(folders["domains"])),
        train=tuple(DomainShards(folder) for folder in paths["train"]),
        valid=tuple(DomainShards(folder) for folder in paths["valid"]),
        counts=(),
    )


def _exist(paths: dict[str, list[Path]]) -> bool:
    """Return whether all folders exist; a prepared folder appears complete, by a rename."""
    return all(path.is_dir() for folders in paths.values() for path in folders)


def prepare_recipe(config: RunConfig) -> PreparedData:
    """Tokenise a recipe's data, and log what is in it.

    Raises:
        ValueError: If a file, a row or the tokenizer is not as expected.
    """
    data = prepare_domains(config.data, tokenizer=load_or_train_tokenizer(config), cache_dir=cache_folder(config))
    logger.info("data\n%s", data.table)
    return data


def cache_folder(config: RunConfig) -> Path:
    """Return the folder of prepared shards and trained tokenizers."""
    return config.cache_dir


def load_or_train_tokenizer(config: RunConfig) -> Any:
    """Return the recipe's tokenizer, the model's, or one trained on the training data and kept in the cache."""
    name = config.model.tokenizer or config.model.name_or_path
    if name is not None:
        key = "model.tokenizer"  # an error opens with the key that the user wrote
        if config.model.tokenizer is None:
            key = "model.name_or_path"
            check_saved_model(config.model)
        return load_tokenizer(name, trust_remote_code=config.model.trust_remote_code, key=key)
    folder = _trained_tokenizer_folder(config)
    if folder.is_dir():
        return load_tokenizer(folder)
    logger.info("training a tokenizer of %d tokens on the training data", config.model.tokenizer_vocab_size)
    texts = iter_texts(config.data, cache_dir=cache_folder(config))
    with locked(cache_folder(config) / "locks" / folder.name, what="the tokenizer trained on these data"):
        if not folder.is_dir():
            with atomic_folder(folder) as place, working_on("training a tokenizer"):
                train_tokenizer(texts, vocab_size=config.model.tokenizer_vocab_size, folder=place)
    return load_tokenizer(folder)


def _trained_tokenizer_folder(config: RunConfig) -> Path:
    """Return the folder of a tokenizer trained on this data, named by a digest of the files' content and the size."""
    cache_dir = cache_folder(config)
    digests = SourceDigests(cache_dir)
    parts = [_TRAINED_TOKENIZER_VERSION, str(config.model.tokenizer_vocab_size)]
    for name, files in domain_files(config.data, cache_dir=cache_dir).items():
        parts.append(json.dumps(files.columns, sort_keys=True))
        parts += digests.of(find_files(files.train, key=key_of(config.data, domain=name), cache_dir=cache_dir))
    return cache_dir / f"tokenizer-{digest_of_texts(parts)[:16]}"
